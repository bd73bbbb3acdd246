"""The records of a study: one table of its runs, a line each, made by its sweeps."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

from analysis.runs import load_runs
from analysis.studies import HERE, ROOT
from slm.errors import UserError
from slm.screen import say


def command(*words: str) -> None:
    """`python WORDS` in the repository. Raises UserError where it fails."""
    say("$ python " + " ".join(words))
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code:
        raise UserError(f"python {' '.join(words)}: ended with exit code {code}; the same command "
                        "again goes on from there")


def train(sweeps: list[str]) -> None:
    """Run the sweeps; what is done already is not done again. Raises UserError where one fails."""
    for sweep in sweeps:
        command("-m", "slm.sweep", "run", f"sweeps/{sweep}.yaml")


def gather(name: str, sweeps: list[str], columns: list[str], runs: Path = ROOT / "runs") -> None:
    """Write the finished and diverged runs of sweeps to <name>.csv: columns of the table of runs,
    with the sweep's name. Raises UserError where a sweep has no run."""
    parts = []
    for sweep in sweeps:
        table = load_runs(runs / sweep)
        parts.append(table[table["status"].isin(["finished", "diverged"])].assign(sweep=sweep))
    found = pd.concat(parts).sort_values(["sweep", "run"])
    found[["sweep", "run", "status", *columns]].to_csv(records(name), index=False,
                                                       float_format="%.10g", lineterminator="\n")


def records(name: str) -> Path:
    return HERE / f"{name}.csv"


def load(name: str) -> pd.DataFrame:
    """The table of a study's runs. Raises UserError where there is none."""
    if not records(name).is_file():
        raise UserError(f"{records(name)}: not there; python -m analysis.studies {name} --train "
                        "makes it")
    return pd.read_csv(records(name))
