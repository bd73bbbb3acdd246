"""How initial weights, learning rates and multipliers follow width and depth: sp, mup, completep.

With m = n_embd / base_width and l = n_layer / base_depth (muP: Yang et al. 2022, arXiv 2203.03466;
CompleteP at alpha = 1: Dey et al. 2025, arXiv 2505.01618, table 1; AdamW with decay lr * wd):

    tensor group              sp                   mup                     completep
    embedding   init std      s                    s                       s
                forward       x                    input_mult * x          input_mult * x
    matrix      init std      s                    s / sqrt(m)             s / sqrt(m)
                lr, wd, eps   1, 1, 1              1/m, m, 1/m             1/m, m, 1/(m l)
    projection  init std      s / sqrt(2 n_layer)  s / sqrt(2 n_layer m)   s / sqrt(2 base_depth m)
                lr, wd, eps   1, 1, 1              1/m, m, 1/m             1/m, m, 1/(m l)
                residual      x + f                x + f                   x + f / l
    vector      lr, wd, eps   1, 0, 1              1, 0, 1/m               1, 0, 1/(m l)
    final_norm  lr, wd, eps   1, 0, 1              1, 0, 1                 1, 0, 1
    head        init std      s                    s                       s
                lr, wd, eps   1, 1, 1              1, 1, 1                 1, 1, 1
                forward       logits               logits * output_mult/m  logits * output_mult/m
    attention   logits        q.k / sqrt(k)        q.k * sqrt(base k)/k    q.k * sqrt(base k)/k

vector: gains and biases of the blocks; k: head size. lr, wd and eps are factors on the spec's
values. A tied head is the embedding with the head's
forward rule. At the base shape (m = l = 1) every factor is exactly 1 and the three are the same run
bitwise; that is why completep, which drops GPT-2's 1/sqrt(2 n_layer), keeps the constant
1/sqrt(2 base_depth). d_ff is taken to grow with n_embd. Muon's matrices keep their learning rate
and decay at every width: orthogonalised updates already have the right size (Jordan 2024).
"""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod, sqrt

from slm.shape import GPTConfig

GROUPS = ("embedding", "head", "matrix", "projection", "vector", "final_norm")
MUON_GROUPS = ("matrix", "projection")


@dataclass(frozen=True)
class Multipliers:
    """Factors of the forward pass."""
    embedding: float   # of token + position embedding
    attention: float   # of q.k before the softmax
    residual: float    # of each block's two branches
    logits: float


@dataclass(frozen=True)
class Rule:
    """One tensor group: its initial standard deviation, and factors on the spec's lr, wd, eps."""
    init_std: float
    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


def group_of(name: str) -> str:
    """The tensor group of a parameter, by its name in the state dict."""
    if name.startswith(("wte.", "wpe.")):
        return "embedding"
    if name.startswith("lm_head."):
        return "head"
    if name.startswith("ln_f."):
        return "final_norm"
    if name.endswith(".bias") or ".ln_" in name:
        return "vector"
    return "projection" if name.endswith(".c_proj.weight") else "matrix"


def width_ratio(config: GPTConfig) -> float:
    """m of the table; 1 under sp."""
    return 1.0 if config.parametrization == "sp" else config.n_embd / config.base_width


def depth_ratio(config: GPTConfig) -> float:
    """l of the table; 1 unless completep."""
    completep = config.parametrization == "completep"
    return config.n_layer / config.base_depth if completep else 1.0


def multipliers(config: GPTConfig) -> Multipliers:
    """The forward multipliers of a model."""
    if config.parametrization == "sp":
        return Multipliers(1.0, config.head_size ** -0.5, 1.0, 1.0)
    base_head_size = config.base_head_size or config.head_size
    # (base/k) * base^-0.5, in this order, is bitwise k^-0.5 where k is the base head size
    attention = base_head_size / config.head_size * base_head_size ** -0.5
    return Multipliers(config.input_mult, attention, 1 / depth_ratio(config),
                       config.output_mult / width_ratio(config))


def rules(config: GPTConfig) -> dict[str, Rule]:
    """The rule of every tensor group, in the order of GROUPS."""
    m, std = width_ratio(config), config.init_std
    block_eps = 1 / (m * depth_ratio(config))
    depth = config.base_depth if config.parametrization == "completep" else config.n_layer
    start = 0.0 if config.zero_init else 1.0
    hidden = dict(lr=1 / m, weight_decay=m, eps=block_eps)
    return {
        "embedding": Rule(std),
        "head": Rule(std * start),
        "matrix": Rule(std / sqrt(m), **hidden),
        "projection": Rule(std / sqrt(m) / sqrt(2 * depth) * start, **hidden),
        "vector": Rule(0.0, weight_decay=0.0, eps=block_eps),
        "final_norm": Rule(0.0, weight_decay=0.0),
    }


def group_settings(config: GPTConfig, optim) -> dict[str, dict]:
    """What the optimiser is told for each tensor group.

    optim: the plan's `optim`. Returns {group: {optimizer, lr, weight_decay, eps}}, where
    eps is None for Muon.
    """
    settings = {}
    for group, rule in rules(config).items():
        if optim.name == "muon" and group in MUON_GROUPS:
            settings[group] = dict(optimizer="muon", lr=optim.muon_lr,
                                   weight_decay=optim.weight_decay, eps=None)
        else:
            settings[group] = dict(optimizer="adamw", lr=optim.lr * rule.lr,
                                   weight_decay=optim.weight_decay * rule.weight_decay,
                                   eps=optim.eps * rule.eps)
    return settings


def describe_groups(config: GPTConfig, optim) -> list[dict]:
    """A row per tensor group that the model has, for `--plan`: group, tensors, params, optimizer,
    lr, weight_decay, eps, init_std and multiplier (the forward factors that act on the group)."""
    from slm.cost import parameter_shapes
    tensors, params = Counter(), Counter()
    for name, shape in parameter_shapes(config).items():
        tensors[group_of(name)] += 1
        params[group_of(name)] += prod(shape)
    factor = multipliers(config)
    logits = f"logits {factor.logits:.4g}"
    acts = {
        "embedding": f"input {factor.embedding:.4g}" + (f", {logits}" if config.tied else ""),
        "head": logits,
        "matrix": f"attention {factor.attention:.4g}",
        "projection": f"residual {factor.residual:.4g}",
    }
    settings, rule = group_settings(config, optim), rules(config)
    return [dict(group=group, tensors=tensors[group], params=params[group], **settings[group],
                 init_std=rule[group].init_std, multiplier=acts.get(group, ""))
            for group in GROUPS if tensors[group]]
