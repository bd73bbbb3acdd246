"""The figures of the study."""
from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots.base import BLACK, BLUE, GREEN, GREY, ORDERED, canvas, caption, dots, \
    log_axis, styled, whisker
from analysis.studies.zipf import ideal
from analysis.studies.zipf.results import FEWEST, SLOW, SPANS, Exponents, Study, \
    by_meetings, how_sure
from slm.screen import amount

MEETINGS = (10, 100, 1000)


def grid(study: Study) -> tuple[Figure, dict[tuple, Axes]]:
    """Axes by (facts, zipf): a row for each number of facts, a column for each exponent."""
    facts = sorted({f for f, _ in study.settings}, reverse=True)
    keys = list(itertools.product(facts, sorted({z for _, z in study.settings})))
    fig, axes = canvas(None, len(facts), len(keys) // len(facts), height=1.6 + 2.6 * len(facts),
                       sharex=True, sharey=True)
    for ax, key in zip(axes, keys):
        ax.set_title(f"{key[0]:,} subjects, z = {key[1]:g}")
        ax.set_visible(key in study.settings)
    return fig, {key: ax for key, ax in zip(keys, axes) if key in study.settings}


def label_grid(axes: dict[tuple, Axes], x: str, y: str) -> None:
    """Log x axes; names of axes only at the left and below."""
    for (facts, zipf), ax in axes.items():
        lowest = facts == min(f for f, z in axes if z == zipf)
        log_axis(ax, "x", "tokens", x if lowest else "")
        ax.tick_params(labelbottom=lowest)
        if zipf == min(z for _, z in axes):
            ax.set_ylabel(y)


@styled
def curves(study: Study) -> Figure:
    """Excess over the floor, and the facts' part of it, beside ideal readers."""
    fig, axes = grid(study)
    for key, ax in axes.items():
        runs = study.of(*key)
        rate = study.rates[runs["world"].iloc[0], *key]
        n = np.geomspace(runs["stories"].min(), runs["stories"].max(), 40)
        a_story = (runs["tokens"] / runs["stories"]).mean()
        for m, width in ((1, 1.8), *((m, 0.8) for m in MEETINGS)):
            ax.plot(n * a_story, [ideal.cost(rate, x, m) for x in n], color=GREEN, linewidth=width,
                    linestyle="-" if m == 1 else "--")
        ax.axhline(ideal.cost(rate, 0), color=GREY, linewidth=1, linestyle=":")
        for column, color in (("excess", BLACK), ("paid", BLUE)):
            mean = runs.groupby("tokens")[column].mean()
            ax.plot(mean.index, mean, color=color, linewidth=1)
            dots(ax, runs["tokens"], runs[column], color)
        ax.set_yscale("log")
    next(iter(axes.values())).set_ylim(0.03, None)
    label_grid(axes, "training tokens D", "nats a story")
    handles = [Line2D([], [], color=BLACK, marker="o", markersize=5, label="loss above the floor"),
               Line2D([], [], color=BLUE, marker="o", markersize=5, label="of it, for facts"),
               Line2D([], [], color=GREY, linestyle=":", label="a reader who knows no fact"),
               Line2D([], [], color=GREEN, linewidth=1.8, label="who knows each once told"),
               Line2D([], [], color=GREEN, linewidth=0.8, linestyle="--",
                      label="once told " + ", ".join(map(str, MEETINGS)) + " times")]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    caption(fig, f"n = {len(study.runs)} runs",
            "green: exact, nothing fitted")
    return fig


@styled
def ranks(study: Study) -> Figure:
    """What models pay for facts against how often their subject is met, by horizon."""
    fig, axes = grid(study)
    horizons = sorted(study.runs["tokens"].unique())
    for key, ax in axes.items():
        here = study.cells[(study.cells["facts"] == key[0]) & (study.cells["zipf"] == key[1])]
        rate = study.rates[study.of(*key)["world"].iloc[0], *key]
        middle = ideal_ranks(len(rate))
        for i, tokens in enumerate(horizons):
            color = ORDERED(i / (len(horizons) - 1))
            share = here[here["tokens"] == tokens].groupby("octave").apply(
                lambda c: (c["nats"] * c["paid"]).sum() / c["nats"].sum(), include_groups=False)
            ax.plot(middle, share, color=color, marker="o", markersize=3.5)
        for tokens, color in ((horizons[0], ORDERED(0.0)), (horizons[-1], ORDERED(1.0))):
            n = study.of(*key)["stories"][study.of(*key)["tokens"] == tokens].mean()
            weight = rate * ideal.VALUE_NATS
            expected = (weight * ideal.unknown(rate, n)).sum(1) / weight.sum(1)
            ax.plot(np.arange(1, len(rate) + 1), expected, color=color, linewidth=0.9,
                    linestyle="--")
        ax.axhline(1, color=GREY, linewidth=1, linestyle=":")
    next(iter(axes.values())).set_ylim(0, None)
    label_grid(axes, "rank of the subject", "cost of a fact / knowing none")
    horizon_key(fig, horizons, Line2D([], [], color=GREY, linestyle="--", linewidth=0.9,
                                      label="ideal reader"))
    caption(fig, "means over octaves of ranks (1, 2-3, 4-7, ...)",
            "1: a reader who knows no fact and that values are even; dashed: the reader who knows "
            "a fact once told, exact, for the fewest and the most tokens")
    return fig


