"""Inside a model: attention maps, and the tokens that excite its neurons."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure

from analysis.plots.base import GREY, PALE, WIDTH, Picture, canvas, caption, plain, styled
from slm.corpora import EOT
from slm.errors import UserError

if TYPE_CHECKING:
    from analysis.interpret import Reading

MOST_LAYERS, MOST_HEADS = 6, 8
MOST_TOKENS = 48        # whose names fit beside a map
WEIGHTS = matplotlib.colormaps["Blues"]
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#f6c48f", "#D55E00"])
NORM = PowerNorm(0.5, 0, 1)                     # a share of 1 % is still to be seen
TICKS = (0, 0.01, 0.1, 0.3, 1)
SIZE = 8.2                                      # points
LETTER = SIZE * 1233 / 2048 / 72                # inches: width of DejaVu Sans Mono's letters


@styled
def attention_maps(reading: Reading, ax=None) -> Figure:
    """What every head looks at while it reads a text: a row a layer, a column a head, each a map of
    (token that looks, token that is looked at).

    reading: of analysis.interpret.read. Of many layers or heads some are shown, evenly chosen. ax:
    as many axes as maps, if given."""
    layers, heads = (some(n, most) for n, most in zip(reading.attention.shape[:2],
                                                      (MOST_LAYERS, MOST_HEADS)))
    size = min(8, 54 / len(heads))                  # titles side by side don't touch
    height = len(layers) * (WIDTH - 0.8) / max(len(heads), 4) * 1.12 + 0.7
    fig, axes = canvas(ax, len(layers), len(heads), height=height, sharex=True, sharey=True)
    for ax_, (layer, head) in zip(axes, ((i, j) for i in layers for j in heads)):
        image = ax_.imshow(reading.attention[layer, head], cmap=WEIGHTS, norm=NORM,
                           interpolation="nearest", gid=f"{layer} {head}")
        ax_.set_title(f"layer {layer}, head {head}", fontsize=size, fontweight="normal")
        ax_.set(xticks=[], yticks=[])
        ax_.grid(False)
    bar = fig.colorbar(image, ax=axes, pad=0.01, aspect=20, shrink=0.6, ticks=TICKS)
    bar.outline.set_visible(False)
    n_layer, n_head = reading.attention.shape[:2]
    of = f"{len(axes)} of {n_layer * n_head} heads" if len(axes) < n_layer * n_head else ""
    caption(fig, f"{len(reading.tokens)} tokens",
            "rows look at columns; share of a row's attention", of,
            ax=None if ax is None else axes[0])
    return fig


@styled
def attention_head(reading: Reading, layer: int, head: int, ax: Axes | None = None) -> Figure:
    """One head's map with the tokens beside it (of long texts the first 48). Raises UserError where
    there is no such head."""
    n_layer, n_head = reading.attention.shape[:2]
    if not (0 <= layer < n_layer and 0 <= head < n_head):
        raise UserError(f"layer={layer}, head={head}: this model has layers 0 to {n_layer - 1} and "
                        f"heads 0 to {n_head - 1}")
    t = min(len(reading.tokens), MOST_TOKENS)
    fig, (ax_,) = canvas(ax, height=max(0.14 * t, 2.0) + 1.2)
    image = ax_.imshow(reading.attention[layer, head, :t, :t], cmap=WEIGHTS, norm=NORM,
                       interpolation="nearest")
    tokens_on(ax_, "x", reading.tokens[:t])
    tokens_on(ax_, "y", reading.tokens[:t])
    ax_.set(xlabel="is looked at", ylabel="looks")
    ax_.grid(False)
    ax_.set_title(f"Attention of layer {layer}, head {head}")
    bar = fig.colorbar(image, ax=ax_, pad=0.01, aspect=20, shrink=0.6, ticks=TICKS)
    bar.outline.set_visible(False)
    caption(fig, "share of each row's attention" + (f", the first {t} of {len(reading.tokens)} "
            "tokens" if t < len(reading.tokens) else ""), ax=ax)
    return fig


@styled
def neuron_map(reading: Reading, layer: int, n: int = 24, ax: Axes | None = None) -> Figure:
    """The neurons of a layer that a text excites most, a row each over its tokens. Raises UserError
    where there is no such layer."""
    n_layer, _, d_ff = reading.activations.shape
    if not 0 <= layer < n_layer:
        raise UserError(f"layer={layer}: this model has layers 0 to {n_layer - 1}")
    t = min(len(reading.tokens), MOST_TOKENS + 1)
    acts = reading.activations[layer, 1:t].T                                   # (f, t)
    top = np.argsort(-acts.max(1), kind="stable")[:n]
    top = top[np.argsort(acts[top].argmax(1), kind="stable")]                  # in reading order
    fig, (ax_,) = canvas(ax, height=0.15 * len(top) + 1.9)
    image = ax_.imshow(acts[top].clip(min=0), cmap=HEAT, aspect="auto", interpolation="nearest",
                       norm=Normalize(0, acts.max()))
    tokens_on(ax_, "x", reading.tokens[1:t])
    ax_.set_yticks(range(len(top)), [str(i) for i in top], fontsize=7)
    ax_.set_ylabel("neuron")
    ax_.grid(False)
    ax_.set_title(f"Neurons of layer {layer}")
    fig.colorbar(image, ax=ax_, pad=0.01, aspect=30).outline.set_visible(False)
    caption(fig, f"the {len(top)} of {d_ff} neurons with the highest activation, ordered by its "
            "place", "activations below 0 are drawn as 0", ax=ax)
    return fig


@styled
def neuron_texts(table: pd.DataFrame, neurons: Sequence[int] | None = None,
                 most: int = 4) -> Figure:
    """The texts that excite some neurons most, each token on the colour of its activation.

    table: of analysis.interpret.neuron_tokens; neurons: which, default the first six; most: texts
    a neuron. Colours run from 0 to each neuron's highest activation. Raises UserError where none of
    the neurons is in the table."""
    wanted = list(dict.fromkeys(table["neuron"]))[:6] if neurons is None else list(neurons)
    blocks = [(i, part.head(most)) for i in wanted if len(part := table[table["neuron"] == i])]
    if not blocks:
        raise UserError("no such neuron in this table: " + ", ".join(map(str, wanted)))
    line, gap = 0.19, 0.34
    total = sum(gap + line * len(part) for _, part in blocks) + 0.55
    fig = Picture(figsize=(WIDTH, total))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(total, 0))          # in inches
    ax.axis("off")
    y = 0.1
    for neuron, part in blocks:
        layer, top = part["layer"].iloc[0], part["activation"].max()
        ax.text(0.08, y + 0.12, f"layer {layer}, neuron {neuron}", fontsize=9.5, fontweight="bold",
                va="center")
        ax.text(WIDTH - 0.1, y + 0.12, f"highest {top:.3g}, {part['peak'].max():.0f} times its rms",
                fontsize=8, color=GREY, ha="right", va="center")
        y += gap - 0.06
        for row in part.itertuples():
            draw_tokens(ax, y, row, top)
            y += line
        y += 0.06
        ax.axhline(y - 0.02, color=PALE, linewidth=0.6)
    caption(fig, "each line another text, around the token that excites the neuron most",
            "colour: activation, from 0 to the neuron's highest")
    return fig


def draw_tokens(ax: Axes, y: float, row, top: float) -> None:
    """One passage in monospace; the strongest token stands in the middle of the line."""
    tokens = [shown(t, space=" ") for t in row.tokens]
    at = int(np.argmax(row.activations))
    norm, x = Normalize(0, max(top, 1e-30)), WIDTH / 2 - LETTER * sum(map(len, tokens[:at]))
    for i, (token, value) in enumerate(zip(tokens, row.activations)):
        width = LETTER * len(token)
        if 0.05 < x and x + width < WIDTH - 0.05:
            ax.add_patch(matplotlib.patches.Rectangle((x, y), width, 0.165, linewidth=0, color=HEAT(
                norm(max(value, 0)))))
            ax.text(x, y + 0.085, plain(token), family="DejaVu Sans Mono", fontsize=SIZE,
                    va="center_baseline", fontweight="bold" if i == at else "normal")
        x += width


def tokens_on(ax: Axes, which: str, tokens: list[str]) -> None:
    """Tokens as the ticks of an axis, spaces as dots."""
    names = [plain(shown(t, space="·"), 14) for t in tokens]
    if which == "x":
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    else:
        ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.tick_params(length=0)


def shown(token: str, space: str) -> str:
    """A token in print."""
    return "(start)" if token == EOT else token.replace("\n", "⏎").replace(" ", space)


def some(n: int, most: int) -> list[int]:
    """At most so many of 0 to n - 1, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()
