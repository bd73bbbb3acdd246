"""Runs pulled back: local run folders and W&B projects as one tidy table.

    runs = load_runs("runs/")                     # or "wandb:entity/project", or several of them
    history = load_history(runs, ["val/loss"])    # a row for each run and step
    samples = load_samples(runs)                  # the texts written on the way

No run is dropped: what is half-written, crashed, diverged, preempted, skipped or of another program
is a row whose status and reason say so. The columns are those of analysis/runs/columns.py, the same
and of the same types from either source.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs import hosted, local
from analysis.runs.columns import (Found, history_table, make_names_unique, make_table, number,
                                   without_copies, word)
from analysis.runs.hosted import PREFIX
from slm.errors import UserError
from slm.files import private


def load_runs(*sources: str | Path, spec_keys: Sequence[str] = (),
              cache: str | Path | None = None) -> pd.DataFrame:
    """One row per run, index 0..n-1, the columns of analysis.runs.columns.COLUMNS.

    sources     folders of run folders (nested or not), single run folders, "wandb:entity/project"
    spec_keys   dotted keys of the spec to have as further columns, as in "data.fables.facts"
    cache       where load_history and load_samples keep what they read from W&B; default: slm/wandb
                in the user's cache folder

    A run that is in a folder and in W&B is taken from the folder. The loss of a run that has not
    finished is that of its last evaluation. .attrs: notes (lines on what was odd), sources, cache.
    Raises UserError: no such folder or project, no run in it, no key for W&B, no network."""
    if not sources:
        raise UserError("give a folder of runs, or wandb:entity/project")
    found: list[Found] = []
    notes: list[str] = []
    for source in sources:
        if not isinstance(source, (str, Path)):
            raise UserError(f"a source of runs is a folder or wandb:entity/project, not "
                            f"{type(source).__name__}")
        if str(source).startswith(PREFIX):
            found += hosted.find_runs(str(source))
        else:
            here, odd = local.find_runs(source)
            found, notes = found + here, notes + odd
    found = once_each(found)
    found, copies = without_copies(found)
    make_names_unique(found)
    table = make_table(found, spec_keys)
    table.attrs = {"notes": notes + copies, "sources": [private(str(s)) for s in sources]}
    if cache is not None:
        table.attrs["cache"] = str(cache)
    return table


def folder_of(where: str) -> Path:
    """The folder of a local run; `where` names the home folder as ~."""
    return Path(where).expanduser().resolve()


def once_each(found: list[Found]) -> list[Found]:
    """A folder or W&B run that two sources hold is one run."""
    return list({f.where if f.where.startswith(PREFIX) else str(folder_of(f.where)): f
                 for f in reversed(found)}.values())[::-1]


def load_history(runs: pd.DataFrame, keys: Sequence[str] | None = None,
                 cache: str | Path | None = None) -> pd.DataFrame:
    """Every recorded point of these runs: run, step, tokens, flops, time_sec and the metrics
    (train/loss, val/loss: nats/token; lr, grad_norm, ...), a row for each run and step.

    keys: metrics to have, rows with none of them are left out; default: all. .attrs["notes"] says
    where W&B lacks the end of a run. Raises UserError: a table that is not load_runs's, a metric
    that no run has, W&B's faults."""
    notes: list[str] = []
    of = read_all(runs, "history", cache, notes)
    rows = [{**row, "run": run} for run, where in zip(runs["run"], runs["where"])
            for row in of[where]]
    table = history_table(rows, keys)
    table.attrs["notes"] = sorted(notes)
    return table


def load_samples(runs: pd.DataFrame, cache: str | Path | None = None) -> pd.DataFrame:
    """The texts that these runs wrote while they were trained: run, step, tokens, prompt, text.
    Raises UserError."""
    of = read_all(runs, "samples", cache)
    rows = [(run, row["step"], number(row.get("tokens")), word(row.get("prompt")),
             word(row.get("text"))) for run, where in zip(runs["run"], runs["where"])
            for row in of[where]]
    columns = {"run": object, "step": "int64", "tokens": float, "prompt": object, "text": object}
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def load_spec_of(row: pd.Series | dict[str, Any], cache: str | Path | None = None) -> dict:
    """The resolved spec of one row of the table of runs, as nested dicts. Raises UserError where
    it can't be read."""
    row = pd.DataFrame([dict(row)])
    where = str(row["where"][0])
    spec = read_all(row, "spec", cache)[where][0]
    if not spec:
        raise UserError(f"{where}: its spec can't be read (spec.yaml missing or damaged)")
    return spec


def read_all(runs: pd.DataFrame, what: str, cache: str | Path | None,
             notes: list[str] | None = None) -> dict[str, list[dict]]:
    """where -> rows of each run's history, samples or spec."""
    needed = [c for c in ("run", "where", "status", "steps") if c not in runs]
    if needed:
        raise UserError(f"this table has no column {', '.join(needed)}: only a table of load_runs "
                        "says where the records of a run lie")
    read = {"history": local.read_history, "samples": local.read_samples,
            "spec": lambda folder: [local.read_spec(folder)]}[what]
    remote = runs["where"].astype(str).str.startswith(PREFIX).to_numpy(bool)
    found = {where: read(folder_of(where)) for where in runs["where"][~remote]}
    if remote.any():
        found |= hosted.read_runs(runs[remote], what, cache or runs.attrs.get("cache"), notes)
    return found
