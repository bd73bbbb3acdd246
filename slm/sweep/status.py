"""`status`: where each point of a sweep stands, read from the run folders alone."""
from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm.record import Record
from slm.screen import several
from slm.sweep.points import Point, Sweep
from slm.sweep.table import cut, duration, table

STOPPED = "stopped_by_sweep"  # a file in the run folder: early_terminate ended this run, and why
MARK = "[slm.sweep]"  # begins the launcher's own lines in the log of a run, the last ones there
FAILED, TOOK = f"{MARK} failed", f"{MARK} took"
DONE = ("finished", "diverged", "skipped", "stopped")
ROWS = 20


@dataclass
class State:
    """Of one point: done (finished, diverged, skipped, stopped), running, failed, preempted,
    crashed, or to do. last: the newest value of each metric."""
    status: str = "to do"
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> dict[str, Any]:
        return self.summary.get("last", {})

    @property
    def done(self) -> bool:
        return self.status in DONE


def read_state(point: Point) -> State:
    """The state of a point. One with branches is done once they all are."""
    state = folder_state(point.folder)
    if state.status == "finished":
        for folder in point.branch_folders():
            branch = folder_state(folder)
            if not branch.done:
                return State(branch.status, state.summary)
    elif state.status == "to do" and log_lines(point.folder)[-1:] and \
            log_lines(point.folder)[-1].startswith(FAILED):  # it ended before it had a record
        return State("failed")
    return state


def folder_state(folder: Path) -> State:
    summary = Record.peek(folder)
    if summary is None:
        return State()
    status = summary["status"]
    if status != "finished" and (folder / STOPPED).exists():
        status = "stopped"
    return State(status, summary)


def log_file(folder: Path) -> Path:
    """What the processes of a point wrote on stdout and stderr. folder: its run folder."""
    return folder.parent / "logs" / f"{folder.name}.txt"


def log_lines(folder: Path) -> list[str]:
    """The last lines of a point's log, the empty ones left out."""
    try:
        with open(log_file(folder), "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - 4096))
            text = f.read().decode(errors="replace")
    except OSError:
        return []
    lines = (line.split("\r")[-1].strip() for line in text.split("\n"))
    return [line for line in lines if line]


def last_error(point: Point, state: State) -> str:
    """The last line that a failed run wrote, else the reason that it recorded."""
    written = [line for line in log_lines(point.folder) if not line.startswith(MARK)]
    return written[-1] if written else state.summary.get("reason") or "it wrote nothing"


def took_sec(folder: Path) -> float | None:
    """Seconds from the start of a run's process to its end, where a launcher has noted them."""
    last = (log_lines(folder) or [""])[-1]
    try:
        return float(last.removeprefix(TOOK).split()[0]) if last.startswith(TOOK) else None
    except (ValueError, IndexError):
        return None


def steps(point: Point, state: State) -> int:
    """Optimiser steps of the whole run."""
    return state.summary.get("horizon", {}).get("steps") or point.plan.steps


def time_left(point: Point, state: State) -> float | None:
    """Seconds a running point still needs at its own pace so far."""
    tokens, seconds = state.last.get("tokens"), state.last.get("time_sec")
    return seconds * max(0, point.tokens - tokens) / tokens if tokens and seconds else None


def best(sweep: Sweep, states: list[tuple[Point, State]]) -> tuple[Point, float] | None:
    """The done point with the best value of the sweep's metric."""
    found = None
    for point, state in states:
        value = state.last.get(sweep.file.metric.name)
        if state.status in ("finished", "stopped") and value is not None \
                and (found is None or sweep.file.metric.better(value, found[1])):
            found = point, value
    return found


def describe(sweep: Sweep, points: list[Point], everything: bool) -> list[str]:
    """The lines of `status`."""
    states = [(p, read_state(p)) for p in points if not p.dropped]
    counts = Counter(s.status for _, s in states)
    head = [f"{n} {status}" for status, n in counts.most_common()]
    if sweep.file.method == "bayes":
        counts["to do"] += sweep.file.run_cap - len(points)
        head = [f"{n} {status}" for status, n in counts.most_common() if n]
    dropped = len(points) - len(states)
    head += [f"{dropped} dropped"] if dropped else []
    lines = [f"{sweep.file.name}: {several(sum(counts.values()), 'point')}: {', '.join(head)}   "
             f"({sweep.folder})"]
    begun = in_interest(states)
    shown = [row(sweep, p, s) for p, s in (begun if everything else begun[:ROWS])]
    if shown:
        name = sweep.file.metric.name
        lines += ["", *table(["#", "point", "state", name, "progress", ""], shown, {1, 2, 4, 5})]
    if len(begun) > len(shown):
        lines.append(f"... {len(begun) - len(shown)} more: --all shows them, --json writes them")
    top = best(sweep, states)
    if top:
        lines += ["", f"best so far: {sweep.file.metric.name} {top[1]:.4f} at point "
                      f"{top[0].number} ({top[0].label})   {top[0].folder}"]
    return lines


def in_interest(states: list[tuple[Point, State]]) -> list[tuple[Point, State]]:
    """Running first, then what went wrong, then what is done; those to do are only counted."""
    rank = {"running": 0, "failed": 1, "crashed": 1, "diverged": 2}
    begun = [(p, s) for p, s in states if s.status != "to do"]
    return sorted(begun, key=lambda ps: (rank.get(ps[1].status, 3), ps[0].number))


def row(sweep: Sweep, point: Point, state: State) -> list[str]:
    value = state.last.get(sweep.file.metric.name)
    step = state.last.get("step")
    text = ""
    if state.status == "running":
        left = time_left(point, state)
        text = f"{duration(left)} left" if left is not None else ""
    elif state.status in ("failed", "crashed"):
        text = cut(last_error(point, state), 70)
    elif state.last.get("time_sec"):
        text = duration(state.last["time_sec"])
    return [str(point.number), cut(point.label, 40), state.status,
            f"{value:.4f}" if value is not None else "",
            f"step {step} of {steps(point, state)}" if step is not None else "", text]


def as_json(sweep: Sweep, points: list[Point]) -> str:
    states = [(p, read_state(p)) for p in points if not p.dropped]
    metric, top = sweep.file.metric.name, best(sweep, states)
    rows = []
    for p, s in states:
        rows.append({"point": p.number, "values": {".".join(k): v for k, v in p.values.items()},
                     "identity": p.identity, "folder": p.folder.as_posix(), "status": s.status,
                     metric: s.last.get(metric), "step": s.last.get("step"),
                     "steps": steps(p, s), "time_sec": s.last.get("time_sec"),
                     "time_left_sec": time_left(p, s) if s.status == "running" else None,
                     "error": last_error(p, s) if s.status in ("failed", "crashed")
                     else None})
    return json.dumps({"name": sweep.file.name, "metric": metric,
                       "counts": Counter(s.status for _, s in states),
                       "dropped": sum(bool(p.dropped) for p in points),
                       "best": top and {"point": top[0].number, metric: top[1]},
                       "points": rows}, indent=1)
