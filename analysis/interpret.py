"""Inside a model: what its heads look at and what excites its neurons, as in the TinyStories paper
(Eldan and Li 2023, arXiv 2305.07759, section 5).

    writer = slm.load("runs/<run>")
    reading = read(writer, "Once upon a time, there was a little mouse named Ada.")
    reading.attention                    # (layer, head, t, t)
    head_table(writer, stories)          # does a head look at a place, or at a meaning?
    neuron_tokens(writer, stories, layer=2)

The attention matrices are made from the model's own queries and keys (slm.dynamics), the neurons
read where they enter the MLP's second matrix.
"""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from slm.corpora import EOT
from slm.dynamics import attending, attention_weights
from slm.errors import UserError
from slm.generate import Writer, load
from slm.model import GPT
from slm.screen import say

ROOT = Path(__file__).parent.parent
BATCH_TOKENS = 2**12    # of a forward pass
CONTEXT = 8             # tokens that a position must see to count in head_table


@dataclass(frozen=True)
class Reading:
    """One text as a model reads it, t tokens with the end-of-text before it.

    tokens: (t,) as text, which joined give the text (SentencePiece's without spaces)
    attention: (layer, head, t, t), row i says how much token i looks at each token j <= i
    activations: (layer, t, d_ff) of the MLP's neurons, after their non-linearity
    logits: (t, vocab_size) of the next token"""
    tokens: list[str]
    attention: np.ndarray
    activations: np.ndarray
    logits: np.ndarray


