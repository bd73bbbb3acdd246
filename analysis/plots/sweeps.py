"""Figures of sweeps: learning rates by width, layers x heads x width, and texts side by side."""
from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis.plots.base import BLACK, GREY, LABELS, ORDERED, PALE, RED, WIDTH, Picture, Scale, \
    canvas, caption, chosen, count, dots, log_axis, loss_axis, padded, plain, styled, text_of
from analysis.samples import longest_runs
from analysis.table import usable
from slm.errors import UserError
from slm.screen import amount

LOST = ("diverged", "failed")          # what a learning rate that is too large does to a run


@styled
def lr_curves(runs: pd.DataFrame, by: str = "n_embd", ax=None) -> Figure:
    """Loss against learning rate for each width (or other column), one panel per parametrization.

    Lines join the means of seeds. An optimum inside the rates tried is a red dot; one at the edge
    is hollow: the true one may lie further out. Runs that diverged stand as crosses at the top. Of
    several token budgets per width the one with most rates is drawn. ax: as many axes as there are
    parametrizations, if given. Raises UserError without two learning rates for one value of `by`"""
    kept, notes = usable(runs, ("lr",))
    if by not in kept:
        raise UserError(f"learning-rate curves: the table has no column {by}")
    kind = kept["parametrization"].fillna("sp").astype(str) if "parametrization" in kept else \
        pd.Series("", index=kept.index)
    curves, left_out = lr_groups(kept.assign(_kind=kind), by)
    if not curves:
        raise UserError(f"learning-rate curves need two learning rates for one {by}; every {by} "
                        "has one")
    kinds = sorted({k for k, _ in curves}, key=lambda k: (k != "sp", k))
    fig, axes = canvas(ax, 1, len(kinds), height=4.4, sharey=True)
    scale = Scale([v for _, v in curves], by)
    edges, everything, lost = [], pd.concat(curves.values()), lost_runs(runs, by)
    top = padded(everything["loss"], 0.1)
    for (which, value), part in curves.items():
        ax_ = axes[kinds.index(which)]
        gone = lost[(lost["_kind"] == which) & (lost[by] == value)]["lr"]
        edges += [text_of(by)(value)] if one_lr_curve(ax_, part, scale(value), gone) else []
    for ax_, which in zip(axes, kinds):
        here = lost[(lost["_kind"] == which) & lost[by].isin(everything[by])]
        for r in here.itertuples():
            ax_.plot(r.lr, top[1], "x", color=scale(getattr(r, by)), markersize=7, mew=2, zorder=5)
        ax_.set_ylim(top[0], top[1] * (top[1] / top[0]) ** 0.04)
        ax_.set_xlim(*padded([*everything["lr"], *lost["lr"]], 0.05))
        log_axis(ax_, "x", "lr")
        loss_axis(ax_)
        ax_.set_title("Loss against learning rate" + (f": {plain(which)}" if which else ""))
    for ax_ in axes[1:]:
        ax_.set_ylabel("")
    scale.key(axes[-1], more=[
        Line2D([], [], color=RED, marker="o", linestyle="", markersize=8, label="best rate")]
        + ([Line2D([], [], color="white", marker="o", markeredgecolor=RED, mew=1.6, linestyle="",
                   markersize=8, label="best, but at\nthe edge")] if edges else [])
        + ([Line2D([], [], color=BLACK, marker="x", linestyle="", mew=2, label="diverged")]
           if len(lost) else []))
    edge_text = "at the edge of the rates tried: " + LABELS.get(by, by) + " " + ", ".join(edges) \
        if edges else ""
    caption(fig, count(everything) + (f", {len(lost)} diverged" if len(lost) else ""),
            "lines join means of seeds", edge_text, left_out, chosen(runs, notes),
            ax=None if ax is None else axes[0])
    return fig


def lr_groups(kept: pd.DataFrame, by: str) -> tuple[dict, str]:
    """{(parametrization, value): rows} of the token budget with most rates, and what that left
    out."""
    curves, dropped = {}, 0
    for key, part in kept.dropna(subset=[by]).groupby(["_kind", by]):
        budgets = part["tokens"] if "tokens" in part else pd.Series(0, index=part.index)
        rates = part.groupby(budgets)["lr"].nunique()
        if rates.max() < 2:
            dropped += len(part)
            continue
        best = rates[rates == rates.max()].index.max()
        dropped += int((budgets != best).sum())
        curves[key] = part[budgets == best]
    return curves, f"{dropped} rows not drawn: other token budgets or a single rate" if dropped \
        else ""


