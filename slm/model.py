"""A GPT: GPT-2 as in nanoGPT, with switches for a modern one.

Letters of every shape comment and einops pattern:
    b batch · t time · d width (n_embd) · h heads · k head size · f MLP width (d_ff) · v vocabulary
    s time of the keys: what the cache holds and the t new positions

The `gpt2` shape is nanoGPT's, parameter for parameter: LayerNorm, exact (erf) GELU, learned
positions, tied head, projections into the residual stream initialised with std / sqrt(2 n_layer).
OpenAI's weights were trained with the tanh approximation of GELU, `activation: gelu_tanh`.
Parameter names are GPT-2's: slm/hf.py maps them to transformers' and back.

How initial weights and multipliers follow width and depth is in slm/parametrization.py.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from slm.cost import count_params
from slm.errors import ImpossiblePoint
from slm.loss import lm_loss
from slm.parametrization import group_of, multipliers, rules
from slm.shape import GPTConfig


class KVCache:
    """Keys and values of the tokens a model has seen, so that each is computed once.

    size: tokens it can hold (at most the model's block_size). pad: (b,) how many padding tokens
    stand before each row's own, for a batch of unequal prompts; None: none.
    """

    def __init__(self, size: int, pad: Tensor | None = None) -> None:
        self.size, self.pad, self.length = size, pad, 0
        self._padding_bias: Tensor | None = None
        self.layers: list[Tensor] = []                       # keys and values, (2, b, h, size, k)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of new tokens, (b, h, t, k); return all so far, (b, h, s, k)."""
        end = self.length + k.shape[2]
        if layer == len(self.layers):                        # dtype and device as the first keys'
            self.layers.append(k.new_empty(2, *k.shape[:2], self.size, k.shape[3]))
        kv = self.layers[layer]
        kv[0, :, :, self.length:end], kv[1, :, :, self.length:end] = k, v
        return kv[0, :, :, :end], kv[1, :, :, :end]

    def positions(self, t: int, device: torch.device) -> Tensor:
        """Position of each of t new tokens in its row, (b or 1, t)."""
        columns = torch.arange(self.length, self.length + t, device=device)[None]
        return columns if self.pad is None else (columns - self.pad[:, None]).clamp(min=0)

    def mask(self, t: int, device: torch.device) -> Tensor | None:
        """Which keys each of t new tokens may see, (b or 1, 1, t, s); None: plain causal."""
        if self.pad is None and (self.length == 0 or t == 1):
            return None
        query = torch.arange(self.length, self.length + t, device=device)[:, None]
        key = torch.arange(self.length + t, device=device)
        seen = (key <= query)[None, None]
        if self.pad is not None:                             # padding sees itself: no empty softmax
            seen = seen & ((key >= self.pad[:, None, None, None]) | (key == query))
        return seen

    def padding_bias(self, n_head: int) -> Tensor | None:
        """What hides the padding when it is added to the scores of one new token, a token's key at
        0 and padding's at -inf, (b h, 1, size); None: there is none. Made once."""
        if self.pad is not None and self._padding_bias is None:
            hidden = torch.arange(self.size, device=self.pad.device) < self.pad[:, None]  # (b, s)
            bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -torch.inf)
            self._padding_bias = bias.repeat_interleave(n_head, dim=0)[:, None]
        return self._padding_bias

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these, (n,) int64."""
        self.layers = [kv[:, rows] for kv in self.layers]
        self.pad = None if self.pad is None else self.pad[rows]
        self._padding_bias = None


def rotary_table(config: GPTConfig, base: float = 10000.0) -> Tensor:
    """Cosine and sine of position * base^(-2i/k) for pair i, (2, block_size, k/2)."""
    if config.head_size % 2:
        raise ImpossiblePoint(f"model.position=rope turns pairs of dimensions: head size "
                              f"{config.head_size} (n_embd / n_head) must be even")
    frequency = base ** (-torch.arange(0, config.head_size, 2) / config.head_size)
    angle = torch.outer(torch.arange(config.block_size), frequency)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + k/2) of x (b, h, t, k) by the angle of its position, so that q.k
    depends on distance alone (RoPE, Su et al. 2021, arXiv 2104.09864; halves as in Llama)."""
    cos, sin = rotary                                        # (b or 1, 1, t, k/2)
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).type_as(x)


class Linear(nn.Linear):
    """Without its own initialisation, which would draw from the global generator (torch's skip_init
    does the same and takes a second to import torch's compiler)."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """The same for an embedding."""

    def reset_parameters(self) -> None:
        pass


def norm(config: GPTConfig) -> nn.Module:
    """LayerNorm as in GPT-2, or RMSNorm without gains."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=1e-6, elementwise_affine=False)
    return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)


