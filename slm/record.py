"""The run folder: the record of truth of one run. Plots, tables and W&B are made from it.

    spec.yaml       the resolved spec; its first line holds the run's identity
    metrics.jsonl   one JSON object a line, written in one piece the moment it is measured. A value
                    that is not finite is null. Of several lines of one step each adds its keys.
    samples.jsonl   {step, tokens, prompt, text}
    summary.json    status, reason, facts (slm/facts.py) and, at the end, the results. Status:
                    running finished preempted diverged failed skipped; a run that says running and
                    whose process is gone has crashed.
    .lock           held by the process that writes here, and naming it; no record
"""
from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import yaml

from slm.errors import UserError
from slm.files import Lock, disk, is_locked, plain, private, read_rows, rows_of, write_whole

STATUSES = ("running", "finished", "preempted", "diverged", "failed", "skipped")
LINES = ("metrics.jsonl", "samples.jsonl")
# Of the latest line that has it -> its name in summary.json.
RESULTS = {"step": "steps_done", "tokens": "tokens", "flops": "flops", "time_sec": "time_sec",
           "val/loss": "val_loss", "val/loss_se": "val_loss_se", "val/floor": "val_floor",
           "val/bits_per_byte": "val_bits_per_byte", "val/perplexity": "val_perplexity",
           "tokens_per_sec": "tokens_per_sec", "mfu": "mfu"}