def one_lr_curve(ax: Axes, part: pd.DataFrame, colour, lost: pd.Series) -> bool:
    """Points, means and the optimum of one width; whether that is at the edge of the rates tried,
    those of diverged runs (`lost`) among them."""
    dots(ax, part["lr"], part["loss"], colour)
    means = part.groupby("lr")["loss"].mean()
    ax.plot(means.index, means, color=colour, linewidth=1.3, alpha=0.85)
    best = means.idxmin()
    tried = [*means.index, *lost]
    edge = best in (min(tried), max(tried))
    ax.plot(best, means[best], "o", color="white" if edge else RED, markeredgecolor=RED, mew=1.6,
            markersize=8, zorder=4, gid="edge optimum" if edge else "optimum")
    return edge


def lost_runs(runs: pd.DataFrame, by: str) -> pd.DataFrame:
    """Runs with a learning rate that diverged or failed."""
    if "status" not in runs:
        return runs.iloc[:0].assign(_kind="")
    rows = runs[runs["status"].isin(LOST) & runs["lr"].notna() & runs[by].notna()]
    kind = rows["parametrization"].fillna("sp") if "parametrization" in rows else ""
    return rows.assign(_kind=kind)


@styled
def heat_maps(runs: pd.DataFrame, factors: tuple[str, str, str] = ("n_head", "n_layer", "n_embd"),
              ax=None) -> Figure:
    """Mean loss over layers (down) x width (across), a panel for each number of heads, all in one
    scale; the best cell is outlined, a cell whose runs all diverged has a cross.

    Numbers are means over seeds (how many, where more than one). Of several token budgets the one
    with most shapes is drawn. factors: the columns of panels, rows and columns. ax: as many axes
    as panels, if given. Raises UserError where fewer than two shapes share a budget."""
    panel, down, across = factors
    missing = [c for c in factors if c not in runs]
    if missing:
        raise UserError(f"heat maps: the table has no column {', '.join(missing)}")
    kept, notes = usable(runs, tuple(factors))
    shapes = kept.groupby([kept["tokens"] if "tokens" in kept else 0])[list(factors)].apply(
        lambda g: len(g.drop_duplicates()))
    budget = shapes[shapes == shapes.max()].index.max()
    drawn = kept[kept["tokens"] == budget] if "tokens" in kept else kept
    if len(drawn[list(factors)].drop_duplicates()) < 2:
        raise UserError(f"heat maps need two shapes ({', '.join(factors)}) with the same tokens; "
                        "there is one for every budget")
    means = drawn.groupby(list(factors))["loss"].agg(["mean", "count"])
    panels, rows, cols = (sorted(drawn[c].unique()) for c in factors)
    per_row = 1 if len(cols) > 8 else min(len(panels), 3)
    n_row = -(-len(panels) // per_row)
    fig, axes = canvas(ax, n_row, per_row, height=n_row * (1.1 + 0.42 * len(rows)) + 0.7,
                       sharey=True)
    norm = LogNorm(means["mean"].min(), means["mean"].max() * (1 + 1e-9))
    gone = runs[runs["status"].isin(LOST)] if "status" in runs else runs.iloc[:0]
    image = None
    for ax_, value in zip(axes, panels):
        grid = np.full((len(rows), len(cols)), np.nan)
        for (h, r, c), cell in means.iterrows():
            if h == value:
                grid[rows.index(r), cols.index(c)] = cell["mean"]
        image = ax_.imshow(grid, norm=norm, cmap=ORDERED, aspect="auto", origin="lower")
        write_cells(ax_, grid, norm, means, value, rows, cols)
        for lost in gone[gone[panel] == value].drop_duplicates([down, across]).itertuples():
            r, c = getattr(lost, down), getattr(lost, across)
            if r in rows and c in cols and np.isnan(grid[rows.index(r), cols.index(c)]):
                ax_.plot(cols.index(c), rows.index(r), "x", color=RED, markersize=10, mew=2)
        ax_.set_xticks(range(len(cols)), [text_of(across)(v) for v in cols])
        ax_.set_yticks(range(len(rows)), [text_of(down)(v) for v in rows])
        ax_.set_xlabel(LABELS.get(across, across))
        ax_.set_title(f"{LABELS.get(panel, panel)}: {text_of(panel)(value)}")
        ax_.set_facecolor("#f1f1f1")
        ax_.grid(False)
        ax_.spines[["left", "bottom"]].set_visible(False)
        ax_.tick_params(length=0)
    for ax_ in axes[len(panels):]:
        ax_.set_visible(False)
    for ax_ in axes[::per_row]:
        ax_.set_ylabel(LABELS.get(down, down))
    bar = fig.colorbar(image, ax=axes, pad=0.015, aspect=25)
    loss_axis(bar.ax)
    bar.outline.set_visible(False)
    others = len(kept) - len(drawn)
    caption(fig, count(drawn), f"D = {amount(budget)} tokens" + (f" ({others} rows of other budgets"
            " not drawn)" if others else ""), "means over seeds; best outlined",
            chosen(runs, notes), ax=None if ax is None else axes[0])
    return fig


def write_cells(ax: Axes, grid: np.ndarray, norm, means: pd.DataFrame, value, rows: list,
                cols: list) -> None:
    """The number in each cell, and a frame around the best of all panels."""
    best = means["mean"].min()
    spread = means["mean"].max() - best
    digits = 2 if spread > 0.1 else 3 if spread > 0.01 else 4
    for i, j in np.argwhere(np.isfinite(grid)):
        n = int(means.loc[(value, rows[i], cols[j]), "count"])
        dark = norm(grid[i, j]) < 0.6
        ax.text(j, i, f"{grid[i, j]:.{digits}f}" + (f"\nn = {n}" if n > 1 else ""), ha="center",
                va="center", fontsize=8, color="white" if dark else "black")
        if grid[i, j] == best:
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=RED,
                                   linewidth=2.4, zorder=4))


