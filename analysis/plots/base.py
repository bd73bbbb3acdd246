"""What all figures share: size, colours, axes that people can read, and the line under each.

Sizes are for a page 800 px wide (8 inches); colours are Okabe and Ito's, told apart by colour-blind
readers, and viridis for what has an order. No pyplot: no display, no global list of figures.
"""
from __future__ import annotations

import functools
import io
import re
import textwrap
from collections.abc import Iterable
from contextlib import AbstractContextManager

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, \
    NullFormatter, NullLocator

from slm.screen import amount, several

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
GREY, PALE = "#666666", "#b5b5b5"
# without viridis' yellow end, which white paper swallows
ORDERED = LinearSegmentedColormap.from_list(
    "ordered", matplotlib.colormaps["viridis"](np.linspace(0, 0.87, 64)))
PASTEL = LinearSegmentedColormap.from_list(       # behind points: no seams, as alpha would make
    "pastel", [0.27 * np.asarray(ORDERED(v)) + 0.73 for v in np.linspace(0, 1, 64)])
FEW = 9                # values that get a colour and a line of the legend each; more: a colour bar
WIDTH = 8.0            # inches
LABELS = {"n_params": "parameters N", "tokens": "training tokens D", "flops": "training FLOPs C",
          "time_sec": "training time", "loss": "validation loss (nats per token)",
          "curve": "loss (nats per token)",
          "bits_per_byte": "validation loss (bits per byte)", "lr": "learning rate",
          "n_embd": "width", "n_layer": "layers", "n_head": "heads"}
STYLE = {"font.size": 10, "font.family": "DejaVu Sans", "axes.titlesize": 10.5,
         "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 10,
         "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False,
         "legend.title_fontsize": 9, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6, "axes.axisbelow": True,
         "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
         "text.color": "black", "axes.labelcolor": "black", "lines.linewidth": 1.5,
         "svg.fonttype": "path", "svg.hashsalt": "slm", "path.simplify": True}


class Picture(Figure):
    """A Figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return to_png(self, dpi=110)


def style() -> AbstractContextManager:
    """The look of every figure, as a context: `with plots.style(): ...`."""
    return matplotlib.rc_context(STYLE)


def styled(draw):
    """Draw in that look, whatever the caller's settings are."""
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with style():
            return draw(*args, **kwargs)
    return drawn


def canvas(ax, rows: int = 1, cols: int = 1, height: float = 4.4,
           **options) -> tuple[Figure, list[Axes]]:
    """A new figure with rows x cols axes, or the figure of the axes given."""
    if ax is None:
        fig = Picture(figsize=(WIDTH, height), layout="constrained")
        return fig, list(np.ravel(fig.subplots(rows, cols, **options)))
    axes = list(np.ravel(ax))
    if len(axes) != rows * cols:
        raise ValueError(f"ax: this figure draws into {rows * cols} axes, {len(axes)} were given")
    return axes[0].figure, axes


def plain(text: object, longest: int = 60, keep: str = "") -> str:
    """A name as Matplotlib may print it: one line, no formulas, nothing that is not printable."""
    line = "".join(c if c.isprintable() or c in keep else " " for c in str(text))
    line = line if len(line) <= longest else line[:longest - 1] + "…"
    return line.replace("\\", "/").replace("$", r"\$")


# -- the line under a figure -----------------------------------------------------------------------

def caption(fig: Figure, *parts: str, ax: Axes | None = None) -> str:
    """Write the parts that are not empty under the figure, small and grey (under `ax` where that
    was the caller's). Returns the text."""
    text = " · ".join(p for p in parts if p)
    # a line breaks after a dot, never before one
    lines = "\n".join(textwrap.wrap(plain(text.replace(" · ", "\xa0· "), 2000, keep="\xa0"),
                                    126 if ax is None else 90))
    look = {"fontsize": 8.3, "color": GREY, "ha": "left", "gid": "caption"}
    if ax is None:
        fig.caption_artist = fig.supxlabel(lines, x=0.008, **look)
    else:
        fig.caption_artist = ax.annotate(lines, (0, 0), (0, -44), xycoords="axes fraction",
                                         textcoords="offset points", va="top",
                                         annotation_clip=False, **look)
    fig.caption_text = text
    return text


def without_caption(fig: Figure) -> str:
    """Take the line under a figure off it and return it: a page sets it as text."""
    if not hasattr(fig, "caption_text"):
        return ""
    fig.caption_artist.set_text("")
    return fig.caption_text


