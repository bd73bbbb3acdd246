"""Run folders on this machine, read whatever state they are in."""
from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from analysis.runs.columns import UNREADABLE, Found, identity_in
from slm.errors import UserError
from slm.files import is_locked, private, read_rows
from slm.record import RESULTS, STATUSES, newest

MARKS = ("summary.json", "spec.yaml")          # a folder with one of them is a run's
NOT_RUNS = ("checkpoints", "logs", "wandb", "__pycache__")
DEPTH = 5                                      # levels of folders that are looked into
GROUP = re.compile(r"^track:\n(?:[ -].*\n)*?  group: (.*(?:\n    .*)*)", re.M)
STOPPED = "stopped_by_sweep"                   # a file that early termination leaves in the folder


def find_runs(source: str | Path) -> tuple[list[Found], list[str]]:
    """The runs of a folder: itself, or all below it; and notes on what lies among them and is
    none. Raises UserError where there is no such folder or no run in it."""
    top = Path(os.path.expanduser(source))
    if top.is_file():
        raise UserError(f"{source}: is a file; runs come from a folder of run folders or from "
                        "wandb:entity/project (load_table reads .csv and .parquet)")
    if not top.is_dir():
        raise UserError(f"{source}: no such folder; give a folder of run folders, or "
                        "wandb:entity/project")
    folders, others = walk(top)
    if not folders:
        raise UserError(f"{source}: no run in it (a run folder holds spec.yaml and summary.json)")
    found = [read_folder(folder) for folder in folders]
    if not others:
        return found, []
    names = ", ".join(p.name for p in others[:5]) + (", ..." if len(others) > 5 else "")
    how_many = f"{len(others)} folders" if len(others) > 1 else "1 folder"
    return found, [f"{private(str(source))}: {how_many} among the runs without a run: {names}"]


def walk(folder: Path, depth: int = DEPTH) -> tuple[list[Path], list[Path]]:
    """Run folders at or below a folder, sorted, and those beside them that hold no run."""
    if any((folder / mark).exists() for mark in MARKS):
        return [folder], []
    try:
        inside = sorted(e.name for e in os.scandir(folder) if e.is_dir()
                        and not e.name.startswith(".") and e.name not in NOT_RUNS)
    except OSError:
        return [], [folder]
    runs: list[Path] = []
    others: list[Path] = []
    without: list[Path] = []
    beside = False                             # whether a run lies directly in this folder
    for child in (folder / name for name in inside if depth):
        found, odd = walk(child, depth - 1)
        runs, others = runs + found, others + odd
        without += [] if found else [child]
        beside |= found == [child]
    return runs, others + (without if beside else [])


def read_folder(folder: Path) -> Found:
    """One run folder. Never raises: what is wrong becomes status and reason."""
    state, wrong = read_summary(folder)
    status, reason = state.get("status"), state.get("reason") or ""
    if wrong:
        status, reason = UNREADABLE, wrong
    elif not state:
        status, reason = "running", ""
    elif status not in STATUSES:
        status, reason = UNREADABLE, f"summary.json is not of slm (its status: {status!r})"
    if status == "running" and not is_locked(folder):
        status = "crashed"
        reason = "" if state else "it ended before it wrote summary.json"
    if status == "preempted" and (folder / STOPPED).exists():
        reason = "stopped by its sweep's early_terminate"
    results = {k: v for k, v in state.items() if not isinstance(v, dict)}
    if "steps_done" not in state:              # no results yet: the newest metrics stand in
        metrics = folder / "metrics.jsonl"
        last = newest(metrics)
        if "val/loss" not in last:             # not near the end: look at all of the file
            last = newest(metrics, tail_bytes=2**40)
        results |= {name: last[key] for key, name in RESULTS.items() if key in last}
    head = read_text(folder / "spec.yaml")
    named = re.match(r"# identity (\w+)", head)
    group = GROUP.search(head)
    return Found(
        run=folder.resolve().name, where=private(str(folder)), status=status, reason=str(reason),
        facts={k: v for k, v in state.items() if isinstance(v, dict)}, results=results,
        spec=lambda: read_spec(folder),
        identity=state.get("identity") or (named.group(1) if named else identity_in(folder.name)),
        group=scalar(group.group(1)) if group else None,
        wandb_id=read_text(folder / "wandb_id").strip() or None)


def read_summary(folder: Path) -> tuple[dict[str, Any], str]:
    """(summary.json, '') or ({}, what is wrong with it); ({}, '') where there is none."""
    try:
        state = json.loads((folder / "summary.json").read_bytes())
    except FileNotFoundError:
        return {}, ""
    except OSError as e:
        return {}, f"summary.json can't be read ({e.strerror})"
    except ValueError:
        return {}, "summary.json is half-written, or no JSON"
    return (state, "") if isinstance(state, dict) and state else ({}, "summary.json is not of slm")


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def scalar(text: str) -> str:
    try:
        return str(yaml.safe_load(text))
    except yaml.YAMLError:
        return text.strip()


def read_spec(folder: Path) -> dict[str, Any]:
    """The resolved spec of a run folder; {} where it can't be read."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)     # ten times faster where it is there
    try:
        spec = yaml.load(read_text(folder / "spec.yaml"), Loader=loader)
    except yaml.YAMLError:
        return {}
    return spec if isinstance(spec, dict) else {}


def read_history(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, one row a step: of several lines of a step each adds its keys."""
    merged: dict[int, dict] = {}
    for row in rows_in(folder / "metrics.jsonl"):
        merged.setdefault(row["step"], {}).update(row)
    return list(merged.values())


def read_samples(folder: Path) -> list[dict[str, Any]]:
    return rows_in(folder / "samples.jsonl")


def rows_in(path: Path) -> list[dict[str, Any]]:
    try:
        return [row for row in read_rows(path) if isinstance(row.get("step"), int)]
    except OSError:
        return []
