"""Figures of what a law says: IsoFLOP profiles, the compute-optimal frontier, contours."""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.scaling import isoflop as profiles
from analysis.plots.base import BLACK, BLUE, GREEN, GREY, LABELS, ORANGE, ORDERED, PALE, \
    PASTEL, RED, Scale, canvas, caption, dots, flops_text, interval, law_caption, log_axis, \
    loss_axis, padded, plain, styled, whisker
from analysis.plots.runs import law_value
from slm.errors import UserError
from slm.screen import amount

APPROACH = {"1": (ORANGE, "o"), "2": (BLUE, "D"), "2i": (GREEN, "^"), "3": (BLACK, "*")}


def grouped(law) -> list[profiles.Budget]:
    n, c = (np.log(law.runs[k].to_numpy(float)) for k in ("n_params", "flops"))
    return profiles.budgets(n, c)


@styled
def isoflop(frontier, x: str = "n_params", ax: Axes | None = None) -> Figure:
    """Loss against size (or tokens) at each budget, with parabolas and their minima.

    frontier: of analysis.scaling.optimal; its table `isoflop` gives the minima. Minima inside the
    sizes tried are filled diamonds; one on the edge, where the true one may lie further out, is
    hollow, drawn at the edge with an arrow. Triangles: minima by interpolation. Raises UserError
    where the runs hold no three budgets."""
    law, table = frontier.law, frontier.isoflop
    if x not in ("n_params", "tokens"):
        raise UserError(f"isoflop: x={x!r} is not one of n_params, tokens")
    if table.empty:
        raise UserError("no IsoFLOP profiles: " + next(
            (n for n in frontier.notes if n.startswith("approach 2")), "too few budgets"))
    fig, (ax_,) = canvas(ax, height=4.8)
    groups = grouped(law)
    scale = Scale([g.flops for g in groups], "flops")
    edges = 0
    for g in groups:
        part, colour = law.runs.iloc[g.rows], scale(g.flops)
        dots(ax_, part[x], part["loss"], colour, marker="o")
        profile = Profile(g, law.fit.log_loss, np.log(part["tokens"].to_numpy(float)))
        n = np.linspace(*np.log(padded(np.exp(g.log_n))), 80)
        ax_.plot(np.exp(profile.along(x, n)), np.exp(profile.parabola(n)), color=colour,
                 linewidth=1.3, zorder=2)
        here = table[np.isclose(table["flops"], g.flops)]
        for r in here.itertuples():
            edges += bool(r.on_edge) and r.approach == "2"
            draw_minimum(ax_, profile, r, x, colour)
    ax_.set_ylim(*padded(law.runs["loss"].iloc[np.concatenate([g.rows for g in groups])], 0.08))
    log_axis(ax_, "x", x)
    loss_axis(ax_)
    scale.key(ax_, more=[
        Line2D([], [], color=GREY, label="parabola"),
        Line2D([], [], color=GREY, marker="D", linestyle="", markersize=7,
               markeredgecolor="black", label="its minimum"),
        Line2D([], [], color="white", marker="^", linestyle="", markersize=5,
               markeredgecolor="black", label="interpolated")] + ([
                   Line2D([], [], color="white", marker="D", linestyle="", markersize=7,
                          markeredgecolor=RED, label="on the edge")] if edges else []))
    ax_.set_title(f"IsoFLOP profiles: loss against {LABELS[x]} at equal compute")
    caption(fig, f"{len(groups)} budgets" + (f", {edges} with the minimum on the edge of the sizes "
            "tried (left out of approach 2)" if edges else ""), *law_caption(law)[:3], ax=ax)
    return fig


class Profile:
    """One budget's parabola and interpolant in log N, of log loss."""

    def __init__(self, group: profiles.Budget, log_loss: np.ndarray, log_d: np.ndarray) -> None:
        from scipy.interpolate import Akima1DInterpolator
        self.group, x, y = group, group.log_n, log_loss[group.rows]
        self.centre = x.mean()
        self.coefficients = np.polyfit(x - self.centre, y, 2)
        sizes, which = np.unique(x, return_inverse=True)
        self.akima = Akima1DInterpolator(sizes, profiles.mean_by(which, y[None])[0])
        self.tokens = np.polyfit(x, log_d, 1)

    def parabola(self, log_n):
        return np.polyval(self.coefficients, log_n - self.centre)

    def along(self, x: str, log_n):
        """Log of the abscissa at log N."""
        return log_n if x == "n_params" else np.polyval(self.tokens, log_n)