@styled
def samples_table(samples: pd.DataFrame, runs: pd.DataFrame | None = None, most: int = 6,
                  longest: int = 420) -> Figure:
    """Texts from the same prompt by different runs, a row each, smallest model first.

    samples: load_samples(runs); of each run its last step is shown, of the prompts the first that
    most runs share. runs: the table, to say sizes and losses, and of each size to take the longest
    run; most: rows (spread evenly over the
    sizes); longest: characters of a text. Raises UserError where there is no sample."""
    if samples.empty or samples["prompt"].isna().all():
        raise UserError("no samples: these runs wrote none (sample.prompts in their spec)")
    prompt = samples.groupby("prompt", sort=False)["run"].nunique().idxmax()
    last = samples[samples["prompt"] == prompt].sort_values("step", kind="stable") \
        .groupby("run", sort=False).tail(1)
    n_run = len(last)
    facts = runs.drop_duplicates("run").set_index("run") if runs is not None else pd.DataFrame()
    size = last["run"].map(facts["n_params"]) if "n_params" in facts else last["tokens"]
    last = last.assign(_size=size).sort_values("_size")
    if runs is not None:
        here = longest_runs(runs[runs["run"].isin(last["run"])])["run"]
        last = last[last["run"].isin(here) | ~last["run"].isin(runs["run"])]
    shown = last.iloc[np.unique(np.linspace(0, len(last) - 1, most).round().astype(int))]
    cells = [(who(r, facts), body(r.text, prompt, longest)) for r in shown.itertuples()]
    heights = [0.3 + 0.16 * max(b.count("\n") + 1, w.count("\n") + 1) for w, b in cells]
    total = sum(heights) + 0.75
    fig = Picture(figsize=(WIDTH, total))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(total - 0.35, -0.35))    # in inches
    ax.axis("off")
    y = 0.0
    for (left, right), height in zip(cells, heights):
        ax.axhline(y, color=PALE, linewidth=0.8)
        ax.text(0.08, y + 0.11, left, va="top", fontsize=8.5, color=GREY, linespacing=1.3)
        ax.text(1.35, y + 0.11, right, va="top", fontsize=9, linespacing=1.25)
        y += height
    ax.text(0.08, -0.1, f"“{plain(prompt, 70)}”, continued", fontsize=10.5, fontweight="bold")
    parts = ["smallest first"] if runs is None else \
        ["smallest first; of each size its longest run", chosen(runs)]
    caption(fig, f"{len(shown)} of {n_run} runs, the last text of each", *parts)
    return fig


def who(row, facts: pd.DataFrame) -> str:
    """What wrote a text: size, tokens, loss."""
    lines = []
    if row.run in facts.index:
        f = facts.loc[row.run]
        if pd.notna(f.get("n_params")):
            lines.append(f"N = {amount(f['n_params'])}")
        lines.append(f"D = {amount(row.tokens)}")
        if pd.notna(f.get("loss")):
            lines.append(f"loss {f['loss']:.3f}")
    return "\n".join(lines or [plain(row.run, 22), f"D = {amount(row.tokens)}"])


def body(text: str, prompt: str, longest: int) -> str:
    text = str(text)
    text = text[:longest] + ("…" if len(text) > longest else "")
    lines = [line for part in text.splitlines() or [""] for line in textwrap.wrap(part, 96) or [""]]
    return "\n".join(plain(line, 200) for line in lines)