def ideal_ranks(facts: int) -> np.ndarray:
    """The geometric middle of each octave of ranks."""
    low = 2 ** np.arange(int(np.log2(facts)) + 1)
    return np.sqrt(low * np.minimum(2 * low - 1, facts))


@styled
def meetings(study: Study) -> Figure:
    """What models pay for a fact against how often it was told: one curve, if a number of tellings
    were all that counts."""
    zipfs = sorted({z for _, z in study.settings})
    fig, axes = canvas(None, 1, len(zipfs), height=3.9, sharex=True, sharey=True)
    horizons = sorted(study.runs["tokens"].unique())
    m = np.geomspace(0.03, 1e4, 200)
    for ax, zipf in zip(axes, zipfs):
        here = study.cells[study.cells["zipf"] == zipf]
        for i, tokens in enumerate(horizons):
            g = by_meetings(here[here["tokens"] == tokens], 2)
            ax.plot(g["meetings"], g["paid"], color=ORDERED(i / (len(horizons) - 1)), marker="o",
                    markersize=3.5)
        ax.plot(m, np.exp(-m), color=GREEN, linestyle="--", linewidth=1)
        ax.axhline(1, color=GREY, linewidth=1, linestyle=":")
        ax.set_title(f"z = {zipf:g}")
        ax.set_xlim(0.03, 1e4)
        log_axis(ax, "x", "tokens", "tellings of the fact")
        ax.set_ylim(0, 4.2)
    axes[0].set_ylabel("cost of a fact / knowing none")
    more = Line2D([], [], color=GREEN, linestyle="--", label="known once told")
    horizon_key(fig, horizons, more)
    caption(fig, "means over half decades of tellings (expected number) and all numbers of "
            f"subjects, cells of {FEWEST} or more tellings measured",
            "1, dotted: a reader who knows no fact")
    return fig


def horizon_key(fig: Figure, horizons: list[float], *more: Line2D) -> None:
    """Say above the figure which colour is which horizon."""
    handles = [Line2D([], [], color=ORDERED(i / (len(horizons) - 1)), marker="o", markersize=4,
                      label=amount(float(f"{t:.2g}"))) for i, t in enumerate(horizons)] + list(more)
    fig.legend(handles=handles, title="training tokens", loc="outside upper center",
               ncols=len(handles))


TITLES = {"all": "all horizons", "late": "the last three", "last": "the last doubling"}


@styled
def slopes(study: Study, found: list[Exponents]) -> Figure:
    """Exponents against the data's, theory and measurement."""
    counts = sorted({e.facts for e in found}, reverse=True)
    fig, axes = canvas(None, len(counts), len(SPANS), height=1.5 + 2.7 * len(counts), sharex=True,
                       sharey=True)
    for ax, (facts, span) in zip(axes, itertools.product(counts, SPANS)):
        here = [e for e in found if e.facts == facts]
        z = np.array([e.zipf for e in here])
        ax.plot(z, [ideal.asymptotic(x) for x in z], color=GREY, linestyle=":", marker="s",
                markersize=4)
        for c, line in (("known", "-"), ("slow", "--")):
            ax.plot(z, [e.value[c, span] for e in here], color=GREEN, linestyle=line, marker="D",
                    markersize=4, linewidth=1.2)
        for c, color, shift in (("paid", BLUE, -0.03), ("excess", BLACK, 0.03)):
            for x, e in zip(z + shift, here):
                value, half = e.value[c, span], e.half[c, span]
                whisker(ax, x, value - half, value + half, color)
                dots(ax, [x], [value], color)
        ax.plot(z, [e.value["boundary", span] for e in here], color=BLUE, marker="o", markersize=5,
                linestyle="", fillstyle="none")
        ax.set_title(f"{facts:,}, {TITLES[span]}", fontsize=9)
        ax.set_xticks(sorted({z for _, z in study.settings}))
        ax.set_xlim(0.8, 2.2)
    for ax in axes[-len(SPANS):]:
        ax.set_xlabel("Zipf exponent z")
    for ax in axes[::len(SPANS)]:
        ax.set_ylabel("exponent in tokens")
    axes[0].set_ylim(0, 1.2)
    look = [dict(color=BLACK, marker="o", linestyle="", label="measured: all above the floor"),
            dict(color=BLUE, marker="o", linestyle="", label="measured: facts"),
            dict(color=BLUE, marker="o", linestyle="", fillstyle="none",
                 label="by more facts known alone"),
            dict(color=GREY, linestyle=":", marker="s", label="theory, endless facts: (z - 1)/z"),
            dict(color=GREEN, linestyle="-", marker="D", label="exact: known once told"),
            dict(color=GREEN, linestyle="--", marker="D", label=f"exact: once told {SLOW} times")]
    fig.legend(handles=[Line2D([], [], markersize=4, **k) for k in look], ncols=3,
               loc="outside upper center")
    caption(fig, "whiskers: 95 %, " + how_sure(study),
            "readers who know each of 100 once told: beyond the frame")
    return fig