def draw_minimum(ax: Axes, profile: Profile, row, x: str, colour) -> None:
    """The minimum of one approach at one budget. row: of Frontier.isoflop."""
    log_n, g = np.log(row.n_params), profile.group
    if row.approach == "2i":
        if not row.on_edge:
            ax.plot(getattr(row, x), np.exp(profile.akima(log_n)), "^", color="white",
                    markeredgecolor="black", markersize=5, zorder=7, gid="interpolated")
        return
    if not row.on_edge:
        ax.plot(getattr(row, x), np.exp(profile.parabola(log_n)), "D", color=colour,
                markeredgecolor="black", markersize=7.5, zorder=6, gid="minimum")
        return
    ends = np.array([g.log_n[0], g.log_n[-1]])
    end = ends[int(np.argmin(profile.parabola(ends)))]
    at = np.exp(profile.along(x, end)), np.exp(profile.parabola(end))
    ax.plot(*at, "D", color="white", markeredgecolor=RED, markersize=7.5, mew=1.4, zorder=6,
            gid="edge")
    out = (1 if end == ends[1] else -1) * (1 if x == "n_params" else -1)
    ax.annotate("", at, (out * 26, 0), textcoords="offset points",
                arrowprops={"arrowstyle": "<-", "color": RED, "lw": 1.3}, annotation_clip=False)


@styled
def optimum(frontier, at: float | None = None, ax=None) -> Figure:
    """N*(C) and D*(C) of every approach with bands, and the optimum extrapolated to `at` FLOPs (a
    star; default: ten times the largest budget). ax: two axes, if given.

    Points: the minima and crossings that the lines go through. Lines are dashed beyond the runs."""
    law, end = frontier.law, float(np.exp(frontier.log_c[-1]))
    at = float(at or 10 * end)
    if not (np.isfinite(at) and at > 0):
        raise UserError(f"optimum: at={at:g} should be a positive number of FLOPs")
    fig, axes = canvas(ax, 1, 2, height=4.1 + 0.33 * len(frontier.approaches))
    low = float(np.exp(frontier.log_c[0]))
    c = np.geomspace(min(low, at), max(end, at), 40)
    table = frontier.table_at(at).set_index("approach")
    points = minima(frontier)
    for ax_, column, power in zip(axes, ("n_params", "tokens"), "ab"):
        dots(ax_, law.runs["flops"], law.runs[column], PALE, s=10, zorder=1)
        for name, way in frontier.approaches.items():
            colour, marker = APPROACH[name]
            line = frontier.optimum(c, name)
            ax_.fill_between(c, line[f"{column}_low"], line[f"{column}_high"], color=colour,
                             alpha=0.13, linewidth=0)
            r = table.loc[name]
            ends = r[f"{power}_low"], r[f"{power}_high"]
            label = f"{plain(way.label)}\n{power} = {r[power]:.3f}" + (
                ", interval not determined" if np.isinf(ends).all() else f" {interval(*ends)}")
            for part, dash in ((c <= end, "-"), (c >= end, (0, (4, 2)))):
                ax_.plot(c[part], line[column][part], color=colour, linestyle=dash, linewidth=1.5,
                         label=label if dash == "-" else None)
            here = points[points["approach"] == name]
            for hollow, rows in here.groupby("on_edge"):
                ax_.plot(rows["flops"], rows[column], marker, color="white" if hollow else colour,
                         markeredgecolor=colour, markersize=6, linestyle="", zorder=4,
                         gid=f"minima {name}")
        star(ax_, table.loc["3"], column, at, highest=table[column].max())
        log_axis(ax_, "x", "flops")
        log_axis(ax_, "y", column, f"optimal {LABELS[column][:-2]} {LABELS[column][-1]}*")
        low_y, high_y = ax_.get_ylim()
        ax_.set_ylim(low_y, high_y * (high_y / low_y) ** 0.16)       # room for the star's numbers
        # above the axes, which runs and lines fill
        ax_.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=7.8, handlelength=1.4,
                   labelspacing=0.6, borderpad=0.2, borderaxespad=0.2)
    pad = 8 + 24 * len(frontier.approaches)
    axes[0].set_title("Compute-optimal size: N* ~ C^a", pad=pad)
    axes[1].set_title("and tokens: D* ~ C^b", pad=pad)
    caption(fig, f"bands {law.level:.0%}, of the line alone", f"star: approach 3 at C = "
            f"{flops_text(at)}", *law_caption(law), ax=None if ax is None else axes[0])
    return fig


def star(ax: Axes, row: pd.Series, column: str, at: float, highest: float) -> None:
    """The extrapolated optimum with its interval and, above all lines there, its numbers."""
    low, value, high = (row[f"{column}{end}"] for end in ("_low", "", "_high"))
    if np.isfinite([low, high]).all():
        whisker(ax, at, low, high, RED)
    ax.plot(at, value, "*", color=RED, markersize=14, markeredgecolor="white",
            markeredgewidth=0.6, zorder=6)
    letter = {"n_params": "N", "tokens": "D"}[column]
    top = max(highest, high if np.isfinite(high) else value)
    ax.annotate(f"{letter}* = {amount(value)}\n{interval(low, high, amount)}", (at, top),
                (6, 9), textcoords="offset points", ha="right", va="bottom", fontsize=8.5,
                color=RED)


