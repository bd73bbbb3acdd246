"""The records of a study: copies of its runs without weights, or one table with a line for each."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.base import to_png
from analysis.runs import load_runs
from analysis.studies import HERE, ROOT
from slm.errors import UserError
from slm.screen import say

DPI = 110
LINES = 100             # of metrics.jsonl that the repository keeps of a run


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
    with the sweep's name; a run that diverged has no loss. Raises UserError where a sweep has no
    run."""
    parts = []
    for sweep in sweeps:
        table = load_runs(runs / sweep)
        table = table[table["status"].isin(["finished", "diverged"])].assign(sweep=sweep)
        table["loss"] = table["loss"].where(table["status"] == "finished")
        parts.append(table)
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


def best_rate(runs: pd.DataFrame) -> tuple[float, pd.Series, bool]:
    """The learning rate with the best mean loss over seeds, that mean of every rate (NaN where a
    run has no loss: a rate that diverges once is out), and whether the best is the least or the
    largest tried. runs: those of one setting, with lr and loss."""
    means = runs.groupby("lr")["loss"].agg(lambda x: x.mean(skipna=False))
    best = means.idxmin()
    return best, means, best in (means.index.min(), means.index.max())


def publish(page: Path, text: str, figures: dict[Path, Figure]) -> list[Path]:
    """Write a study's page and its figures (PNG); their paths."""
    for path, figure in figures.items():
        path.write_bytes(to_png(figure, dpi=DPI))
    page.write_text(text, encoding="utf-8")
    return [page, *figures]


def copy_records(source: Path, target: Path, lines: int = LINES) -> None:
    """Copy the records (no weights) of the finished runs of a folder to another, a folder each,
    metrics thinned to about `lines` lines a run."""
    for summary in sorted(source.glob("*/summary.json")):
        if json.loads(summary.read_text())["status"] != "finished":
            continue
        kept = target / summary.parent.name
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("spec.yaml", "summary.json", "samples.jsonl"):
            shutil.copy(summary.parent / name, kept / name)
        metrics = (summary.parent / "metrics.jsonl").read_text().splitlines()
        (kept / "metrics.jsonl").write_text("\n".join(thinned(metrics, lines)) + "\n")


def thinned(lines: list[str], wanted: int = LINES) -> list[str]:
    """At most about `wanted` lines: every evaluation, and every k-th of the others."""
    step = -(-len(lines) // wanted)
    return [line for i, line in enumerate(lines) if i % step == 0 or '"val/loss"' in line]