@torch.inference_mode()
def read(model: Writer | str | Path, text: str) -> Reading:
    """Attention and activations while a model reads a text as the beginning of a document.

    model: of slm.load, or a run folder. Raises UserError: a text longer than the model's context,
    and what slm.load raises."""
    writer = opened(model)
    gpt, ids = writer.model, [writer.tokenizer.eot, *writer.tokenizer.encode(text)]
    if len(ids) > gpt.config.block_size:
        raise UserError(f"the text has {len(ids)} tokens, this model reads {gpt.config.block_size}"
                        " (model.block_size): give a shorter one")
    attention: dict[int, Tensor] = {}

    def see(layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        attention[layer] = attention_weights(q, k, gpt.h[layer].attn.scale)[0]

    with attending(gpt, see), neurons(gpt) as activations:
        logits = gpt(torch.tensor([ids], device=gpt.wte.weight.device))
    layers = range(gpt.config.n_layer)
    return Reading(words_of(writer, ids), torch.stack([attention[i] for i in layers]).cpu().numpy(),
                   torch.stack([activations[i][0] for i in layers]).float().cpu().numpy(),
                   logits[0].float().cpu().numpy())


def opened(model: Writer | str | Path) -> Writer:
    """The writer itself, or that of a run folder; without dropout."""
    writer = model if isinstance(model, Writer) else load(model)
    writer.model.eval()
    return writer


def words_of(writer: Writer, ids: Sequence[int]) -> list[str]:
    """Each token as text; bytes that are no character of their own as U+FFFD."""
    eot = writer.tokenizer.eot
    return [EOT if i == eot else writer.tokenizer.decode([i]) for i in ids]


@contextmanager
def neurons(model: GPT) -> Iterator[dict[int, Tensor]]:
    """In this context each forward pass leaves layer -> the MLP's activations, (b, t, d_ff)."""
    seen: dict[int, Tensor] = {}

    def hook(layer: int):
        return lambda _, inputs: seen.__setitem__(layer, inputs[0])

    handles = [block.mlp.c_proj.register_forward_pre_hook(hook(i))
               for i, block in enumerate(model.h)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# -- over many texts -----------------------------------------------------------------------------

def batches(writer: Writer, texts: Iterable[str]) -> Iterator[tuple[list[list[int]], Tensor]]:
    """Texts as ids, an end-of-text before each and cut at the model's context, and padded after
    their end as a tensor (b, t). Raises UserError where there are none."""
    device, block = writer.model.wte.weight.device, writer.model.config.block_size
    eot = writer.tokenizer.eot
    rows = [[eot, *writer.tokenizer.encode(text)][:block] for text in texts]
    if not rows:
        raise UserError("no texts to read")
    at_once = max(1, BATCH_TOKENS // block)
    for i in range(0, len(rows), at_once):
        part = rows[i:i + at_once]
        longest = max(map(len, part))
        yield part, torch.tensor([row + [eot] * (longest - len(row)) for row in part],
                                 device=device)


@torch.inference_mode()
def head_table(model: Writer | str | Path, texts: Iterable[str]) -> pd.DataFrame:
    """What every head looks at, a row each, means over all positions that see CONTEXT tokens.

    spread: entropy / entropy of uniform attention; first: share on the end-of-text before the story
    (where heads look that have nothing to say); distance, at_distance: the distance with the
    largest mean share, and that share (0: the token itself). The paper's distance-based heads have
    a large at_distance; those that follow meaning have not. Raises UserError: no text so long."""
    writer = opened(model)
    config = writer.model.config
    shape, block = (config.n_layer, config.n_head), config.block_size
    sums = torch.zeros(3, *shape, dtype=torch.float64)             # entropy, uniform, first
    at = torch.zeros(*shape, block, dtype=torch.float64)           # by distance
    counts = torch.zeros(block, dtype=torch.float64)               # positions that reach so far

    for rows, idx in batches(writer, texts):
        real = torch.tensor([len(row) for row in rows])
        t = idx.shape[1]
        rank = torch.arange(t)
        count = (rank[None] < real[:, None]) & (rank[None] >= CONTEXT - 1)          # (b, t)
        for distance in range(t):
            counts[distance] += count[:, distance:].sum()
        uniform = (count * (rank + 1.0).log()).sum()

        def see(layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
            p = attention_weights(q, k, writer.model.h[layer].attn.scale).cpu()     # (b, h, t, t)
            p = p * count[:, None, :, None]
            sums[0, layer] += torch.special.entr(p).sum((0, 2, 3))
            sums[1, layer] += uniform
            p = p.sum(0)                                                            # (h, t, t)
            sums[2, layer] += p[..., 0].sum(1)
            for distance in range(t):
                at[layer, :, distance] += p.diagonal(-distance, 1, 2).sum(1)

        with attending(writer.model, see):
            writer.model.hidden(idx)
    if not counts[0]:
        raise UserError(f"no text has {CONTEXT} tokens: nothing to look back at")
    # few positions reach the farthest distances: a mean of few would win by chance
    means = (at / counts.clamp(min=1)).where(counts >= counts[0] / 4, 0.0)
    share, distance = means.max(-1)
    columns = {"spread": sums[0] / sums[1], "first": sums[2] / counts[0], "distance": distance,
               "at_distance": share}
    index = pd.MultiIndex.from_product(map(range, shape), names=["layer", "head"])
    return pd.DataFrame({k: v.flatten().numpy() for k, v in columns.items()}, index).reset_index()


@torch.inference_mode()
def neuron_tokens(model: Writer | str | Path, texts: Iterable[str], layer: int, n: int = 6,
                  around: int = 8) -> pd.DataFrame:
    """The tokens that excite each neuron of a layer most, of n different texts, a row each.

    Columns: layer, neuron, rank (0: the strongest), activation, peak (activation / rms over all
    tokens: how special the token is to the neuron), text (its number), position (from 0), token;
    tokens and activations: those around it, as lists. The end-of-text before a text is left out.
    Raises UserError: no such layer, no texts."""
    writer = opened(model)
    if not 0 <= layer < writer.model.config.n_layer:
        raise UserError(f"layer={layer}: this model has layers 0 to "
                        f"{writer.model.config.n_layer - 1}")
    offsets = torch.arange(-around, around + 1)
    squares, total, stories, best = 0.0, 0, [], None
    for rows, idx in batches(writer, texts):
        with neurons(writer.model) as seen:
            writer.model.hidden(idx)
        real = torch.tensor([len(row) for row in rows])[:, None] > torch.arange(idx.shape[1])
        real[:, 0] = False
        acts = seen[layer].float().cpu()                                     # (b, t, f)
        squares = squares + (acts.square() * real[..., None]).sum((0, 1)).double()
        total += int(real.sum())
        top, at = acts.masked_fill(~real[..., None], -torch.inf).max(1)      # (b, f) each
        value, story = top.topk(min(n, len(top)), dim=0)                     # (n, f)
        position = at.gather(0, story)
        place = position[..., None] + offsets                                # (n, f, w)
        inside = (place >= 1) & (place < idx.shape[1])
        place = place.clamp(0, idx.shape[1] - 1)
        near = acts[story[..., None], place, torch.arange(acts.shape[2])[:, None]]
        near = near.where(inside & real[story[..., None], place], torch.nan)
        found = (value, story + len(stories), position, near)
        stories += rows
        if best is not None:
            joined = [torch.cat(pair) for pair in zip(best, found)]
            order = joined[0].topk(min(n, len(joined[0])), dim=0).indices
            found = [j.gather(0, order) for j in joined[:3]] + [
                joined[3].gather(0, order[..., None].expand(-1, -1, len(offsets)))]
        best = found
    return neuron_rows(writer, layer, stories, best, (squares / max(total, 1)).sqrt())


def neuron_rows(writer: Writer, layer: int, stories: list[list[int]], best: Sequence[Tensor],
                rms: Tensor) -> pd.DataFrame:
    """The table of neuron_tokens. best: (n, f) activation, story, position, and (n, f, w) around;
    rms: (f,)."""
    value, story, position, near = (z.transpose(0, 1).numpy() for z in best)  # (f, n), (f, n, w)
    around, rows = near.shape[2] // 2, []
    words = {s: words_of(writer, stories[s]) for s in np.unique(story).tolist()}
    for neuron, rank in np.ndindex(value.shape):
        if not np.isfinite(value[neuron, rank]):                # a text without a token
            continue
        p, s = int(position[neuron, rank]), int(story[neuron, rank])
        kept = np.isfinite(near[neuron, rank])
        rows.append({
            "layer": layer, "neuron": neuron, "rank": rank, "activation": value[neuron, rank],
            "peak": value[neuron, rank] / max(rms[neuron].item(), 1e-30), "text": s,
            "position": p - 1, "token": words[s][p],
            "tokens": [words[s][p + i - around] for i in np.flatnonzero(kept)],
            "activations": near[neuron, rank][kept].tolist()})
    return pd.DataFrame(rows)


def sharpest(table: pd.DataFrame, n: int = 6) -> list[int]:
    """The n neurons of neuron_tokens that stand out most in all of their texts: the smallest peak
    decides. Neurons that never reach a tenth of the layer's highest activation are left out: almost
    dead, they stand out of nothing."""
    by = table.groupby("neuron")
    alive = by["activation"].max() >= table["activation"].max() / 10
    return by["peak"].min()[alive].nlargest(n).index.tolist()


# -- a model to look into ------------------------------------------------------------------------

def model_of(runs: pd.DataFrame, train_tokens: int = 200_000) -> tuple[Writer, dict, str]:
    """(a model, its resolved spec, its name): of these runs the one with the lowest loss that has
    checkpoints on this machine; where none has, a small one trained here, and a line says so.

    runs: of load_runs. Raises UserError where the training fails."""
    from analysis.runs import folder_of, load_spec_of
    for _, row in runs.sort_values("loss").iterrows():
        if list(folder_of(row["where"]).glob("checkpoints/*.pt")):
            return load(folder_of(row["where"])), load_spec_of(row), row["run"]
    say(f"none of these {len(runs)} runs has checkpoints here: a small model is trained instead, "
        f"on {train_tokens:,} tokens of fables")
    return small_model(train_tokens)


def small_model(train_tokens: int) -> tuple[Writer, dict, str]:
    """Train 2 layers of width 64 on fables in a folder that is gone afterwards."""
    from analysis.runs import load_runs, load_spec_of
    with TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "run.py", "experiments/modern.yaml", "--model.n_layer=2",
             "--model.n_head=4", "--model.n_embd=64", "--data.tokenizer=bpe:512",
             "--data.fables.stories=4000", "--data.fables.facts=300", "--data.eval_tokens=5000",
             "--train.batch_tokens=512", f"--train.tokens={train_tokens}",
             "--train.eval_interval=0", "--sample.prompts=[]", "--track.wandb=disabled",
             "--track.name=small", f"--track.dir={home}/runs", f"--data.cache={home}/data"],
            cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"the small model could not be trained: {done.stderr.strip()[-400:]}")
        row = load_runs(f"{home}/runs").iloc[0]
        return load(f"{home}/runs/{row['run']}"), load_spec_of(row), row["run"]