def minima(frontier) -> pd.DataFrame:
    """What the lines of approaches 1, 2 and 2i were drawn through: approach flops n_params tokens
    on_edge."""
    tables = [frontier.isoflop] if len(frontier.isoflop) else []
    law = frontier.law
    if "1" in frontier.approaches:
        logs = [np.log(law.runs[k].to_numpy(float)) for k in ("n_params", "flops", "tokens")]
        found = profiles.envelope(*logs, law.fit.log_loss[None])
        cross = found.is_one[0]
        tables.append(pd.DataFrame({
            "approach": "1", "flops": np.exp(found.log_c[0, cross]), "on_edge": False,
            "n_params": np.exp(found.log_n[0, cross]), "tokens": np.exp(found.log_d[0, cross])}))
    columns = ["approach", "flops", "n_params", "tokens", "on_edge"]
    return pd.concat([t[columns] for t in tables]) if tables else pd.DataFrame(columns=columns)


@styled
def contours(law, frontier=None, ax: Axes | None = None) -> Figure:
    """L(N, D) as contours with the runs on it (same colours), lines of equal compute, and the
    efficient frontier. law: of N and D; frontier: analysis.scaling.optimal.Frontier, if any."""
    if not {"n_params", "tokens"} <= set(law.form.needs):
        raise UserError(f"contours need a law of N and D, not {law.form.name!r}")
    from matplotlib.colors import LogNorm

    from analysis.scaling.optimal import CostCurve
    runs = law.runs
    n_range, d_range = (padded(runs[k], 0.12) for k in ("n_params", "tokens"))
    n, d = np.meshgrid(np.geomspace(*n_range, 60), np.geomspace(*d_range, 60))
    has_cost = "flops" in runs
    cost = CostCurve.through(*[runs[k].to_numpy(float) for k in ("n_params", "tokens", "flops")]) \
        if has_cost else None
    c = (np.exp(cost(np.log(n))[0]) if has_cost else 6 * n) * d
    loss = law_value(law, n.ravel(), d.ravel(), c.ravel()).reshape(n.shape)
    fig, (ax_,) = canvas(ax, height=5.0)
    floor = law.params.get("E", 0.0)
    floor = floor if 0 < floor < loss.min() else 0.0
    levels = floor + np.geomspace(loss.min() - floor, loss.max() - floor, 14)[1:-1]
    norm = LogNorm(min(loss.min(), runs["loss"].min()), max(loss.max(), runs["loss"].max()))
    ax_.pcolormesh(n, d, loss, norm=norm, cmap=PASTEL, shading="gouraud", rasterized=True)
    lines = ax_.contour(n, d, loss, levels=levels, norm=norm, cmap=ORDERED, linewidths=1.1)
    equal = ax_.contour(n, d, np.log10(c), levels=ticks_between(np.log10(c)), colors=GREY,
                        linewidths=0.8, linestyles="dashed")
    points = ax_.scatter(runs["n_params"], runs["tokens"], c=runs["loss"], norm=norm, cmap=ORDERED,
                         s=38 if len(runs) < 100 else 24, edgecolors="black", linewidths=0.6,
                         zorder=4)
    handles = [Line2D([], [], color=GREY, linestyle="--", linewidth=0.8, label="equal compute")]
    if frontier is not None:
        path = frontier.optimum(np.geomspace(c.min(), c.max(), 60))
        ax_.plot(path["n_params"], path["tokens"], color=RED, linewidth=2, zorder=3)
        handles.append(Line2D([], [], color=RED, linewidth=2, label="efficient frontier N*, D*"))
    ax_.set(xlim=n_range, ylim=d_range)
    log_axis(ax_, "x", "n_params")
    log_axis(ax_, "y", "tokens")
    ax_.clabel(lines, fontsize=8, fmt=lambda v: f"{v:.3g}", colors="black")
    ax_.clabel(equal, fontsize=7.5, fmt=lambda v: flops_text(10 ** v), colors=GREY)
    bar = fig.colorbar(points, ax=ax_, pad=0.015, aspect=30)
    loss_axis(bar.ax)
    bar.ax.set_ylabel("loss of the run (nats per token)")
    ax_.grid(False)
    ax_.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0.2,
               borderaxespad=0.2)             # between the axes and the title: runs fill the axes
    ax_.set_title(f"Contours of {plain(law.form.equation, 90)}", pad=24)
    caption(fig, "points: runs", *law_caption(law), ax=ax)
    return fig


def ticks_between(values: np.ndarray, most: int = 6) -> np.ndarray:
    """Whole decades inside the range of log10 values, or halves where those are few."""
    low, high = values.min(), values.max()
    for step in (0.5, 1, 2, 3, 5):
        inside = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        if len(inside) <= most:
            return inside
    return inside
