"""The figures of the study."""
from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots.base import BLACK, BLUE, GREEN, GREY, ORANGE, ORDERED, PALE, RED, SKY, canvas, \
    caption, dots, log_axis, styled, whisker
from analysis.zipf import ideal
from analysis.zipf.page import Exponents, Study
from slm.screen import amount

MEETINGS = (10, 100, 1000)


def grid(study: Study, height: float):
    """Axes by (facts, zipf), with titles."""
    n_facts = len({f for f, _ in study.settings})
    n_zipf = len(study.settings) // n_facts
    fig, axes = canvas(None, n_facts, n_zipf, height=height, sharex=True, sharey=True)
    for ax, (facts, zipf) in zip(axes, study.settings):
        ax.set_title(f"{facts:,} subjects, z = {zipf:g}")
    return fig, axes, n_zipf


@styled
def curves(study: Study) -> Figure:
    """Excess over the floor, and the facts' part of it, beside ideal readers."""
    fig, axes, n_zipf = grid(study, 5.6)
    for ax, key in zip(axes, study.settings):
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
    for ax in axes:
        log_axis(ax, "x", "tokens", "" if ax in axes[:-n_zipf] else None)
        ax.set_yscale("log")
        ax.set_ylim(0.008, None)
    for ax in axes[::n_zipf]:
        ax.set_ylabel("nats a story")
    handles = [Line2D([], [], color=BLACK, marker="o", markersize=5, label="loss above the floor"),
               Line2D([], [], color=BLUE, marker="o", markersize=5, label="of it, for facts"),
               Line2D([], [], color=GREY, linestyle=":", label="a reader who knows no fact"),
               Line2D([], [], color=GREEN, linewidth=1.8, label="who knows each once told"),
               Line2D([], [], color=GREEN, linewidth=0.8, linestyle="--",
                      label="once told " + ", ".join(map(str, MEETINGS)) + " times")]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    caption(fig, f"n = {len(study.runs)} runs; points are runs (two worlds), lines their means",
            "green: exact, nothing fitted")
    return fig


@styled
def ranks(study: Study) -> Figure:
    """What models pay for facts against how often their subject is met, by horizon."""
    fig, axes, n_zipf = grid(study, 5.6)
    horizons = sorted(study.runs["tokens"].unique())
    for ax, key in zip(axes, study.settings):
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
    for ax in axes:
        log_axis(ax, "x", "rank", "" if ax in axes[:-n_zipf] else "rank of the subject")
        ax.set_ylim(0, None)
    for ax in axes[::n_zipf]:
        ax.set_ylabel("cost of a fact / knowing none")
    handles = [Line2D([], [], color=ORDERED(i / (len(horizons) - 1)), marker="o", markersize=4,
                      label=amount(t)) for i, t in enumerate(horizons)]
    handles += [Line2D([], [], color=GREY, linestyle="--", linewidth=0.9, label="ideal reader")]
    fig.legend(handles=handles, title="training tokens", loc="outside upper center",
               ncols=len(handles))
    caption(fig, "means of two worlds over octaves of ranks (1, 2-3, 4-7, ...)",
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
    fig, axes = canvas(None, 1, len(zipfs), height=3.7, sharex=True, sharey=True)
    horizons = sorted(study.runs["tokens"].unique())
    for ax, zipf in zip(axes, zipfs):
        for i, tokens in enumerate(horizons):
            c = study.cells[(study.cells["zipf"] == zipf) & (study.cells["tokens"] == tokens)
                            & (study.cells["told"] >= 20)]
            edges = np.floor(2 * np.log10(c["meetings"])) / 2
            g = c.groupby(edges)
            x = g.apply(lambda p: np.exp(np.average(np.log(p["meetings"]), weights=p["told"])),
                        include_groups=False)
            y = g.apply(lambda p: np.average(p["paid"], weights=p["told"]), include_groups=False)
            ax.plot(x, y, color=ORDERED(i / (len(horizons) - 1)), marker="o", markersize=3.5)
        m = np.geomspace(0.01, 1e4, 200)
        ax.plot(m, np.exp(-m), color=GREEN, linestyle="--", linewidth=1)
        ax.axhline(1, color=GREY, linewidth=1, linestyle=":")
        ax.set_title(f"z = {zipf:g}")
        ax.set_xlim(0.03, 1e4)
        log_axis(ax, "x", "meetings", "expected tellings seen")
        ax.set_ylim(0, None)
    axes[0].set_ylabel("cost of a fact / knowing none")
    handles = [Line2D([], [], color=ORDERED(i / (len(horizons) - 1)), marker="o", markersize=4,
                      label=amount(t)) for i, t in enumerate(horizons)]
    handles += [Line2D([], [], color=GREEN, linestyle="--", label="known once told")]
    fig.legend(handles=handles, title="training tokens", loc="outside upper center",
               ncols=len(handles))
    caption(fig, "means over half decades of tellings, both numbers of subjects and both worlds; "
            "cells of at least 20 tellings read")
    return fig


@styled
def slopes(every: list[Exponents], late: list[Exponents]) -> Figure:
    """Exponents against the data's, theory and measurement."""
    counts = sorted({e.facts for e in every}, reverse=True)
    fig, axes = canvas(None, 1, 2 * len(counts), height=3.9, sharey=True)
    panels = [(rows, word, f) for f in counts for rows, word in ((every, "all horizons"),
                                                                 (late, "last three"))]
    series = (("asymptotic", "infinitely many facts", PALE, "-", "s"),
              ("ideal", "known once told, exact", GREEN, "-", "D"),
              ("slow", "as late as the models, exact", ORANGE, "--", "D"))
    for ax, (rows, word, facts) in zip(axes, panels):
        here = [e for e in rows if e.facts == facts]
        z = np.array([e.zipf for e in here])
        for name, _, color, line, mark in series:
            ax.plot(z, [getattr(e, name) for e in here], color=color, linestyle=line, marker=mark,
                    markersize=4, linewidth=1.2)
        for column, color, shift in (("paid", BLUE, -0.03), ("excess", BLACK, 0.03)):
            for x, e in zip(z + shift, here):
                v, h = e.measured[column], e.half[column]
                whisker(ax, x, v - h, v + h, color)
                dots(ax, [x], [v], color)
        ax.set_title(f"{facts:,}, {word}", fontsize=9.5)
        ax.set_xticks(z)
        ax.set_xlim(z.min() - 0.2, z.max() + 0.2)
        ax.set_xlabel("Zipf exponent z")
    axes[0].set_ylabel("exponent in tokens")
    axes[0].set_ylim(0, None)
    handles = [Line2D([], [], color=c, linestyle=s, marker=m, markersize=4, label=text)
               for _, text, c, s, m in series]
    handles += [Line2D([], [], color=BLUE, marker="o", linestyle="", label="measured: facts"),
                Line2D([], [], color=BLACK, marker="o", linestyle="", label="measured: all excess")]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    caption(fig, "95 % intervals: the spread between two worlds, pooled over settings")
    return fig


__all__ = ["RED", "SKY", "curves", "meetings", "ranks", "slopes"]
