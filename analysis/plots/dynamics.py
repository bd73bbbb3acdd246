"""How a training went, beyond its loss: noise scale, update sizes, attention, loss by position."""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.dynamics import PREFIX, dynamics_of, noise_scale, windows
from analysis.plots.base import BLACK, BLUE, GREY, ORDERED, canvas, caption, log_axis, loss_axis, \
    padded, plain, styled
from slm.screen import amount

NAMED = 5               # layers, and times, that a legend names


@styled
def plot_dynamics(source: pd.DataFrame, run: str | None = None, ax=None) -> Figure:
    """Four panels of one run with track.dynamics_interval: the gradient noise scale with the batch
    beside it, the relative size of updates and the spread of attention by layer, and the loss by
    position at some times of the training.

    source: of load_runs or load_history; run: which of them, where several were measured (default:
    that with most tokens); ax: four axes, if given. The noise scale is a ratio of means over
    windows of steps with a 95 % interval (analysis.dynamics.noise_scale), the other curves are
    smoothed. Raises UserError as it does."""
    rows = dynamics_of(source, run, longest=True)
    n_run = len(rows.attrs["measured"])
    fig, axes = canvas(ax, 2, 2, height=6.4)
    draw_noise_scale(axes[0], rows)
    draw_layers(axes[1], rows, "update_ratio", {"embedding": ":", "head": "--"})
    axes[1].set_title("Update of a step / weights (rms)")
    log_axis(axes[1], "y", "", "")
    axes[1].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    draw_layers(axes[2], rows, "attention_spread", {})
    lowest = rows[[c for c in rows if "/attention_spread/" in c]].min().min()
    axes[2].set(title="Attention: entropy / uniform", ylim=(1.5 * lowest - 0.5, 1.02))
    draw_positions(axes[3], rows)
    for ax_ in axes[:3]:
        ax_.set_xlim(padded(rows["tokens"][rows["tokens"] > 0], 0.03))
        log_axis(ax_, "x", "tokens")
    which = f" (of {n_run} that were measured: run= says which)" if n_run > 1 else ""
    caption(fig, plain(rows["run"][0]) + which, f"n = {len(rows):,} measured steps",
            "noise scale: mean tr Σ / mean |G|² of neighbouring steps, 95 % interval, cut where "
            "there is an arrow",
            "attention: 1 = uniform over all that is visible", ax=None if ax is None else axes[0])
    return fig


def draw_noise_scale(ax: Axes, rows: pd.DataFrame) -> None:
    ax.set_title("Gradient noise scale (tokens)")
    if f"{PREFIX}grad_mean_sq" not in rows:
        ax.text(0.5, 0.5, "none: one sequence a batch", transform=ax.transAxes, ha="center",
                color=GREY)
        return
    table = noise_scale(rows)
    known = table[np.isfinite(table["value"]) & (table["value"] > 0)]
    batch = float((rows["tokens"] / rows["step"]).median())
    bounded = table[np.isfinite(table["high"])]
    values = pd.concat([known["value"], bounded["high"], table["low"][table["low"] > 0]])
    top, bottom = max([*values, batch]) * 1.4, min([*known["value"], batch]) / 2.5
    ax.vlines(table["tokens"], table["low"].clip(lower=bottom), table["high"].clip(upper=top),
              color=BLUE, alpha=0.45, linewidth=2.2)
    for r in table.itertuples():
        for mark, end, out in (("v", bottom, r.low < bottom), ("^", top, r.high > top)):
            if out:
                ax.plot(r.tokens, end, mark, color=BLUE, markersize=5, clip_on=False, gid="beyond")
    ax.plot(known["tokens"], known["value"], "o-", color=BLUE, markersize=3.6, gid="noise scale")
    ax.axhline(batch, color=BLACK, linestyle=(0, (5, 3)), linewidth=1.1)
    ax.set_ylim(bottom, top)
    log_axis(ax, "y", "tokens", "")
    ax.annotate(f"the batch: {amount(batch)}", (0.99, batch), (0, 3), fontsize=8.5, ha="right",
                xycoords=ax.get_yaxis_transform(), textcoords="offset points")


def draw_layers(ax: Axes, rows: pd.DataFrame, name: str, others: dict[str, str]) -> None:
    """A smoothed curve for each layer of dynamics/<name>/h.<i>, and for others (name: line style)
    in black."""
    prefix = f"{PREFIX}{name}/"
    layers = sorted((int(c.rpartition(".")[2]), c) for c in rows if c.startswith(prefix + "h."))
    last = max(len(layers) - 1, 1)
    named = set(np.linspace(0, last, min(NAMED, len(layers))).round().astype(int))
    for i, column in layers:
        curve(ax, rows, column, color=ORDERED(i / last), gid=column,
              label=f"layer {i}" if i in named else None)
    for other, line in others.items():
        if prefix + other in rows:
            curve(ax, rows, prefix + other, color=BLACK, linestyle=line, linewidth=1.1,
                  label=other, gid=prefix + other)
    ax.legend(fontsize=8, ncols=2, loc="best", handlelength=1.6, columnspacing=1.0)


def curve(ax: Axes, rows: pd.DataFrame, column: str, **look) -> None:
    from analysis.comparison import smooth
    part = rows[rows[column].notna() & (rows["tokens"] > 0)]
    y, at = part[column].to_numpy(float), part["tokens"].to_numpy(float)
    ax.plot(at, smooth(y, np.log(at)) if len(y) > 8 else y, **{"linewidth": 1.4} | look)


def draw_positions(ax: Axes, rows: pd.DataFrame) -> None:
    """Loss over position, the mean of a window of measurements at each of a few times."""
    prefix = f"{PREFIX}loss_at/"
    ends = sorted(int(c.removeprefix(prefix)) for c in rows if c.startswith(prefix))
    parts = windows(len(rows))
    few = np.unique(np.linspace(0, len(parts) - 1, NAMED).round().astype(int))
    for i in few:
        part = rows.iloc[parts[i]]
        mean = part[[f"{prefix}{k}" for k in ends]].mean()
        ax.plot(ends, mean, "o-", markersize=3.2, color=ORDERED(i / max(len(parts) - 1, 1)),
                label=amount(part["tokens"].mean()), gid="loss by position")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ends))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:.0f}"))
    ax.set_xlabel("tokens in sight (up to)")
    loss_axis(ax, "curve")
    ax.set(title="Loss by position", ylabel="")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.2)                 # room for the legend
    ax.legend(title="after tokens", fontsize=8, title_fontsize=8, loc="upper center",
              ncols=NAMED, columnspacing=0.8, handlelength=1.0, handletextpad=0.4)
