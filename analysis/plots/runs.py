"""Figures of runs as they are: loss curves, and final loss against size, tokens, compute, time."""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots.base import BLACK, FEW, GREY, LABELS, PALE, RED, Scale, canvas, caption, \
    chosen, clustered, convention, count, dots, log_axis, loss_axis, objective, \
    padded, styled
from analysis.table import usable
from slm.errors import UserError
from slm.screen import several

LOST = ("diverged", "crashed", "failed", "preempted")
MOST_POINTS = 500       # of a drawn curve
CURVES = 60             # points of a law's curve


@styled
def loss_curves(history: pd.DataFrame, runs: pd.DataFrame, x: str = "tokens",
                ax: Axes | None = None) -> Figure:
    """Training loss, smoothed, and validation points of every run, coloured by size.

    history: load_history(runs), a row per logged step; runs of any status are drawn, and those that
    did not finish end in a cross. x: tokens, flops or time_sec. The raw loss is drawn behind where
    there are three runs or fewer. Raises UserError without a loss to draw."""
    needs = [c for c in ("run", x) if c not in history]
    if needs or not {"train/loss", "val/loss"} & set(history):
        raise UserError(f"loss curves need the columns run, {x} and train/loss or val/loss; there "
                        f"are {', '.join(map(str, history.columns))}")
    rows = runs.drop_duplicates("run").set_index("run")
    drawn = history[history["run"].isin(rows.index) & (history[x] > 0)]
    losses = [c for c in ("train/loss", "val/loss") if c in drawn]
    drawn = drawn[(drawn[losses] > 0).any(axis=1)]
    if drawn.empty:
        raise UserError("no run has a loss curve")
    names = list(dict.fromkeys(drawn["run"]))
    fig, (ax_,) = canvas(ax, height=4.6)
    sizes = rows.loc[names, "n_params"].dropna() if "n_params" in rows else pd.Series(dtype=float)
    scale = Scale(sizes, "n_params") if len(sizes) else None
    ends = []
    for name, part in drawn.groupby("run", sort=False):
        size = rows["n_params"].get(name, np.nan) if scale else np.nan
        colour = scale(size) if np.isfinite(size) else GREY
        one_curve(ax_, part.sort_values(x), x, colour, raw=len(names) <= 3)
        status = rows["status"].get(name) if "status" in rows else "finished"
        if status in LOST:
            ends.append(part.sort_values(x)[[x, *losses]].ffill().iloc[-1])
    top = curves_top(drawn, rows, losses)
    ax_.set_ylim(drawn[losses].min().min() / 1.06, top)
    for last in ends:
        ax_.plot(last[x], min(last[losses].min(), top), "x", color=RED, markersize=8, mew=2,
                 zorder=5, clip_on=False)
    log_axis(ax_, "x", x)
    draw_floor(ax_, runs)
    loss_axis(ax_, "curve")
    handles = [Line2D([], [], color=BLACK, label="training, smoothed")] \
        if "train/loss" in losses else []
    if "val/loss" in losses:
        handles.append(Line2D([], [], color=BLACK, marker="o", markersize=4, linestyle="",
                              label="validation"))
    if ends:
        handles.append(Line2D([], [], color=RED, marker="x", linestyle="", mew=2,
                              label="not finished"))
    if scale:
        scale.key(ax_, "", handles)
    ax_.set_title(f"Loss curves over {LABELS[x]}")
    caption(fig, f"n = {several(len(names), 'run')}" + (
        f", {len(ends)} of them not finished" if ends else ""), chosen(runs), ax=ax)
    return fig


def one_curve(ax: Axes, part: pd.DataFrame, x: str, colour, raw: bool) -> None:
    """One run: its smoothed training loss as a line, validation as points."""
    from analysis.comparison import smooth
    for column in ("train/loss", "val/loss"):
        if column not in part:
            continue
        points = part[part[column] > 0]
        if points.empty:
            continue
        at, y = points[x].to_numpy(float), points[column].to_numpy(float)
        if column == "val/loss":
            ax.plot(at, y, "o", color=colour, markersize=3.6, zorder=4, markeredgecolor="white",
                    markeredgewidth=0.4)
            continue
        if raw:
            ax.plot(at, y, color=colour, alpha=0.3, linewidth=0.8)
        line = smooth(y, np.log(at)) if len(y) > 8 else y
        few = np.unique(np.geomspace(1, len(at), min(MOST_POINTS, len(at))).astype(int) - 1)
        ax.plot(at[few], line[few], color=colour, linewidth=1.3, alpha=0.9)


def curves_top(history: pd.DataFrame, rows: pd.DataFrame, losses: list[str]) -> float:
    """Upper end of the loss axis: the highest of runs that did not diverge, which would squash
    all others."""
    sound = rows.index[rows["status"] != "diverged"] if "status" in rows else rows.index
    part = history[history["run"].isin(sound)]
    return 1.08 * float((part if len(part) else history)[losses].max().max())


def draw_floor(ax: Axes, runs: pd.DataFrame) -> None:
    """The entropy of the text, where it is known and the same for all; where it lies so far below
    that it would squash the data, in words."""
    floors = runs["floor"].dropna().astype(float).unique() if "floor" in runs else []
    if len(floors) == 0 or np.ptp(floors) > 1e-3 * floors.max():
        return
    low, high = ax.get_ylim()
    if floors[0] < low / 1.7:
        ax.text(0.01, 0.015, f"↓ floor {floors[0]:.3f}: the entropy of the text", fontsize=8.5,
                transform=ax.transAxes, color=GREY)
        return
    ax.set_ylim(min(low, floors[0] / 1.03), high)
    ax.axhline(floors[0], color=BLACK, linestyle=(0, (5, 3)), linewidth=1.1, zorder=1)
    ax.annotate(f"floor {floors[0]:.3f}: the entropy of the text", (0.01, floors[0]), (0, 3),
                xycoords=ax.get_yaxis_transform(), textcoords="offset points", fontsize=8.5)


