"""Does the best learning rate of a narrow model hold for a wide one, under sp and under mup?"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis import plots
from analysis.studies import HERE, records

SWEEPS = ["transfer"]
COLUMNS = ["parametrization", "n_embd", "lr", "seed", "loss", "loss_se", "tokens", "n_params",
           "flops", "time_sec", "n_layer", "preset", "batch_tokens"]
BASE = 128                # experiments/transfer.yaml: model.base_width
PAGE = HERE.parent / "study-transfer.md"
TEMPLATE = HERE / "transfer.template.md"


def train() -> None:
    records.train(SWEEPS)
    records.gather("transfer", SWEEPS, COLUMNS)


def load() -> pd.DataFrame:
    return records.load("transfer")


def best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The best learning rate of each width under each parametrization.

    runs: a table with parametrization, n_embd, lr, seed and loss (NaN: diverged, worst of all).
    Returns a row per (parametrization, n_embd): lr (best mean loss over seeds), loss (that mean),
    by_seed (each seed's own best rate), edge (the rate is the least or largest tried), narrow_cost
    (share of the loss that is lost with the rate that is best for the narrowest model)."""
    rows = []
    for kind, family in runs.groupby("parametrization", sort=False):
        narrow = None
        for width, part in family.groupby("n_embd"):
            best, means, edge = records.best_rate(part)
            narrow = narrow if narrow is not None else best
            finite = part.dropna(subset=["loss"])
            own = finite.loc[finite.groupby("seed")["loss"].idxmin(), "lr"]
            rows.append(dict(parametrization=kind, n_embd=width, lr=best, loss=means[best],
                             by_seed=sorted(own), edge=edge,
                             narrow_cost=means[narrow] / means[best] - 1))
    return pd.DataFrame(rows)


def steps_moved(best: pd.DataFrame, kind: str) -> float:
    """Factors of two between the smallest and the largest best rate over the widths."""
    rates = best.loc[best["parametrization"] == kind, "lr"]
    return float(np.log2(rates.max() / rates.min()))


def write() -> list[Path]:
    """Draw the figure and write the page; the paths. Raises UserError without records."""
    return records.publish(PAGE, text(), {HERE / "transfer.png": plots.lr_curves(load())})


def text() -> str:
    """The page, from the records."""
    return TEMPLATE.read_text(encoding="utf-8").format(**facts(load()))


def facts(runs: pd.DataFrame) -> dict:
    """The fields of the template."""
    best = best_rates(runs)
    widest = {kind: part.sort_values("n_embd").iloc[-1]
              for kind, part in best.groupby("parametrization")}
    rates = sorted(runs["lr"].unique())
    return {
        "n_runs": len(runs), "n_seeds": runs["seed"].nunique(),
        "widths": ", ".join(f"{w:g}" for w in sorted(runs["n_embd"].unique())),
        "rates": f"{rates[0]:g} to {rates[-1]:g} in {len(rates)} steps of a factor of two",
        "tokens": f"{runs['tokens'].max():,.0f}", "same": same_at_base(runs),
        "minutes": f"{runs['time_sec'].sum() / 60:.0f}",
        "table": "\n".join(row(r) for r in best.itertuples()),
        "sp_steps": f"{steps_moved(best, 'sp'):g}", "mup_steps": f"{steps_moved(best, 'mup'):g}",
        "sp_cost": f"{widest['sp'].narrow_cost:.0%}",
        "mup_cost": f"{widest['mup'].narrow_cost:.1%}",
        "sp_wide": f"{widest['sp'].loss:.3f}", "mup_wide": f"{widest['mup'].loss:.3f}"}


def same_at_base(runs: pd.DataFrame) -> str:
    """In words, how many pairs of runs at the base width have equal losses under sp and mup."""
    pairs = runs[runs["n_embd"] == BASE].pivot_table(index=["lr", "seed"], values="loss",
                                                     columns="parametrization")
    return f"{(pairs['sp'] == pairs['mup']).sum()} of {len(pairs)} pairs have equal losses"


def row(r) -> str:
    """A line of the page's table."""
    own = ", ".join(f"{x:g}" for x in r.by_seed)
    edge = " (edge)" if r.edge else ""
    return (f"| {r.parametrization} | {r.n_embd:g} | {r.lr:g}{edge} | {own} | {r.loss:.3f} | "
            f"{r.narrow_cost:+.1%} |")