def count(runs: pd.DataFrame) -> str:
    """How many runs, rows and seeds a table holds, in words."""
    n_run = runs["run"].nunique()
    rows = "" if n_run == len(runs) else f", {len(runs):,} rows"
    n_seed = len(runs[[c for c in ("seed", "data_seed") if c in runs]].drop_duplicates())
    seeds = f", {n_seed} seeds" if n_seed > 1 else ""
    return f"n = {several(n_run, 'run')}{rows}{seeds}"


def chosen(runs: pd.DataFrame, notes: Iterable[str] = ()) -> str:
    """The filter: what was asked for, and what was left out and why."""
    where = runs.attrs.get("filter")
    parts = [f"where {where}"] if where else []
    left_out = [m for n in notes if (m := re.fullmatch(r"(\d+) of (\d+) rows left out: (.*)", n))]
    if left_out:
        n_out = sum(int(m[1]) for m in left_out)
        why = ", ".join(f"{m[1]} {m[3]}" for m in left_out)
        parts.append(f"{n_out} of {left_out[0][2]} rows left out: {why}")
    return " · ".join(parts + [n for n in notes if "comparable" in n])


def convention(runs: pd.DataFrame) -> str:
    """How N and C were counted, as far as the table says."""
    notes = " ".join(runs.attrs.get("notes", []))
    if "C = 6 N D" in notes or "C / (6 N)" in notes:
        return "C = 6 N D"
    return "N: blocks + head, C: exact matmul FLOPs" if "params_total" in runs else \
        "N, C as in the table"


def objective(law) -> str:
    """What a law minimised. law: analysis.scaling.Law."""
    huber = f"Huber δ = {law.fit.delta:g}" if np.isfinite(law.fit.delta) else "least squares"
    return f"{law.form.name}: {huber} on log loss, sum {law.objective:.3g}"


def law_caption(law) -> list[str]:
    """Parts of the caption that every figure of a law has."""
    return [count(law.runs), chosen(law.runs, law.notes), convention(law.runs), objective(law)]


# -- axes ------------------------------------------------------------------------------------------

class Decades(Locator):
    """Ticks of a log axis: decades, and between them as many as give `least` or more."""

    def __init__(self, least: int = 3) -> None:
        self.least = least

    def __call__(self):
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin, vmax):
        low, high = sorted((max(vmin, 1e-300), max(vmax, 1e-300)))
        powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), np.arange(1, 10, 0.5)):
            ticks = np.sort(np.outer(10.0 ** powers, steps).ravel())
            ticks = ticks[(ticks >= low * 0.999) & (ticks <= high * 1.001)]
            if len(ticks) >= self.least:
                return ticks[::-(-len(ticks) // 9)]
        return MaxNLocator(4).tick_values(low, high)


def flops_text(c: float) -> str:
    """1e15, 3.2e17"""
    mantissa, power = f"{c:.1e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"


def time_text(sec: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if sec >= size:
            return f"{sec / size:.3g} {unit}"
    return f"{sec:.3g} s"


def interval(low: float, high: float, how=".3f") -> str:
    """[low, high], each as a format or a function says; without end: an infinity sign."""
    ends = [("-" if v < 0 else "") + "∞" if np.isinf(v) else how(v) if callable(how) else
            format(v, how) for v in (low, high)]
    return f"[{ends[0]}, {ends[1]}]"


TEXTS = {"n_params": amount, "tokens": amount, "flops": flops_text, "time_sec": time_text}
TIMES = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800] + [
    3600 * h for h in (1, 2, 5, 12, 24, 48, 120, 240, 720)]


def text_of(column: str):
    """How a value of that column is written."""
    return TEXTS.get(column, lambda v: f"{v:.3g}")


def log_axis(ax: Axes, which: str, column: str, label: str | None = None) -> None:
    """A log axis ("x" or "y") of a column of the table, labelled as people say it: 10M, 1e15."""
    axis = getattr(ax, f"{which}axis")
    getattr(ax, f"set_{which}scale")("log")
    low, high = axis.get_view_interval()
    times: list[float] = []
    for t in TIMES if column == "time_sec" else ():
        if low <= t <= high and (not times or t / times[-1] > (high / low) ** 0.12):
            times.append(t)
    axis.set_major_locator(FixedLocator(times) if len(times) > 2 else Decades())
    axis.set_major_formatter(FuncFormatter(lambda v, _: text_of(column)(v)))
    axis.set_minor_locator(LogLocator(subs=range(2, 10)) if high / max(low, 1e-300) < 1e7
                           else NullLocator())
    axis.set_minor_formatter(NullFormatter())
    getattr(ax, f"set_{which}label")(LABELS.get(column, column) if label is None else label)


def loss_text(y: float) -> str:
    text = f"{y:.4g}"
    return text if "." in text else f"{y:.1f}"


def loss_axis(ax: Axes, column: str = "loss", log: bool = True) -> None:
    """The y axis as a loss, log (where straight lines are power laws) or linear."""
    if log:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        ax.yaxis.set_major_locator(MaxNLocator(6) if high < 2.5 * low else Decades(5))
        ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: loss_text(y)))
    ax.set_ylabel(LABELS[column])