class Record:
    """The one writer of a run folder:

        with Record.open(folder, spec, identity) as record:
            record.start(step_of_the_checkpoint, facts, spec.track)
            record.log(...), record.sample(...)
            record.finish("finished", "reached its horizon")

    On other ranks than 0 (main=False) it writes nothing. Every method that writes raises UserError,
    naming the folder, where the disk is full or refuses."""

    def __init__(self, folder: Path, main: bool) -> None:
        self.folder, self.main = Path(folder), main
        self.lock: Lock | None = None
        self.mirror: Any = None
        self.state: dict[str, Any] = {}
        self.latest: dict[str, Any] = {}     # the newest value of every metric
        self.fds: dict[str, int] = {}
        self.before_sec, self.started = 0.0, time.monotonic()

    @classmethod
    def open(cls, folder: Path, spec: dict, identity: str, main: bool = True) -> Record:
        """Make or take over a run folder, and lock it.

        spec: the resolved spec as plain nested dicts; identity: the hash of what the run is.
        Raises UserError also where the folder is of another spec or another process has it."""
        record = cls(folder, main)
        if not main:
            return record
        folder = record.folder
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            record.lock = Lock(folder)
        try:
            with disk(folder):
                refuse_another_spec(folder, spec, identity)
                head = (f"# identity {identity}: the resolved spec of this run, written by slm; "
                        "another spec is another run\n")
                body = yaml.safe_dump(plain(spec), sort_keys=False, allow_unicode=True)
                write_whole(folder / "spec.yaml", head + body)
                for name in LINES:
                    record.fds[name] = os.open(folder / name,
                                               os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            record.summary({"status": "running", "name": folder.name, "identity": identity})
        except BaseException:
            record.close()
            raise
        return record

    def start(self, step: int, facts: dict[str, Any] | None = None, track=None) -> None:
        """Begin at a step: 0, or that of the checkpoint gone on from, and then what was recorded
        after it is dropped, since it is done again. Starts the clock.

        facts: for summary.json and W&B's config; track: the spec's section, to mirror to W&B."""
        if not self.main:
            self.started = time.monotonic()
            return
        with disk(self.folder):
            for name in LINES:
                self._drop_after(step, name)
        self.summary(facts or {})
        if track is not None:
            from slm.mirror import Mirror
            spec = yaml.safe_load((self.folder / "spec.yaml").read_text(encoding="utf-8"))
            self.mirror = Mirror.start(track, self.folder, {**spec, "facts": plain(facts or {})})
        self.started = time.monotonic()

    def _drop_after(self, step: int, name: str) -> None:
        path = self.folder / name
        raw = path.read_bytes()
        kept = [(row, line) for row, line in rows_of(raw) if 0 < step >= row.get("step", -1)]
        text = b"".join(line for _, line in kept)
        if text != raw:
            os.close(self.fds.pop(name))
            write_whole(path, text)
            self.fds[name] = os.open(path, os.O_WRONLY | os.O_APPEND)
        if name == "metrics.jsonl":
            for row, _ in kept:
                self.latest |= row
            self.before_sec = self.latest.get("time_sec") or 0.0

    def seconds(self) -> float:
        """Time spent on this run since start(), plus that up to the checkpoint gone on from."""
        return self.before_sec + time.monotonic() - self.started

    @property
    def stop_asked(self) -> bool:
        """Whether W&B asks for this run's end."""
        return self.mirror is not None and self.mirror.stop_asked

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append {step, time_sec, **values} to metrics.jsonl, at once. Steps never go back."""
        if step < self.latest.get("step", 0):
            raise ValueError(f"step {step} logged after step {self.latest['step']}")
        row = {"step": step, "time_sec": round(self.seconds(), 3), **plain(values)}
        self.latest |= row
        self._append("metrics.jsonl", row)
        if self.mirror is not None:
            self.mirror.poll()

    def sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Append one generated text to samples.jsonl."""
        self._append("samples.jsonl", {"step": step, "tokens": tokens, "prompt": prompt,
                                       "text": text})

    def _append(self, name: str, row: dict) -> None:
        if not self.main:
            return
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with disk(self.folder):
            written = os.write(self.fds[name], line)  # one call, so that a kill leaves no mixture
            while written < len(line):                # the disk is full: the next call says so
                written += os.write(self.fds[name], line[written:])

    def summary(self, values: dict[str, Any]) -> None:
        """Merge values into summary.json."""
        self.state |= plain(values)
        if self.main:
            with disk(self.folder):
                write_whole(self.folder / "summary.json", json.dumps(self.state, indent=1) + "\n")

    def finish(self, status: str, reason: str = "", results: dict[str, Any] | None = None,
               exit_code: int | None = None) -> Path | None:
        """Write the final state with the results, draw loss.png (not when preempted: time is
        short), give W&B its last chance within its time limit, and let go of the folder.

        results: more of them than RESULTS, if any; exit_code: what W&B is told, left out: 1 for
        failed and preempted, else 0. Returns the plot's path, None where there is none."""
        if status not in STATUSES:
            raise ValueError(f"status {status!r}: should be one of {STATUSES}")
        if not self.main:
            return None
        self.summary({**self.results(), **(results or {}), "status": status, "reason": reason})
        plot = self._plot() if status in ("finished", "diverged") else None
        if self.mirror is not None:
            code = int(status in ("failed", "preempted")) if exit_code is None else exit_code
            self.mirror.finish(code, preempted=status == "preempted")
        self.close()
        return plot

    def results(self) -> dict[str, Any]:
        """The latest metrics under the names of summary.json; the best validation loss; and the
        training loss, smoothed: its mean over the last tenth of the tokens."""
        out = {name: self.latest[key] for key, name in RESULTS.items() if key in self.latest}
        rows = read_rows(self.folder / "metrics.jsonl")
        val = [r["val/loss"] for r in rows if r.get("val/loss") is not None]
        train = [r for r in rows if r.get("train/loss") is not None]
        if val:
            out["best_val_loss"] = min(val)
        if train:
            first = 0.9 * train[-1].get("tokens", 0)
            window = [r["train/loss"] for r in train if r.get("tokens", 0) >= first]
            out["train_loss"] = sum(window) / len(window)
            out["train_loss_window_tokens"] = round(train[-1].get("tokens", 0) - first)
        return out

    def _plot(self) -> Path | None:
        from slm.screen import say
        try:
            from slm.plot import plot_run
            return plot_run(self.folder)
        except Exception as e:  # a picture is never worth a run
            say(f"loss.png could not be drawn ({type(e).__name__}: {e})")
            return None

    def close(self) -> None:
        """Let go of the folder. A run that has not been finished then counts as crashed."""
        if self.mirror is not None:
            self.mirror.let_go()
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @staticmethod
    def peek(folder: Path) -> dict[str, Any] | None:
        """What a status view wants of a run folder, cheaply and whatever state it is in:
        summary.json, with `last`, the newest value of every metric. A run that says running and
        whose process is gone is crashed. None: this is no run folder."""
        folder = Path(folder)
        try:
            state = json.loads((folder / "summary.json").read_bytes())
        except (OSError, ValueError):
            state = None
        if not isinstance(state, dict) or "status" not in state:
            if not (folder / "spec.yaml").exists() and not (folder / ".lock").exists():
                return None
            state = {"name": folder.name, "status": "running"}
        if state["status"] == "running" and not is_locked(folder):
            state["status"] = "crashed"
        return state | {"last": newest(folder / "metrics.jsonl")}


def newest(path: Path, tail_bytes: int = 65_536) -> dict[str, Any]:
    """The newest values of the metrics, from the end of metrics.jsonl. Only the last line, and the
    last ones of training and validation, are parsed: a status view reads thousands of runs."""
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - tail_bytes))
            raw = f.read()
    except OSError:
        return {}
    end = raw.rfind(b"\n") + 1
    merged: dict[str, Any] = {}
    for place in sorted(raw.rfind(mark, 0, end) for mark in (b'"val/loss"', b'"train/loss"', b"{")):
        if place >= 0:
            start, stop = raw.rfind(b"\n", 0, place) + 1, raw.find(b"\n", place) + 1
            for row, _ in rows_of(raw[start:stop]):
                merged |= row
    return merged


def flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}"""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def refuse_another_spec(folder: Path, spec: dict, identity: str) -> None:
    """Raises UserError, with the keys that differ, where folder/spec.yaml is of another run."""
    try:
        text = (folder / "spec.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    found = re.match(r"# identity (\w+)", text)
    if found and found.group(1) == identity:
        return
    try:
        old = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        old = {}
    was, now = flat(old), flat(plain(spec))
    keys = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
    if found or keys:
        differ = "; ".join(f"{k}: {was.get(k)} there, {now.get(k)} here" for k in keys[:5])
        more = f"; {len(keys) - 5} more" if len(keys) > 5 else ""
        raise UserError(f"{private(str(folder))}: holds a run of another spec ({differ}{more}): "
                        "move that folder away, or give another track.dir or track.name")
