"""The records of the study, from nothing: a sweep, then what each of its models pays for facts."""
from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.runs import load_runs
from analysis.studies import ROOT
from analysis.studies.records import command, copy_records
from analysis.studies.zipf import CELLS, RUNS, SWEEP
from slm.screen import say

FOLDER = ROOT / "runs" / "zipf"
LINES = 10              # of metrics.jsonl that the repository keeps of a run


def train() -> None:
    """Train and measure what is missing (a second call goes on where the first stopped), and put
    the records beside this file. Raises UserError where a step fails."""
    command("-m", "slm.sweep", "run", SWEEP)
    copy_records(FOLDER, RUNS, LINES)
    measure_all(FOLDER, CELLS)


def measure_all(folder: Path, table: Path) -> None:
    """Measure the finished runs of a folder that the table does not have yet. The rows of runs that
    are no longer there are dropped."""
    from analysis.studies.zipf.measure import measure
    runs = load_runs(folder)
    runs = runs[runs["status"] == "finished"]
    known = pd.read_csv(table) if table.exists() else pd.DataFrame({"run": []})
    known = known[known["run"].isin(runs["run"])]
    missing = runs[~runs["run"].isin(known["run"])]
    for _, trunk in missing.groupby("val_sha256", sort=False):
        say(f"facts of {', '.join(trunk['run'])}")
        rows = measure([folder / name for name in trunk["run"]])
        known = pd.concat([known, rows], ignore_index=True)
        known.to_csv(table, index=False, float_format="%.4g")
