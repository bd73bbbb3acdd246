"""The shape of a GPT: everything that fixes its parameters and its FLOPs. No torch in here, so
that a plan of a thousand models is made in milliseconds."""
from __future__ import annotations

from dataclasses import dataclass

# What a preset says of each switch; a key set in the spec wins over its preset.
PRESETS: dict[str, dict] = {
    "gpt2": dict(norm="layernorm", position="learned", activation="gelu", qk_norm=False,
                 tied=True, zero_init=False, bias=True),
    "modern": dict(norm="rmsnorm", position="rope", activation="relu2", qk_norm=True,
                   tied=False, zero_init=True, bias=False),
    "llama": dict(norm="rmsnorm", position="rope", activation="swiglu", qk_norm=False,
                  tied=False, zero_init=False, bias=False),
}


def round_up(x: float, multiple: int) -> int:
    """The smallest multiple of `multiple` that is >= x."""
    return int(-(-x // multiple) * multiple)


def padded_vocab(n_vocab: int) -> int:
    """Vocabulary padded to a multiple of 64: matrix kernels are up to 25 % faster there
    (nanoGPT, 50257 -> 50304). Padded ids are never sampled."""
    return round_up(n_vocab, 64)


def default_d_ff(n_embd: int, activation: str) -> int:
    """MLP width: 4 d (GPT-2), or 8/3 d rounded to 64 for SwiGLU, which has three matrices
    (Shazeer 2020, arXiv 2002.05202)."""
    return round_up(8 * n_embd / 3, 64) if activation == "swiglu" else 4 * n_embd


@dataclass(frozen=True)
class GPTConfig:
    """All that GPT(config) needs. Names as in nanoGPT's GPTConfig, then the modern switches."""
    n_layer: int = 4
    n_head: int = 8
    n_embd: int = 256
    block_size: int = 128
    vocab_size: int = 50304          # padded, see padded_vocab
    dropout: float = 0.0
    bias: bool = True                # biases in Linear and LayerNorm, as in GPT-2
    norm: str = "layernorm"          # layernorm | rmsnorm (without gains)
    position: str = "learned"        # learned | rope
    activation: str = "gelu"         # gelu | gelu_tanh | relu2 | swiglu
    qk_norm: bool = False            # RMS-normalise queries and keys per head
    tied: bool = True                # output head shares the token embedding
    zero_init: bool = False          # residual projections (and an untied head) start at zero
    d_ff: int = 0                    # 0: default_d_ff
    init_std: float = 0.02
    parametrization: str = "sp"      # sp | mup | completep
    base_width: int = 256            # n_embd and n_layer at which all parametrizations agree
    base_depth: int = 4
    base_head_size: int = 0          # head size at which attention scales agree; 0: this model's
    input_mult: float = 1.0          # alpha_in, alpha_out of muP
    output_mult: float = 1.0

    def __post_init__(self) -> None:
        if self.d_ff == 0:
            object.__setattr__(self, "d_ff", default_d_ff(self.n_embd, self.activation))
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head