class Attention(nn.Module):
    """Causal self-attention with h heads."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head, self.qk_norm = layer, config.n_head, config.qk_norm
        self.scale, self.dropout = multipliers(config).attention, config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def heads(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        """Queries, keys and values of x (b, t, d) as the softmax meets them, (b, h, t, k) each."""
        q, k, v = (rearrange(z, "b t (h k) -> b h t k", h=self.n_head)
                   for z in self.c_attn(x).chunk(3, dim=-1))
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:], eps=1e-6), F.rms_norm(k, k.shape[-1:], eps=1e-6)
        return q, k, v

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None,
                cache: KVCache | None) -> Tensor:
        """x (b, t, d) -> (b, t, d)."""
        q, k, v = self.heads(x, rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)            # (b, h, s, k)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0)
        y = rearrange(y, "b h t k -> b t (h k)")
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """With GELU (exact or its tanh approximation), ReLU^2 (So et al. 2021, arXiv 2109.08668) or
    SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        up = 2 * config.d_ff if config.activation == "swiglu" else config.d_ff
        self.c_fc = Linear(config.n_embd, up, config.bias)
        self.c_proj = Linear(config.d_ff, config.n_embd, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, t, d) -> (b, t, d)."""
        return self.dropout(self.c_proj(self.activate(self.c_fc(x))))

    def activate(self, x: Tensor) -> Tensor:
        """What c_fc gives, (..., f), SwiGLU: (..., 2 f) -> what c_proj reads, (..., f)."""
        if self.activation == "swiglu":
            gate, x = x.chunk(2, dim=-1)
            return F.silu(gate) * x
        return F.relu(x).square() if self.activation == "relu2" else \
            F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")


class Block(nn.Module):
    """x + attention, then x + MLP, each after its norm."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.residual = multipliers(config).residual
        self.ln_1 = norm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None,
                cache: KVCache | None) -> Tensor:
        """x (b, t, d) -> (b, t, d)."""
        x = torch.add(x, self.attn(self.ln_1(x), rotary, mask, cache), alpha=self.residual)
        return torch.add(x, self.mlp(self.ln_2(x)), alpha=self.residual)


class GPT(nn.Module):
    """The model. `GPT(config)` has the same weights whatever the device: they are drawn on
    the CPU from `generator` (default: a fresh one, seed 0), never from the global one."""

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.loss_impl = "plain"                             # see slm/loss.py
        factor = multipliers(config)
        self.embedding_mult, self.logits_mult = factor.embedding, factor.logits
        d = config.n_embd
        self.wte = Embedding(config.vocab_size, d)
        if config.position == "learned":
            self.wpe = Embedding(config.block_size, d)
        else:
            self.register_buffer("rotary", rotary_table(config), persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = norm(config)
        if not config.tied:
            self.lm_head = Linear(d, config.vocab_size, bias=False)
        self.init_weights(generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal matrices with the std of their group, gains 1, biases 0."""
        rule = rules(self.config)
        for name, p in self.named_parameters():
            if p.ndim == 1:
                p.fill_(0.0 if name.endswith(".bias") else 1.0)
            else:
                p.normal_(0.0, rule[group_of(name)].init_std, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """The output head, (v, d): the embedding itself where tied."""
        return self.wte.weight if self.config.tied else self.lm_head.weight

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Token ids (b, t) -> what the head reads (b, t, d). With a cache, ids are the new ones."""
        t, block_size = idx.shape[1], self.config.block_size
        seen, room = (0, block_size) if cache is None else (cache.length, cache.size)
        if seen + t > min(room, block_size):
            raise ValueError(f"{seen + t} tokens don't fit: block_size is {block_size}"
                             + (f", the cache holds {room}" if cache is not None else ""))
        if cache is None:
            positions, mask = torch.arange(t, device=idx.device)[None], None
        else:
            positions, mask = cache.positions(t, idx.device), cache.mask(t, idx.device)
        x, rotary = self.wte(idx), None                      # (b, t, d)
        if self.config.position == "learned":
            x = x + self.wpe(positions)
        else:
            cos, sin = rearrange(self.rotary[:, positions], "two b t k -> two b 1 t k")
            rotary = cos, sin
        x = self.drop(x * self.embedding_mult if self.embedding_mult != 1 else x)
        for block in self.h:
            x = block(x, rotary, mask, cache)
        if cache is not None:
            cache.length += t
        return self.ln_f(x)

    def logits(self, h: Tensor) -> Tensor:
        """What `hidden` returned, (b, t, d) -> logits (b, t, v)."""
        return F.linear(h * self.logits_mult if self.logits_mult != 1 else h, self.head_weight)

    def forward(self, idx: Tensor, targets: Tensor | None = None, reduction: str = "mean",
                cache: KVCache | None = None) -> Tensor:
        """Logits, or with targets the loss.

        idx: (b, t) int64, t <= block_size (else ValueError). targets: (b, t) int64, -1 ignored.
        reduction: 'mean' over counted targets or 'none'. cache: idx continues what it holds.
        Returns logits (b, t, v), or the loss in nats per token, float32: scalar or (b, t).
        """
        h = self.hidden(idx, cache)
        if targets is None:
            return self.logits(h)
        return lm_loss(h, self.head_weight, targets, self.loss_impl, reduction, self.logits_mult)

    def num_params(self) -> dict[str, int]:
        """Parameters by role (slm.cost.count_params), checked against the real tensors."""
        counts, real = count_params(self.config), sum(p.numel() for p in self.parameters())
        assert counts["total"] == real, f"slm/cost.py says {counts['total']}, the model has {real}"
        return counts
