"""What a model costs before it is built: parameters by role, FLOPs per token under every published
convention, memory of a training step. No torch in here.

Default convention: parameters that do matrix work (blocks + head, the head once whether tied or
not), and the exact FLOPs of every matrix product of forward and backward. With a large vocabulary
the others differ by up to 20x (see flops_per_token), enough to bend a scaling exponent.
"""
from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import ceil, prod

from slm.shape import GPTConfig

ROLES = ("wte", "wpe", "attn", "mlp", "norms", "biases", "lm_head")
BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
LARGE_VOCAB = 16_384                 # from here on a CPU takes the chunked loss
CPU_CHUNK = 768                      # tokens; each chunk reads and writes the head's gradient
GPU_CHUNK = 4096                     # fills a GPU; 0.8 GB of float32 logits at a 50k vocabulary
CPU_EVAL, GPU_EVAL = 2048, 8192      # tokens of an evaluation's batch, padding included
RUNTIME_BYTES = 305_000_000          # Python with torch, the tokenizer, the plot, their buffers
HEAP_SLACK = 1.35                    # what a tuned malloc (slm/device.py) keeps between blocks


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


@lru_cache(maxsize=4096)
def _count_roles(config: GPTConfig) -> tuple[tuple[str, int], ...]:
    """(role, parameters) of each role; a sweep's plan asks for one shape many times."""
    def count(layers: int) -> dict[str, int]:
        counts = dict.fromkeys(ROLES, 0)
        for name, shape in parameter_shapes(replace(config, n_layer=layers)).items():
            counts[role_of(name)] += prod(shape)
        return counts

    none, one = count(0), count(1)                       # all layers are alike
    return tuple((role, none[role] + config.n_layer * (one[role] - none[role])) for role in ROLES)


def count_params(config: GPTConfig) -> dict[str, int]:
    """Parameters by role.

    Returns the ROLES (they sum to `total`; `norms` are gains, `biases` all biases, `lm_head` is 0
    when tied), and derived: `total`; `non_embedding` (total without wte and wpe); `blocks`
    (attn + mlp, Kaplan's N); `matmul` (blocks + one head, tied or not: this project's N).
    """
    counts = dict(_count_roles(config))
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


def auto_loss(device_type: str, vocab_size: int) -> str:
    """The loss implementation that `device.loss: auto` takes (slm/loss.py): 'chunked' on a CPU with
    a large vocabulary, where the full logits cost page faults and a gigabyte, else 'plain'."""
    return "chunked" if device_type == "cpu" and vocab_size >= LARGE_VOCAB else "plain"


def chunk_tokens(tokens: int, device_type: str) -> int:
    """Tokens whose logits the chunked loss holds at once: equal chunks, as few as the device's
    limit allows."""
    chunks = ceil(tokens / (CPU_CHUNK if device_type == "cpu" else GPU_CHUNK))
    return ceil(tokens / chunks)


def eval_tokens(device_type: str) -> int:
    """Tokens, padding included, that an evaluation reads at once: enough to fill the device."""
    return CPU_EVAL if device_type == "cpu" else GPU_EVAL


def saved_floats(config: GPTConfig, device: str = "cpu") -> int:
    """Numbers that one block keeps per token for its backward pass, counted op by op."""
    d, f, dropout = config.n_embd, config.d_ff, config.dropout > 0
    attention = 7 * d                          # x, its norm, q k v, output of attention, x + f
    attention += 3 * d if config.position == "rope" else 0       # rotated q and k, a reordered copy
    attention += 2 * d if config.qk_norm else 0
    if dropout and device != "cuda":           # only CUDA's fused kernels know dropout
        attention += 3 * config.n_head * config.block_size
    mlp = d + (4 * f if config.activation == "swiglu" else 2 * f)
    return attention + mlp + (2 * d if dropout else 0)


def memory_bytes(config: GPTConfig, micro_batch: int, dtype: str = "fp32", optimizer: str = "adamw",
                 loss_impl: str = "auto", device: str = "cpu") -> dict[str, int]:
    """Estimated peak memory of training: resident set of the process on CPU, allocator on CUDA.

    micro_batch: sequences per forward pass. dtype: 'fp32', 'tf32', or 'bf16' / 'fp16' autocast.
    loss_impl: as slm/loss.py. Returns parts, and `total` at the worst moment, evaluation included:
    the parts never all exist at once (logits are gone before the first gradient is whole).
    `runtime` is Python with torch.
    On Linux within 5 % of the peak resident set of whole runs, for ten shapes of all presets from
    0.3 to 1.2 GB (`python -m benchmarks growth`); a plain loss at a large vocabulary takes an
    eighth more, device.malloc=false less.
    """
    counts, tokens = count_params(config), micro_batch * config.block_size
    d, v, width = config.n_embd, config.vocab_size, BYTES[dtype]
    weights, low = 4 * counts["total"], width < 4
    hidden = 4 * (counts["attn"] + counts["mlp"])
    states = 2 * weights - (hidden if optimizer == "muon" else 0)
    saved = saved_floats(config, device)
    activations = tokens * (config.n_layer * saved * width
                            + (2 * config.n_layer * d * 4 if low else 0) + 3 * d * 4)
    if (auto_loss(device, v) if loss_impl == "auto" else loss_impl) == "plain":
        logits = tokens * v * (12 + (2 * width if low else 0))   # log-softmax and two gradients
    else:
        logits = chunk_tokens(tokens, device) * v * (4 + (2 * width if low else 0))
        logits += 4 * v * d                         # the head's gradient
    block_backward = tokens * width * (2 * config.d_ff + 6 * d)   # gradients inside the last block
    largest = 4 * v * d if config.tied else 0       # the head's and the embedding's gradient meet
    newton_schulz = hidden if optimizer == "muon" else 0
    casts = width * (counts["matmul"] if low else 0)              # autocast's copies of the weights
    read = max(eval_tokens(device), config.block_size)
    evaluation = read * width * (6 * d + 3 * config.d_ff)         # nothing is kept for a backward
    evaluation += chunk_tokens(read, device) * v * (4 + (width if low else 0))
    worst = max(activations + casts + max(logits, block_backward),
                weights + largest + tokens * width * saved, weights + newton_schulz,
                evaluation + casts)
    runtime, slack = (RUNTIME_BYTES, HEAP_SLACK) if device == "cpu" else (0, 1.0)
    return {"weights": weights, "gradients": weights, "optimizer": states,
            "activations": activations, "logits": logits, "runtime": runtime,
            "total": runtime + weights + states + int(slack * worst)}
