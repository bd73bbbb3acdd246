"""Figures to judge a fit by: residuals, resampled parameters, and what counting conventions do."""
from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.plots.base import BLACK, BLUE, GREY, PALE, RED, WIDTH, Picture, Scale, \
    canvas, caption, clustered, dots, interval, law_caption, log_axis, padded, plain, styled
from slm.errors import UserError

MOST_DRAWS = 1500
SYMBOLS = {"alpha": "α", "beta": "β", "gamma": "γ", "eta": "η"}


@styled
def residuals(law, ax=None) -> Figure:
    """What the law leaves over, in % of the loss, against N, D and C, and its distribution against
    a normal one. ax: four axes, if given.

    Dashed: +-1 %. Shaded: twice the standard deviation between seeds, where some runs differ in
    their seed alone: a law can't be better than that. Line: means of groups of equal size, where a
    wrong shape would show."""
    fig, axes = canvas(ax, 2, 2, height=6.2)
    r = 100 * law.fit.residuals()
    noise = seeds_noise(law.runs)
    sizes = Scale(law.runs["n_params"], "n_params") if "n_params" in law.runs else None
    colours = [sizes(v) for v in law.runs["n_params"]] if sizes else BLUE
    reach = 1.15 * max(np.abs(r).max(), 1.1)
    for ax_, column in zip(axes, ("n_params", "tokens", "flops")):
        bands(ax_, noise)
        if column not in law.runs:
            ax_.text(0.5, 0.5, f"no column {column}", transform=ax_.transAxes, ha="center")
            continue
        x = law.runs[column].to_numpy(float)
        dots(ax_, x, r, colours)
        draw_trend(ax_, x, r)
        log_axis(ax_, "x", column)
        ax_.set_ylim(-reach, reach)
    axes[0].set_ylabel("residual (%)")
    axes[2].set_ylabel("residual (%)")
    axes[0].set_title("Residuals: loss over the law's loss")
    quantiles(axes[3], r, law.runs["run"].to_numpy())
    said = "shaded: ±2 sd between seeds" if noise else "no runs that differ in their seed alone"
    caption(fig, f"mean |residual| {np.abs(r).mean():.2f} %", "dashed: ±1 %", said,
            "colour: N" if sizes else "", *law_caption(law), ax=None if ax is None else axes[2])
    return fig


def seeds_noise(runs: pd.DataFrame) -> float | None:
    """Standard deviation of log loss between seeds, in %; None where nothing shows it."""
    from analysis.comparison.noise import seed_noise
    try:
        noise = seed_noise(runs)
    except UserError:
        return None
    return 100 * noise.log_sd if noise.known else None