@styled
def loss_vs(runs: pd.DataFrame, x: str = "n_params", law=None, y: str = "loss",
            ax: Axes | None = None) -> Figure:
    """Final validation loss of every run against size, tokens, compute or time.

    x: n_params, tokens, flops or time_sec; y: loss or bits_per_byte (which alone compares
    tokenizers). Colour: size; against size, the budget (tokens or FLOPs, whichever has fewer
    values). law: its curve for each colour, or for five where there are many; without one, lines
    join the means of seeds. Against FLOPs the best runs at each compute are marked: the front.
    Raises UserError as `usable` does, and where the column has no values."""
    if x not in ("n_params", "tokens", "flops", "time_sec"):
        raise UserError(f"loss_vs: x={x!r} is not one of n_params, tokens, flops, time_sec")
    kept, notes = usable(runs, (x, y), allow_mixed=y == "bits_per_byte")
    by = colour_column(kept, x)
    values = clustered(kept[by]) if by else np.ones(len(kept))
    scale = Scale(values, by) if by else None
    fig, (ax_,) = canvas(ax)
    for v in np.unique(values):
        part, colour = kept[values == v], scale(v) if by else BLACK
        dots(ax_, part[x], part[y], colour)
        if not law and len(np.unique(values)) <= FEW:
            means = part.groupby(clustered(part[x], 0.02))[y].mean()
            ax_.plot(means.index, means, color=colour, linewidth=1, alpha=0.6)
    handles = draw_law(ax_, law, kept, x, by, scale) if law is not None and y == "loss" else []
    law_drawn = bool(handles)
    if x == "flops":
        front = kept.loc[kept.groupby(clustered(kept[x]))[y].idxmin()].sort_values(x)
        front = front[front[y] <= front[y].cummin()]
        ax_.scatter(front[x], front[y], s=70, facecolors="none", edgecolors=RED, linewidths=1.2,
                    zorder=4)
        handles.append(Line2D([], [], color=RED, marker="o", markersize=8, linestyle="",
                              markerfacecolor="none", label="best so far"))
    ax_.set(xlim=padded(kept[x]), ylim=padded(kept[y]))
    log_axis(ax_, "x", x)
    if y == "loss":
        draw_floor(ax_, kept)
    loss_axis(ax_, y)
    if scale:
        scale.key(ax_, more=handles)
    ax_.set_title(f"{LABELS[y].split(' (')[0].capitalize()} against {LABELS[x]}")
    fitted = f"law of {law.runs['run'].nunique()} runs, {objective(law)}" if law_drawn else ""
    caption(fig, "each point a run (seeds apart)", count(kept), chosen(runs, notes),
            convention(kept), fitted, ax=ax)
    return fig


def colour_column(runs: pd.DataFrame, x: str) -> str | None:
    """What colours stand for: size, or against size the budget with fewer values."""
    choices = ("tokens", "flops") if x == "n_params" else ("n_params",)
    known = {c: len(np.unique(clustered(runs[c]))) for c in choices
             if c in runs and (runs[c] > 0).all()}
    return min(known, key=known.get) if known else None


def draw_law(ax: Axes, law, runs: pd.DataFrame, x: str, by: str | None,
             scale: Scale | None) -> list[Line2D]:
    """The law's curves on the plot; legend handles. law: analysis.scaling.Law."""
    at = np.geomspace(*padded(runs[x], 0.04), CURVES)
    handle = [Line2D([], [], color=GREY, linewidth=1.2, label="the law")]
    if law.form.needs == (x,):
        p = law.predict(**{x: at})
        ax.plot(at, p.value, color=BLACK, linewidth=1.4)
        ax.fill_between(at, p.low, p.high, color=PALE, alpha=0.3, linewidth=0)
        return handle
    if x == "time_sec" or by is None or not {"n_params", "tokens"} <= set(law.form.needs):
        return []
    from analysis.scaling.optimal import CostCurve
    sizes, tokens = (runs[c].to_numpy(float) for c in ("n_params", "tokens"))
    cost = CostCurve.through(sizes, tokens, runs["flops"].to_numpy(float) if "flops" in runs
                             else 6 * sizes * tokens)
    lines = scale.values if scale.few else np.geomspace(*scale.values[[0, -1]], 5)
    for v in lines:
        n = at if x == "n_params" else np.full(CURVES, v)
        per_token = np.exp(cost(np.log(n))[0])
        if "tokens" in (x, by):
            d = at if x == "tokens" else np.full(CURVES, v)
        else:
            d = (at if x == "flops" else v) / per_token
        value = law_value(law, n, d, per_token * d)
        ax.plot(at, value, color=scale(v), linewidth=1.2, alpha=0.8, zorder=2)
    return handle


def law_value(law, n: np.ndarray, d: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Loss of the law at sizes, tokens and compute (m,) without repeated data; with floors that
    differ between runs, above their mean."""
    from analysis.scaling.forms import make_design
    columns = {"n_params": n, "tokens": d, "flops": c, "unique_tokens": np.full(len(n), 1e30)}
    floor = None if law.floor is None else np.full(len(n), law.floor.mean())
    design = make_design(law.form, {k: columns[k] for k in law.form.needs}, floor,
                         law.fit.design.centre)
    return design.value(law.fit.theta[None])[0][0]