def padded(values, share: float = 0.06, log: bool = True) -> tuple[float, float]:
    """Limits a little beyond the values."""
    v = np.asarray(values, float)
    v = np.log(v[np.isfinite(v) & (v > 0)]) if log else v[np.isfinite(v)]
    room = share * (np.ptp(v) or 1.0)
    low, high = v.min() - room, v.max() + room
    return (float(np.exp(low)), float(np.exp(high))) if log else (float(low), float(high))


# -- colours of something that has an order --------------------------------------------------------

def clustered(values, tolerance: float = 0.1) -> np.ndarray:
    """Each value replaced by the geometric mean of those within `tolerance` of it (a chain breaks
    where neighbours differ by more): runs miss a budget by a batch or two."""
    v = np.asarray(values, float)
    order = np.argsort(v, kind="stable")
    part = np.concatenate([[0], np.cumsum(np.diff(np.log(v[order])) > np.log1p(tolerance))])
    means = np.exp(np.bincount(part, np.log(v[order])) / np.bincount(part))
    out = np.empty_like(v)
    out[order] = means[part]
    return out


class Scale:
    """Colours of a column's values: a colour each with a legend where there are few, else a bar."""

    def __init__(self, values, column: str) -> None:
        self.values, self.column = np.unique(np.asarray(values, float)), column
        self.few = len(self.values) <= FEW
        self.norm = LogNorm(*(self.values[[0, -1]] * (1, 1 + 1e-9)))

    def __call__(self, value: float):
        if self.few:
            last = max(len(self.values) - 1, 1)
            return ORDERED(int(np.abs(self.values - value).argmin()) / last)
        return ORDERED(self.norm(value))

    def key(self, ax: Axes, marker: str = "o", more: Iterable = ()) -> None:
        """Say what the colours are, right of the axes; `more`: further legend handles."""
        more = list(more)
        if self.few:
            more = [Line2D([], [], color=self(v), marker=marker, markersize=6, label=text_of(
                self.column)(v), linewidth=1.5 if marker else 3) for v in self.values[::-1]] + more
        else:
            bar = ax.figure.colorbar(ScalarMappable(self.norm, ORDERED), ax=ax, pad=0.015,
                                     aspect=30)
            log_axis(bar.ax, "y", self.column)
            bar.outline.set_visible(False)
        if more:
            ax.legend(handles=more, title=LABELS.get(self.column, self.column) if self.few else
                      None, loc="upper left" if self.few else "best",
                      bbox_to_anchor=(1.0, 1.0) if self.few else None, alignment="left")


def dots(ax: Axes, x, y, color=None, **options) -> None:
    """Runs as points, told apart where they lie on one another."""
    few = np.size(x) < 100
    look = {"s": 26 if few else 18, "linewidths": 0.6 if few else 0.3, "edgecolors": "white",
            "zorder": 3} | options
    ax.scatter(x, y, color=color, **look)


def whisker(ax: Axes, x: float, low: float, high: float, color: str, cap: float = 6) -> None:
    """An interval as a line with caps, `cap` points wide. It need not hold the value it is of: a
    bootstrap interval that corrects a bias can lie to one side (an error bar would refuse)."""
    ax.vlines(x, low, high, color=color, linewidth=1.6, zorder=4)
    ax.plot([x, x], [low, high], "_", color=color, markersize=cap, mew=1.6, zorder=4)


# -- files -----------------------------------------------------------------------------------------

def to_png(fig: Figure, dpi: int = 160) -> bytes:
    """The figure as a PNG."""
    out = io.BytesIO()
    with style():
        fig.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def to_svg(fig: Figure) -> bytes:
    """The figure as an SVG of paths, the same bytes each time."""
    out = io.BytesIO()
    with style():
        fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
