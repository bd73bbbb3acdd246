"""One more token of every text: the function of GPT.hidden and GPT.logits with a cache, for a
single position.

At one position a call costs as much as its arithmetic, and the arithmetic as much as the reading of
its weights. So there is no mask but for padding, nothing is rearranged over time, queries, keys and
values stay in one tensor, and on a CPU the weights are laid out as they are read fastest. Shapes
are written in the letters of slm/model.py; norms, activations and rotation are the model's own.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model import GPT, Block, KVCache, rotate
from slm.shape import round_up

BLOCK_FLOATS = 100_000   # 400 kB: a block of the head stays in a core's second-level cache


def times(weight: Tensor) -> Tensor:
    """A Linear's weight (out, in) as the W of x @ W, (in, out).

    On a CPU one row times a matrix goes twice as fast with the longer side contiguous, which takes
    a copy where out > in."""
    w = weight.t()
    return w.contiguous() if weight.device.type == "cpu" and w.shape[1] > w.shape[0] else w


class Head:
    """h (b, d) -> h @ weight.t() (b, v), weight (v, d).

    On a CPU it is multiplied in blocks of the vocabulary. With several rows a matrix product first
    packs what it reads, and a whole packed head falls out of the cache; with one row it would read
    the head on one thread alone, and a block for each thread keeps them all reading."""

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.vocab_size, d = weight.shape
        self.blocks = self.weight = None
        if weight.device.type != "cpu":
            self.weight = weight.t()
            return
        n = torch.get_num_threads() if rows == 1 else -(-weight.numel() // BLOCK_FLOATS)
        c = round_up(self.vocab_size / n, 16)
        weight = F.pad(weight, (0, 0, 0, -self.vocab_size % c))
        self.blocks = weight.view(-1, c, d).transpose(1, 2).contiguous()          # (v / c, d, c)

    def __call__(self, h: Tensor) -> Tensor:
        if self.weight is not None:
            return h @ self.weight
        parts = torch.bmm(h.expand(len(self.blocks), *h.shape), self.blocks)      # (v / c, b, c)
        return parts.transpose(0, 1).reshape(len(h), -1)[:, :self.vocab_size]


class Layer:
    """A block's weights and the functions of its norms and its activation."""

    def __init__(self, block: Block) -> None:
        attn, mlp = block.attn, block.mlp
        self.ln_1, self.ln_2, self.activate = block.ln_1.forward, block.ln_2.forward, mlp.activate
        self.qkv, self.qkv_bias = times(attn.c_attn.weight), attn.c_attn.bias
        self.out, self.out_bias = times(attn.c_proj.weight), attn.c_proj.bias
        self.up, self.up_bias = times(mlp.c_fc.weight), mlp.c_fc.bias
        self.down, self.down_bias = times(mlp.c_proj.weight), mlp.c_proj.bias


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def add_branch(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, factor: float) -> None:
    """x += factor * (y @ weight + bias), in place."""
    x.addmm_(y, weight, alpha=factor)
    if bias is not None:
        x.add_(bias, alpha=factor)


class Decoder:
    """A model's weights as they are now, for up to `rows` texts at once.

    On a CPU most of them are copied, which takes as long as a few tokens."""

    def __init__(self, model: GPT, rows: int) -> None:
        config = model.config
        self.model, self.h, self.k = model, config.n_head, config.head_size
        self.rope, self.qk_norm = config.position == "rope", config.qk_norm
        self.scale, self.residual = model.h[0].attn.scale, model.h[0].residual
        self.layers = [Layer(block) for block in model.h]
        self.head = Head(model.head_weight, rows)
        self.nothing = model.wte.weight.new_empty(1, 1, 1)

    def logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Token ids (b,) that continue what the cache holds -> logits of the next, (b, v)."""
        model, b, end = self.model, len(ids), cache.length + 1
        positions = cache.positions(1, ids.device)[:, 0]                     # (b or 1,)
        x, rotary = F.embedding(ids, model.wte.weight), None                 # (b, d)
        if self.rope:
            cos, sin = model.rotary[:, positions, None, None]                # (b or 1, 1, 1, k/2)
            rotary = cos, sin
        else:
            x += F.embedding(positions, model.wpe.weight)
        if model.embedding_mult != 1:
            x *= model.embedding_mult
        padding = cache.padding_bias(self.h)                                 # (b h, 1, size)
        for layer, kv in zip(self.layers, cache.layers, strict=True):        # (2, b, h, size, k)
            qkv = affine(layer.ln_1(x), layer.qkv, layer.qkv_bias).view(b, 3, self.h, self.k)
            q, new = self.turned(qkv, rotary)
            kv[:, :, :, cache.length] = new.transpose(0, 1)
            keys, values = kv.view(2, b * self.h, cache.size, self.k)[:, :, :end].unbind()
            seen = self.nothing if padding is None else padding[:, :, :end]
            scores = torch.baddbmm(seen, q, keys.transpose(1, 2), alpha=self.scale,
                                   beta=0 if padding is None else 1)         # (b h, 1, s)
            y = torch.bmm(scores.softmax(dim=-1), values).view(b, -1)        # (b, d)
            add_branch(x, y, layer.out, layer.out_bias, self.residual)
            y = layer.activate(affine(layer.ln_2(x), layer.up, layer.up_bias))           # (b, f)
            add_branch(x, y, layer.down, layer.down_bias, self.residual)
        cache.length = end
        x = model.ln_f.forward(x)
        return self.head(x * model.logits_mult if model.logits_mult != 1 else x)

    def turned(self, qkv: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """(b, 3, h, k) -> queries (b h, 1, k) and keys with values (b, 2, h, k), each turned to its
        position and normalised as the model does."""
        if rotary is not None or self.qk_norm:
            qk, v = qkv[:, :2], qkv[:, 2:]
            qk = qk if rotary is None else rotate(qk, rotary)
            qk = F.rms_norm(qk, qk.shape[-1:], eps=1e-6) if self.qk_norm else qk
            qkv = torch.cat((qk, v), dim=1)
        return qkv[:, 0].reshape(-1, 1, self.k), qkv[:, 1:]