def bands(ax: Axes, noise: float | None) -> None:
    ax.axhline(0, color=BLACK, linewidth=0.8, zorder=1)
    for y in (-1, 1):
        ax.axhline(y, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    if noise:
        ax.axhspan(-2 * noise, 2 * noise, color=PALE, alpha=0.35, linewidth=0, zorder=0)


def draw_trend(ax: Axes, x: np.ndarray, r: np.ndarray, groups: int = 7) -> None:
    """Means over groups of neighbours, with standard errors."""
    if len(x) < 3 * groups:
        groups = max(2, len(x) // 3)
    distinct, which = np.unique(clustered(x), return_inverse=True)
    if len(distinct) > groups:
        which = np.argsort(np.argsort(x, kind="stable")) * groups // len(x)
    parts = [(np.exp(np.log(x[which == k]).mean()), r[which == k]) for k in np.unique(which)]
    ax.errorbar([p[0] for p in parts], [p[1].mean() for p in parts],
                [p[1].std(ddof=1) / np.sqrt(len(p[1])) if len(p[1]) > 1 else 0 for p in parts],
                color=RED, linewidth=1.4, elinewidth=1, zorder=4)


def quantiles(ax: Axes, r: np.ndarray, names: np.ndarray) -> None:
    """QQ plot against the normal of the same spread (by its quartiles); the furthest are named."""
    from scipy.stats import norm
    order = np.argsort(r)
    x = norm.ppf((np.arange(len(r)) + 0.5) / len(r))
    low, high = np.percentile(r, [25, 75])
    sd = (high - low) / 1.349
    dots(ax, x, r[order], BLUE)
    ax.plot(x, np.median(r) + sd * x, color=BLACK, linewidth=1)
    far = [k for k in range(len(r)) if abs(r[order[k]] - np.median(r)) > 4 * sd > 0]
    for k in sorted(far, key=lambda k: -abs(r[order[k]]))[:3]:
        left = x[k] > 0
        ax.annotate(plain(names[order[k]], 24), (x[k], r[order[k]]), (-6 if left else 6, 0),
                    textcoords="offset points", fontsize=8, ha="right" if left else "left",
                    va="center", color=GREY)
    ax.set(xlabel="normal quantile (sd)", ylabel="residual (%)")
    ax.set_title("Against a normal distribution")


@styled
def bootstrap_pairs(law, fig: Figure | None = None) -> Figure:
    """Every pair of the law's parameters over its resamples; scales by their log10. On the diagonal
    each one's histogram with the estimate (line) and its interval (shaded).

    fig: a figure (or subfigure) to draw into. Raises UserError with fewer than 10 resamples."""
    draws, names = law.resamples.params, list(law.fit.params)
    draws = {k: shown_as(law, k, draws[k]) for k in names}
    good = np.all([np.isfinite(v) for v in draws.values()], axis=0)
    if good.sum() < 10:
        raise UserError(f"bootstrap pairs need 10 resamples; the law has {int(good.sum())}")
    every = slice(None, None, max(1, int(good.sum()) // MOST_DRAWS))
    draws = {k: v[good] for k, v in draws.items()}
    p, own = len(names), fig is None
    fig = fig or Picture(figsize=(WIDTH, 0.9 + 1.42 * p), layout="constrained")
    axes = np.atleast_2d(fig.subplots(p, p, sharex="col", squeeze=False))
    limits = {k: reach(law, k, v) for k, v in draws.items()}
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            ax = axes[i, j]
            if j > i:
                ax.axis("off") if (i, j) == (0, min(2, p - 1)) else ax.remove()
                continue
            value = float(shown_as(law, column, law.fit.params[column]))
            ax.axvline(value, color=RED, linewidth=1)
            ax.xaxis.set_major_locator(MaxNLocator(3, prune="both"))
            ax.yaxis.set_major_locator(MaxNLocator(3, prune="both"))
            ax.tick_params(labelsize=8, labelleft=j == 0)
            ax.grid(False)
            if i == j:
                diagonal(ax, law, column, draws[column], limits[column])
            else:
                ax.scatter(draws[column][every], draws[row][every], s=3, color=BLUE, alpha=0.25,
                           linewidths=0, rasterized=True)
                ax.axhline(float(shown_as(law, row, law.fit.params[row])), color=RED, linewidth=1)
                ax.set_ylim(limits[row])
                ax.text(0.97, 0.95, f"r = {np.corrcoef(draws[column], draws[row])[0, 1]:.2f}",
                        transform=ax.transAxes, ha="right", va="top", fontsize=8, color=GREY,
                        bbox={"facecolor": "white", "alpha": 0.8, "pad": 0.5, "edgecolor": "none"})
            ax.set_xlim(limits[column])
            if i == p - 1:
                ax.set_xlabel(symbol(law, column))
            if j == 0 and i > 0:
                ax.set_ylabel(symbol(law, row))
    words = [f"{symbol(law, k)} = {float(shown_as(law, k, law.fit.params[k])):.3f} "
             + interval(*(float(shown_as(law, k, v)) for v in law.intervals[k])) for k in names]
    corner = axes[0, min(2, p - 1)]
    corner.text(0.0, 1.0, "\n".join(words), fontsize=9.5, va="top", linespacing=1.6,
                transform=corner.transAxes).set_in_layout(False)
    if own:
        fig.suptitle("Resampled parameters", x=0.008, ha="left", fontweight="bold", fontsize=10.5)
    caption(fig, f"{len(law.resamples.theta):,} resamples over runs, by {law.resamples.method}",
            f"red: the fit; shaded: {law.level:.0%} interval", *law_caption(law))
    return fig


def reach(law, name: str, draws: np.ndarray) -> np.ndarray:
    """(low, high) of a parameter's axis: nearly all draws, the estimate and its interval."""
    value, *ends = (float(shown_as(law, name, v))
                    for v in (law.fit.params[name], *law.intervals[name]))
    ends = [v for v in (value, *ends, *np.percentile(draws, [0.5, 99.5])) if np.isfinite(v)]
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low)                       # the estimate's line stands clear of the edge
    return np.array([min(low, value - room), max(high, value + room)])


def diagonal(ax: Axes, law, name: str, draws: np.ndarray, limits: np.ndarray) -> None:
    ax.hist(draws, bins=np.linspace(*limits, 30), color=BLUE, alpha=0.75, linewidth=0)
    low, high = (float(shown_as(law, name, v)) for v in law.intervals[name])
    ax.axvspan(max(low, limits[0]), min(high, limits[1]), color=PALE, alpha=0.35, linewidth=0,
               zorder=0)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_title(symbol(law, name), fontsize=10, loc="center")


def logged(law, name: str) -> bool:
    return name != "E" and name not in law.form.exponents


def shown_as(law, name: str, value):
    with np.errstate(all="ignore"):
        return np.log10(value) if logged(law, name) else np.asarray(value, float)


def symbol(law, name: str) -> str:
    return ("log10 " if logged(law, name) else "") + SYMBOLS.get(name, name)


@styled
def conventions(table: pd.DataFrame, ax=None) -> Figure:
    """Exponents of the same runs under every way of counting N and C: intervals in the order of a,
    a staircase where counting matters. table: by_convention(runs). ax: three axes, if given.

    The project's own convention is black. Dotted: a = 0.5, equal growth of N and D."""
    if table.empty:
        raise UserError("conventions: the table is empty")
    rows = table.sort_values("a", ascending=False, ignore_index=True)
    fig, axes = canvas(ax, 1, 3, height=1.6 + 0.34 * len(rows), sharey=True,
                       width_ratios=(2.1, 1, 1))
    y = np.arange(len(rows))
    titles, beyond = {"a": "a in N* ~ C^a", "alpha": "α, of N", "beta": "β, of D"}, False
    for ax_, name in zip(axes, titles):
        left, right = padded(finite_range(rows, name), 0.05, log=False)
        for k, r in rows.iterrows():
            own = r["convention"] == "matmul"
            colour = BLACK if own else BLUE
            ends = np.clip([r[f"{name}_low"], r[f"{name}_high"]], left, right)
            ax_.plot(ends, [k, k], color=colour, linewidth=3 if own else 2,
                     solid_capstyle="butt", alpha=1 if own else 0.75)
            ax_.plot(r[name], k, "o", color=colour, markersize=6, zorder=3,
                     markeredgecolor="white", gid=name)
            for end, out, mark in zip((left, right), (r[f"{name}_low"] < left,
                                                      r[f"{name}_high"] > right), "<>"):
                if out:                                          # goes on beyond the axis
                    ax_.plot(end, k, mark, color=colour, markersize=5, clip_on=False, gid="beyond")
                    beyond = True
        ax_.set_title(titles[name])
        ax_.grid(axis="y", visible=False)
        ax_.set_xlim(left, right)
        ticks = MaxNLocator(4 if name == "a" else 3).tick_values(left, right)
        ax_.set_xticks(ticks[(ticks >= left) & (ticks <= right)])
        ax_.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    axes[0].axvline(0.5, color=GREY, linestyle=":", linewidth=1.2, zorder=0)
    labels = [textwrap.fill(plain(f"{r.convention}: " + r.who.replace(
        "the same", "as " + r.convention.split("_")[0]), 80), 33) for r in rows.itertuples()]
    axes[0].set_yticks(y, labels)
    for text, r in zip(axes[0].get_yticklabels(), rows.itertuples()):
        text.set_fontsize(8.3)
        text.set_fontweight("bold" if r.convention == "matmul" else "normal")
    low, high = axes[0].get_xlim()
    axes[0].set_xlim(low, high + 0.62 * (high - low))            # the numbers stand there
    axes[0].spines["bottom"].set_bounds(low, high)
    for k, r in rows.iterrows():
        axes[0].text(min(r["a_high"], high) + 0.03 * (high - low), k, fontsize=8, va="center",
                     s=f"{r['a']:.2f} [{r['a_low']:.2f}, {r['a_high']:.2f}]", color=GREY)
    axes[0].invert_yaxis()
    n = rows.attrs.get("n_runs")
    said = "bars: intervals" + (", cut where there is an arrow" if beyond else "")
    caption(fig, f"n = {n} runs" if n else "", f"the same runs counted in {len(rows)} ways",
            "approach 3, L(N, D) fitted anew for each N", said, "dotted: a = 0.5",
            ax=None if ax is None else axes[0])
    return fig


def finite_range(rows: pd.DataFrame, name: str) -> tuple[float, float]:
    """Of the intervals' ends, unbounded ones and the wildest left out: those more than three times
    as far out as the median one."""
    value = rows[name].to_numpy(float)
    ends = rows[[f"{name}_low", f"{name}_high"]].to_numpy(float)
    widths = [w[np.isfinite(w)] for w in np.abs(ends - value[:, None]).T]
    room = max([4 * np.ptp(value), 0.2, *(3 * np.median(w) for w in widths if len(w))])
    ends = ends.ravel()
    ends = ends[np.isfinite(ends) & (ends > value.min() - room) & (ends < value.max() + room)]
    both = np.concatenate([value, ends])
    return float(both.min()), float(both.max())
