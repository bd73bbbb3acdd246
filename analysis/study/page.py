"""analysis/study-fables.md and its figures, from the records beside this file."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.noise import seed_noise
from analysis.optimal import Frontier, compute_optimal
from analysis.predict import outcomes, read_predictions
from analysis.runs import load_history, load_runs
from analysis.scaling import Law, fit_law

HERE = Path(__file__).resolve().parent
HELD_OUT = "study-heldout"              # how the held-out run's name begins
DPI = 110
WIDE = 4e11                             # budgets above it: the runs that are past their first fall


@dataclass
class Study:
    """ladder: finished runs that the laws see; held_out: the run predicted; laws by name."""
    ladder: pd.DataFrame
    held_out: pd.DataFrame
    free: Law
    known: Law
    late: Law                           # free floor, without the smallest budget
    frontier: Frontier
    forecast: pd.DataFrame

    @property
    def floor(self) -> float:
        return float(self.ladder["floor"].iloc[0])


def load() -> Study:
    runs = load_runs(HERE / "runs")
    is_held_out = runs["run"].str.startswith(HELD_OUT)
    ladder = runs[~is_held_out].reset_index(drop=True)
    held_out = runs[is_held_out].reset_index(drop=True)
    free = fit_law(ladder)
    known = fit_law(ladder, floor="floor")
    late = fit_law(ladder[ladder["flops"] > WIDE].reset_index(drop=True))
    forecast = outcomes(read_predictions(HERE / "predictions.jsonl"), runs)
    return Study(ladder, held_out, free, known, late, compute_optimal(free), forecast)


def draw(study: Study) -> list[Path]:
    """The figures, as PNG files beside the records."""
    from analysis import plots
    history = load_history(study.ladder)
    figures = {"isoflop": plots.isoflop(study.frontier),
               "loss": plots.loss_vs(study.ladder, "flops", study.free),
               "curves": plots.loss_curves(history, study.ladder),
               "residuals": plots.residuals(study.free),
               "optimum": plots.optimum(study.frontier),
               "extrapolation": plots.extrapolation(study.known, study.held_out)}
    for name, figure in figures.items():
        (HERE / f"{name}.png").write_bytes(plots.to_png(figure, dpi=DPI))
    return [HERE / f"{name}.png" for name in figures]
