"""The figure of runs that a law has not seen: predicted and reached."""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots.base import BLACK, BLUE, GREEN, PALE, RED, canvas, caption, dots, flops_text, \
    law_caption, log_axis, loss_axis, styled, whisker
from analysis.plots.runs import law_value
from analysis.table import usable
from slm.errors import UserError
from slm.screen import amount

MOST_LINES = 10         # held-out runs that get a line each
BAR = 0.42              # height of an interval, in lines


@styled
def extrapolation(law, held_out_runs: pd.DataFrame, ax=None) -> Figure:
    """Runs that the law has not seen, against what it predicted: left on the plane of compute and
    loss, right as errors in % with their prediction intervals. ax: two axes, if given.

    held_out_runs: a table of runs; those that did not finish are left out. Raises UserError where
    none is left, or one of them was fitted."""
    kept, notes = usable(held_out_runs, tuple(dict.fromkeys((*law.form.needs, "flops"))))
    if "flops" not in law.runs:
        raise UserError("extrapolation: the runs of the law have no column flops")
    seen = set(law.runs["run"]) & set(kept["run"])
    if seen:
        raise UserError(f"extrapolation: run {sorted(map(str, seen))[0]} was fitted; leave it out "
                        "of the fit to see how well it is predicted")
    kept = kept.sort_values("flops").reset_index(drop=True)
    floor = kept["floor"].to_numpy(float) if law.floor is not None and np.ptp(law.floor) else None
    p = law.predict(**{k: kept[k].to_numpy(float) for k in law.form.needs}, floor=floor)
    truth = kept["loss"].to_numpy(float)
    inside = (p.low <= truth) & (truth <= p.high)
    many = len(kept)
    fig, (left, right) = canvas(ax, 1, 2, height=4.4, width_ratios=(1.25, 1))
    dots(left, law.runs["flops"], law.runs["loss"], PALE, s=18)
    handles = [Line2D([], [], color=PALE, marker="o", linestyle="", label="fitted runs"),
               Line2D([], [], color=BLUE, marker="_", linestyle="", markersize=10, mew=2,
                      label=f"predicted, {p.level:.0%} interval")]
    if law.form.name == "chinchilla" or law.form.needs == ("flops",):
        c = np.geomspace(law.runs["flops"].min(), kept["flops"].max(), 40)
        left.plot(c, best_loss(law, c), color=BLACK, linewidth=1.1)
        handles.append(Line2D([], [], color=BLACK, label="best loss at each compute, L*(C)"))
    for x_, y_, low, value, high, ok in zip(kept["flops"], truth, p.low, p.value, p.high, inside):
        whisker(left, x_, low, high, BLUE, cap=14)              # wider than what may lie on it
        left.plot(x_, value, "_", color=BLUE, mew=2.4, markersize=14, zorder=4)
        left.plot(x_, y_, "*" if ok else "X", color=GREEN if ok else RED, markersize=9 if ok else
                  8, markeredgecolor="white", markeredgewidth=0.6, zorder=5, gid="held out")
    handles += [Line2D([], [], color=c_, marker=m, linestyle="", markersize=9, label=f"held out, "
                       f"{word}") for c_, m, word, there in ((GREEN, "*", "inside", inside.any()),
                                                             (RED, "X", "outside", (~inside).any()))
                if there]
    log_axis(left, "x", "flops")
    left.set_yscale("log")
    low, high = left.get_ylim()
    left.set_ylim(low, high * (high / low) ** 0.4)                # room for the legend
    loss_axis(left)
    left.legend(handles=handles, loc="upper right", fontsize=8.3)
    left.set_title("Predicted and reached")
    draw_errors(right, kept, p, truth, inside)
    error = np.abs(truth / p.value - 1)
    reach = kept["flops"].max() / law.runs["flops"].max()
    caption(fig, f"{inside.sum()} of {many} held-out runs inside the {p.level:.0%} prediction "
            f"interval; mean |error| {error.mean():.2%}", f"up to {reach:.2g}x the largest fitted "
            "compute", *law_caption(law), chosen_held_out(notes),
            ax=None if ax is None else left)
    return fig


def chosen_held_out(notes: list[str]) -> str:
    return "held out: " + "; ".join(notes) if notes else ""


def best_loss(law, c: np.ndarray) -> np.ndarray:
    """The law's loss at compute c (m,), at the best size for it where it knows sizes."""
    if law.form.needs == ("flops",):
        return law_value(law, c, c, c)
    from analysis.scaling.optimal import compute_optimal
    best = compute_optimal(law, draws=2).optimum(c)
    return law_value(law, best["n_params"].to_numpy(), best["tokens"].to_numpy(), c)


def draw_errors(ax: Axes, runs: pd.DataFrame, p, truth: np.ndarray, inside: np.ndarray) -> None:
    """Errors in % of the prediction, with its interval: a line for each held-out run, or over
    compute where there are many."""
    y = np.arange(len(runs))[::-1]
    low, high, error = (100 * (v / p.value - 1) for v in (p.low, p.high, truth))
    reach = 1.35 * max(np.abs(np.concatenate([low, high, error])).max(), 0.1)
    if len(runs) > MOST_LINES:
        x = runs["flops"].to_numpy(float)
        ax.vlines(x, low, high, color=BLUE, alpha=0.4, linewidth=2)
        ax.axhline(0, color=BLUE, linewidth=1.4)
        for ok, marker, colour in ((inside, "*", GREEN), (~inside, "X", RED)):
            ax.plot(x[ok], error[ok], marker, color=colour, markersize=10, linestyle="",
                    markeredgecolor="white", markeredgewidth=0.6, zorder=4)
        ax.set(ylim=(-reach, reach), ylabel="reached over predicted loss (%)")
        log_axis(ax, "x", "flops")
        ax.set_title("Error of each")
        return
    ax.barh(y, high - low, left=low, height=BAR, color=BLUE, alpha=0.25, linewidth=0)
    ax.axvline(0, color=BLUE, linewidth=1.4)
    for k, e in enumerate(error):
        ax.plot(e, y[k], "*" if inside[k] else "X", color=GREEN if inside[k] else RED, zorder=4,
                markersize=12 if inside[k] else 9, markeredgecolor="white", markeredgewidth=0.6)
        ax.annotate(f"{e:+.2f} %", (e, y[k] + BAR / 2), (0, 3), textcoords="offset points",
                    ha="center", fontsize=8.5)
    names = [f"{amount(r.n_params)} · {flops_text(r.flops)}" if "n_params" in runs else
             flops_text(r.flops) for r in runs.itertuples()]
    ax.set_yticks(y, names)
    ax.set_ylim(-0.7, len(runs) - 0.2)
    ax.set(xlim=(-reach, reach), xlabel="reached over predicted loss (%)")
    ax.grid(axis="y", visible=False)
    ax.set_title("Error of each (N · C)")
