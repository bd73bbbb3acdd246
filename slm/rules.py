"""Batch, learning rate and weight decay that follow the horizon, each off unless the spec asks.

With D the horizon in tokens, D_ref = train.reference_tokens, and batch_tokens, lr, weight_decay as
the spec has them (tuned at D_ref):

    train.batch_rule: power_lines   B = batch_tokens (D / D_ref)^0.383      arXiv 2505.13738
    optim.lr_rule: sqrt_batch       lr and muon_lr times sqrt(B / batch_tokens)
    optim.decay_rule: horizon       weight_decay times sqrt(B / batch_tokens) D_ref / D
    optim.lr: auto                  lr by a law in N and D                  slm/lr_law.py

the first three as in nanochat's base_train.py. The third keeps B / (lr weight_decay D), the epochs
that AdamW's average reaches back over, as it was (Wang and Aitchison 2024, arXiv 2405.13698) where
lr follows the second. B is rounded to whole sequences, and to three significant bits (.. 8, 10, 12,
14, 16, 20 ..) so that processes and passes can share it; batch_tokens itself is allowed too, so
that D = D_ref is the run that was tuned. All of it follows from the spec and its data, never from
the machine.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field

from slm.lr_law import NAMED, read_law
from slm.schema import Optim, Spec

BATCH_EXPONENT = 0.383


@dataclass(frozen=True)
class Settings:
    """What is trained with. batch_size: sequences per step; optim: the spec's section with the
    effective lr, muon_lr and weight_decay; rules: name of what a rule set -> how, in words."""
    batch_size: int
    optim: Optim
    rules: dict[str, str] = field(default_factory=dict)


def settings(spec: Spec, params: dict[str, int], horizon_tokens: float) -> Settings:
    """The effective settings of a resolved spec.

    params: cost.count_params of its model; horizon_tokens: as asked, before it is rounded to
    steps (with a horizon in steps: steps * batch_tokens)."""
    t, o, block = spec.train, spec.optim, spec.model.block_size
    rules: dict[str, str] = {}
    base = t.batch_tokens // block
    batch = base
    horizon = f"D = {horizon_tokens:,.0f}"
    if t.batch_rule == "power_lines":
        wanted = base * (horizon_tokens / t.reference_tokens) ** BATCH_EXPONENT
        batch = round_batch(wanted, base)
        rules["batch"] = (f"{base * block:,} -> {batch * block:,} tokens (power_lines: times "
                          f"(D / {t.reference_tokens:,})^{BATCH_EXPONENT} = {wanted / base:.4g}, "
                          f"{horizon}, rounded to {batch} sequences)")
    new: dict[str, float] = {}
    by_batch = math.sqrt(batch / base)
    if o.lr == "auto":
        new["lr"], rules["lr"] = by_law(o.lr_law, params, horizon_tokens)
    elif o.lr_rule == "sqrt_batch":
        for name in ("lr", "muon_lr") if o.muon_lr is not None else ("lr",):
            new[name] = getattr(o, name) * by_batch
            rules[name] = (f"{getattr(o, name):g} -> {new[name]:.4g} (sqrt_batch: times "
                           f"sqrt({batch} / {base}))")
    if o.decay_rule == "horizon":
        new["weight_decay"] = o.weight_decay * by_batch * (t.reference_tokens / horizon_tokens)
        rules["weight_decay"] = (f"{o.weight_decay:g} -> {new['weight_decay']:.4g} (horizon: times "
                                 f"sqrt({batch} / {base}) * {t.reference_tokens:,} / D, {horizon})")
    return Settings(batch, o.model_copy(update=new), rules)


def by_law(name: str, params: dict[str, int], tokens: float) -> tuple[float, str]:
    """The learning rate of a law (optim.lr_law, resolved), and how it came about."""
    law = read_law(name)
    rate = law.rate(params, tokens)
    source = f"{name}, {NAMED[name][1]}" if name in NAMED else "optim.lr_law"
    outside = law.outside(params, tokens)
    return rate, (f"auto -> {rate:.4g} ({law.formula}, {source}; N = {params[law.count]:,} "
                  f"{law.count}, D = {tokens:,.0f}" + (f"; {outside}" if outside else "") + ")")


def round_batch(wanted: float, base: int) -> int:
    """The nearest to `wanted` sequences (> 0) of `base` and the whole numbers of three significant
    bits; of two equally near the smaller."""
    step = 2.0 ** max(0, math.floor(math.log2(max(wanted, 1))) - 2)
    low = max(1, int(wanted // step * step))
    return min(sorted({low, int(low + step), base}), key=lambda n: abs(n - wanted))
