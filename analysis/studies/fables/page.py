"""analysis/study-fables.md and its figures, from the records beside this file."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import samples
from analysis.comparison.noise import seed_noise
from analysis.plots.base import clustered
from analysis.predict import outcomes, read_predictions
from analysis.runs import load_history, load_runs, load_spec_of
from analysis.scaling import Law, fit_law
from analysis.scaling.optimal import Frontier, compute_optimal
from analysis.studies.fables import HELD_OUT, HERE, PREDICTIONS, RUNS, WIDE
from analysis.studies.records import publish

SHORT = 900                             # steps


@dataclass
class Study:
    """ladder: finished runs that the laws see; held_out: the run predicted; laws by name."""
    ladder: pd.DataFrame
    held_out: pd.DataFrame
    free: Law                           # of all runs of the ladder
    known_all: Law                      # the same, its floor given
    late: Law                           # without the smallest budget
    known: Law                          # the same, its floor given
    long: Law                           # without the smallest budget and the shortest runs
    frontier: Frontier
    forecast: pd.DataFrame

    @property
    def floor(self) -> float:
        return float(self.ladder["floor"].iloc[0])


def load() -> Study:
    runs = load_runs(RUNS)
    is_held_out = runs["run"].str.startswith(HELD_OUT)
    ladder = runs[~is_held_out].reset_index(drop=True)
    held_out = runs[is_held_out].reset_index(drop=True)
    late_runs = ladder[ladder["flops"] > WIDE].reset_index(drop=True)
    late = fit_law(late_runs)
    forecast = outcomes(read_predictions(PREDICTIONS), runs)
    return Study(ladder, held_out, fit_law(ladder), fit_law(ladder, floor="floor"), late,
                 fit_law(late_runs, floor="floor"),
                 fit_law(late_runs[late_runs["steps"] >= SHORT].reset_index(drop=True)),
                 compute_optimal(late), forecast)


def draw(study: Study) -> dict[Path, Figure]:
    """The figures, by the file beside the records where each goes."""
    from analysis import plots
    history = load_history(study.ladder)
    figures = {"isoflop": plots.isoflop(study.frontier),
               "loss": plots.loss_vs(study.ladder, "flops", study.late),
               "curves": plots.loss_curves(history, study.ladder),
               "residuals": plots.residuals(study.free),
               "optimum": plots.optimum(study.frontier),
               "extrapolation": plots.extrapolation(study.late, study.held_out)}
    return {HERE / f"{name}.png": figure for name, figure in figures.items()}


def write() -> list[Path]:
    """Draw the figures and write study-fables.md; the paths. Raises UserError without records."""
    study = load()
    text = (HERE / "template.md").read_text(encoding="utf-8").format(**facts(study))
    return publish(HERE.parent.parent / "study-fables.md", text, draw(study))


def facts(study: Study) -> dict:
    """The fields of template.md."""
    runs, held = study.ladder, study.held_out.iloc[0]
    val = json.loads((RUNS / held["run"] / "summary.json").read_text())["data"]["val"]
    noise = seed_noise(runs)
    # a seed that is taken for a setting is held fixed: what is left is the other's noise
    weights, order = (seed_noise(runs.rename(columns={seed: f"fixed.{seed}"})).log_sd
                      for seed in ("data_seed", "seed"))
    return {
        "n_runs": len(runs) + len(study.held_out), "floor": study.floor, "n_ladder": len(runs),
        "widths": ", ".join(f"{w:g}" for w in sorted(runs["n_embd"].unique())),
        "n_budgets": len(np.unique(clustered(runs["flops"]))),
        "c_low": f"{runs['flops'].min():.1g}", "c_high": f"{runs['flops'].max():.1g}",
        "n_low": f"{runs['n_params'].min():,.0f}",
        "n_high": f"{runs['n_params'].max():,.0f}", "d_low": f"{runs['tokens'].min():,.0f}",
        "d_high": f"{runs['tokens'].max():,.0f}", "time": time_told(study),
        "noise": str(noise)[0].upper() + str(noise)[1:] + ".",
        "weights_sd": weights, "order_sd": order, "twice": 2 * 2 ** 0.5 * noise.log_sd,
        "fits": "\n".join(fit_row(name, law) for name, law in (
            ("all runs", study.free), ("all runs, floor known", study.known_all),
            ("without the smallest budget", study.late),
            ("without it, floor known", study.known),
            (f"without it and runs of under {SHORT} steps", study.long))),
        "verdict_all": verdict(study.free, study.floor, "The fit to all runs"),
        "verdict_late": verdict(study.late, study.floor, "Without the smallest budget, the fit"),
        "verdict_long": verdict(study.long, study.floor, "Without those, the fit"),
        "no_facts": no_facts(held, val), "held_above": held["loss"] - study.floor,
        "best_above": runs["loss"].min() - study.floor,
        "held_tokens": f"{held['tokens']:,.0f}", "held_flops": f"{held['flops']:.1g}",
        "reach": held["flops"] / runs["flops"].max(),
        "forecasts": "\n".join(forecast_row(row) for _, row in study.forecast.iterrows()),
        "verdict_forecast": foretold(study), "frontier": spending(study),
        "n_stories": f"{val['documents']:,}"}


def time_told(study: Study) -> str:
    hardware = study.ladder["hardware"].iloc[0].split(" (")[0]
    ladder, held = (r["time_sec"].sum() / 60 for r in (study.ladder, study.held_out))
    return (f"The ladder took {ladder:.0f} core-minutes, two runs at a time on two cores of an "
            f"{hardware} that had other work to do as well; the held-out run {held:.0f} minutes.")


def fit_row(name: str, law: Law) -> str:
    def cell(key: str) -> str:
        value = law.params[key]
        if key not in law.intervals:
            return f"{value:.4f} (given)"
        low, high = law.intervals[key]
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    missed = law.misfit
    words = f"{missed[0]:.1%}, seeds {missed[1]:.1%}" if missed else "no more than seeds do"
    return (f"| {name} | {law.runs['run'].nunique()} | {cell('E')} | {cell('alpha')} | "
            f"{cell('beta')} | {words} |")


def verdict(law: Law, floor: float, what: str) -> str:
    low, high = law.intervals["E"]
    where = "holds" if low <= floor <= high else "does not hold"
    missed = law.misfit
    found = law.params["E"]
    text = (f"{what} finds E = {found:.3f}, {found - floor:+.3f} from the floor; its 95 % interval "
            f"[{low:.3f}, {high:.3f}] {where} it.")
    if missed:
        text += (f" But the library warns: the form misses these runs by {missed[0]:.1%}, while "
                 f"seeds move them by {missed[1]:.1%}.")
    return text


def forecast_row(row: pd.Series) -> str:
    inside = "yes" if row["inside"] else "no"
    given = "E given" if row["floor"] is not None and np.isfinite(row["floor"]) else "E fitted"
    return (f"| {row['n_runs']:.0f} runs, {given} | {row['value']:.4f} | [{row['low']:.4f}, "
            f"{row['high']:.4f}] | {row['loss']:.4f} | {row['error']:+.1%} | {inside} |")


def foretold(study: Study) -> str:
    rows, floor = study.forecast, study.floor
    first = rows[rows["counts"]].iloc[0]
    given = rows[rows["floor"].notna()].iloc[0]
    where, there = ("inside" if r["inside"] else "outside" for r in (first, given))
    half = (first["high"] - first["low"]) / 2 / first["value"]
    above = (first["loss"] - floor) / (first["value"] - floor) - 1
    return (f"The run reached **{first['loss']:.4f}**, {first['error']:+.1%} from the prediction "
            f"that counts, {where} its interval of ±{half:.0%}. Percentages of a loss flatter a "
            f"law, for most of a loss is floor: of the part above the floor, which is what a law "
            f"has to foretell, the error is {above:+.0%}. With the floor given the interval is "
            f"narrower, and the run lies {there} it.")


def no_facts(run: pd.Series, val: dict) -> float:
    """Nats per token that a reader who knows the grammar and no fact pays above the floor. val: of
    the run's validation text, its documents and tokens."""
    world = samples.world(load_spec_of(run))
    return sum(world.fact_nats()) / (val["tokens"] / val["documents"])


def spending(study: Study) -> str:
    table = study.frontier.table
    rows = [f"| {r.label} | {exponent(r.a, r.a_low, r.a_high)} | "
            f"{exponent(r.b, r.b_low, r.b_high)} | {r.points} |" for r in table.itertuples()]
    head = ["| approach | a (N* ~ C^a) | b (D* ~ C^b) | points |", "|---|---|---|---|"]
    return "\n".join(head + rows) + f"\n\nOf the runs above the smallest budget. " \
        f"{study.frontier.disagreement()}."


def exponent(value: float, low: float, high: float) -> str:
    if not np.isfinite(low + high):
        return f"{value:.2f}, interval not determined"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
