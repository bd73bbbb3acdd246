"""What a model costs before it is built: parameters by role, FLOPs per token under every published
convention, memory of a training step. No torch in here.

Default convention: parameters that do matrix work (blocks + head, the head once whether tied or
not), and the exact FLOPs of every matrix product of forward and backward. With a large vocabulary
the others differ by up to 20x (see flops_per_token), enough to bend a scaling exponent.
"""
from __future__ import annotations

from math import prod

from slm.parametrization import MUON_GROUPS, group_of
from slm.shape import GPTConfig

ROLES = ("wte", "wpe", "attn", "mlp", "norms", "biases", "lm_head")
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def parameter_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of GPT(config), in the model's own order."""
    d, f = config.n_embd, config.d_ff
    up = 2 * f if config.activation == "swiglu" else f       # gate and value side by side

    def linear(name: str, n_in: int, n_out: int) -> dict:
        bias = {f"{name}.bias": (n_out,)} if config.bias else {}
        return {f"{name}.weight": (n_out, n_in)} | bias

    def norm(name: str) -> dict:
        if config.norm == "rmsnorm":
            return {}
        return {f"{name}.weight": (d,)} | ({f"{name}.bias": (d,)} if config.bias else {})

    shapes = {"wte.weight": (config.vocab_size, d)}
    if config.position == "learned":
        shapes["wpe.weight"] = (config.block_size, d)
    for i in range(config.n_layer):
        block = f"h.{i}"
        shapes |= norm(f"{block}.ln_1")
        shapes |= linear(f"{block}.attn.c_attn", d, 3 * d) | linear(f"{block}.attn.c_proj", d, d)
        shapes |= norm(f"{block}.ln_2")
        shapes |= linear(f"{block}.mlp.c_fc", d, up) | linear(f"{block}.mlp.c_proj", f, d)
    shapes |= norm("ln_f")
    return shapes if config.tied else shapes | {"lm_head.weight": (config.vocab_size, d)}


def role_of(name: str) -> str:
    """The role of a parameter, by its name in the state dict: one of ROLES."""
    first = name.split(".")[0]
    if first in ("wte", "wpe", "lm_head"):
        return first
    if name.endswith(".bias"):
        return "biases"
    return "attn" if ".attn." in name else "mlp" if ".mlp." in name else "norms"


def count_params(config: GPTConfig) -> dict[str, int]:
    """Parameters by role.

    Returns the ROLES (they sum to `total`; `norms` are gains, `biases` all biases, `lm_head` is 0
    when tied), and derived: `total`; `non_embedding` (total without wte and wpe); `blocks`
    (attn + mlp, Kaplan's N); `matmul` (blocks + one head, tied or not: this project's N).
    """
    counts = dict.fromkeys(ROLES, 0)
    for name, shape in parameter_shapes(config).items():
        counts[role_of(name)] += prod(shape)
    total, blocks = sum(counts.values()), counts["attn"] + counts["mlp"]
    return counts | {
        "total": total,
        "non_embedding": total - counts["wte"] - counts["wpe"],
        "blocks": blocks,
        "matmul": blocks + config.vocab_size * config.n_embd,
    }


def forward_flops(config: GPTConfig, block_size: int | None = None) -> dict[str, int]:
    """Exact matrix FLOPs of the forward pass per token, by part; backward costs twice as much.

    block_size: tokens of context (default: the model's). `attention` counts every (query, key)
    pair, as kernels without a causal shortcut compute them; `attention_causal` only keys that a
    query may see, (T + 1) / 2 on average.
    """
    d, n_layer, t = config.n_embd, config.n_layer, block_size or config.block_size
    return {
        "blocks": 2 * count_params(config)["blocks"],
        "head": 2 * config.vocab_size * d,
        "attention": 4 * n_layer * d * t,                    # q.k and weights.v: 2 d t each
        "attention_causal": 2 * n_layer * d * (t + 1),
    }


def flops_per_token(config: GPTConfig, block_size: int | None = None) -> dict[str, int]:
    """Training FLOPs (forward and backward) per token under every convention in use.

    matmul            exact: all matrix products, head included, full attention (the default)
    causal            the same, counting only the attention that a causal mask leaves
    6N                6 x all parameters
    nanogpt           6 (N - wpe) + 12 L d T: nanoGPT estimate_mfu, PaLM appendix B
    kaplan            6 x block matrices: no embedding, no head (Kaplan et al. 2020)
    kaplan_context    the same + 6 L d T
    porian            6 (blocks + V d) (Porian et al. 2024, arXiv 2406.19146)
    porian_attention  the same + 6 L d T
    chinchilla_f      Hoffmann et al. 2022 appendix F: the embedding counts as a matrix product,
                      the softmax as 3 H T^2
    nanochat          6 x weights of nn.Linear + 12 L d T
    """
    n, part = count_params(config), forward_flops(config, block_size)
    d, n_layer, t = config.n_embd, config.n_layer, block_size or config.block_size
    weights, head = 6 * n["blocks"], 6 * config.vocab_size * d
    full, half = 12 * n_layer * d * t, 6 * n_layer * d * t
    return {
        "matmul": 3 * (part["blocks"] + part["head"] + part["attention"]),
        "causal": 3 * (part["blocks"] + part["head"] + part["attention_causal"]),
        "6N": 6 * n["total"],
        "nanogpt": 6 * (n["total"] - n["wpe"]) + full,
        "kaplan": weights,
        "kaplan_context": weights + half,
        "porian": weights + head,
        "porian_attention": weights + head + half,
        "chinchilla_f": weights + 2 * head + full + 9 * n_layer * config.n_head * t,
        "nanochat": weights + head + full,
    }
