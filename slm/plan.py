"""What would be trained and what it costs, before anything is: shape, horizon, FLOPs, memory,
time. No torch in here: a sweep plans a thousand points in seconds."""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from slm.cost import count_params, flops_per_token, memory_bytes
from slm.errors import ImpossiblePoint, UserError
from slm.parametrization import depth_ratio, describe_groups, width_ratio
from slm.resolve import gpt_config, sequences_per_pass
from slm.schema import Spec
from slm.shape import GPTConfig


@dataclass(frozen=True)
class Plan:
    """A resolved spec with its numbers. Intervals in steps; 0 means never in between."""
    config: GPTConfig
    params: dict[str, int]
    flops_per_token: dict[str, float]   # forward and backward, by convention
    batch_size: int                     # sequences per optimiser step
    micro_batch: int                    # sequences per forward pass on one device
    steps: int
    warmup_steps: int
    eval_interval: int
    sample_interval: int
    checkpoint_interval: int
    epoch_tokens: int | None            # tokens of the training data, where they are known

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.config.block_size

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_per_token["matmul"]

    @property
    def epochs(self) -> float | None:
        return self.tokens / self.epoch_tokens if self.epoch_tokens else None


def make_plan(spec: Spec, n_vocab: int, epoch_tokens: int | None = None, world: int = 1) -> Plan:
    """The numbers of a resolved spec.

    n_vocab: ids of the tokenizer before padding; epoch_tokens: tokens of the prepared training
    data, if known (a horizon in epochs needs it). Raises ImpossiblePoint where the data are
    shorter than a block or the warm-up is longer than the run."""
    config = gpt_config(spec, n_vocab)
    if spec.model.init_from:
        from slm.init_from import check
        check(spec.model.init_from, config)
    params, flops = count_params(config), flops_per_token(config)
    if epoch_tokens is not None and epoch_tokens <= config.block_size:
        raise ImpossiblePoint(f"model.block_size = {config.block_size}: longer than the training "
                              f"data, which hold {epoch_tokens} tokens")
    batch_size = spec.train.batch_tokens // config.block_size
    if batch_size % world:
        raise UserError(f"train.batch_tokens = {spec.train.batch_tokens}: {batch_size} sequences "
                        f"can't be shared by {world} processes")
    steps = horizon_steps(spec, params, flops["matmul"], epoch_tokens)
    warmup = round(spec.optim.warmup * steps) if spec.optim.warmup is not None \
        else round(spec.optim.warmup_tokens / spec.train.batch_tokens)
    if warmup >= steps and warmup > 0:
        raise ImpossiblePoint(f"optim.warmup_tokens = {spec.optim.warmup_tokens}: the warm-up is "
                              f"longer than the run of {steps * spec.train.batch_tokens} tokens")

    def interval(asked: int | None, times: int) -> int:
        return max(1, math.ceil(steps / times)) if asked is None else asked

    return Plan(config, params, flops, batch_size, sequences_per_pass(spec, world), steps, warmup,
                interval(spec.train.eval_interval, 20), interval(spec.sample.interval, 5),
                interval(spec.track.checkpoint_interval, 10), epoch_tokens)


def horizon_steps(spec: Spec, params: dict, flops: float, epoch_tokens: int | None) -> int:
    """Optimiser steps from whichever horizon the spec gives. Raises ImpossiblePoint where it is
    shorter than one step, UserError where epochs are asked of unprepared data."""
    t = spec.train
    if t.steps is not None:
        return t.steps
    if t.tokens is not None:
        tokens, key = t.tokens, f"train.tokens = {t.tokens}"
    elif t.flops is not None:
        tokens, key = t.flops / flops, f"train.flops = {t.flops:g}"
    elif t.tokens_per_param is not None:
        tokens = t.tokens_per_param * params["matmul"]
        key = f"train.tokens_per_param = {t.tokens_per_param:g}"
    elif epoch_tokens is None:
        raise UserError(f"train.epochs = {t.epochs:g}: the number of steps is known only once the "
                        "data are prepared (python -m slm.prepare <spec> does that)")
    else:
        tokens, key = t.epochs * epoch_tokens, f"train.epochs = {t.epochs:g}"
    steps = round(tokens / t.batch_tokens)
    if steps < 1:
        raise ImpossiblePoint(f"{key}: {tokens:,.0f} tokens are less than one step of "
                              f"{t.batch_tokens} (train.batch_tokens)")
    return steps


def describe(spec: Spec, plan: Plan) -> str:
    """The text of `run.py --plan`."""
    c, p = plan.config, plan.params
    memory = memory_bytes(c, plan.micro_batch, optimizer=spec.optim.name)
    rows = [
        ("model", f"{spec.model.preset}: {c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, "
                  f"block {c.block_size}, vocabulary {c.vocab_size}"),
        ("parameters", f"{p['total']:,} (blocks {p['blocks']:,}, embedding {p['wte']:,}"
                       f"{', shared with the head' if c.tied else ''}); in matmuls "
                       f"{p['matmul']:,}"),
        ("data", f"{spec.data.corpus}, tokenizer {spec.data.tokenizer}"
                 + (f", {plan.epoch_tokens:,} training tokens" if plan.epoch_tokens else
                    ", not prepared yet")),
        ("horizon", f"{plan.steps:,} steps of {plan.tokens_per_step:,} tokens = "
                    f"{plan.tokens:,} tokens"
                    + (f", {plan.epochs:.2f} epochs" if plan.epochs else "")
                    + f"; {plan.tokens / p['matmul']:.1f} tokens per matmul parameter"),
        ("schedule", f"{spec.optim.name}, peak {spec.optim.lr:g}, {spec.optim.schedule}, warm-up "
                     f"{plan.warmup_steps} steps"),
        ("compute", f"{plan.flops:.3e} FLOPs ({plan.flops_per_token['matmul'] / 1e6:.1f} MFLOP a "
                    "token, exact matmuls with head, forward and backward)"),
        ("memory", f"about {memory['total'] / 1e6:,.0f} MB (weights {memory['weights'] / 1e6:,.0f},"
                   f" gradients {memory['gradients'] / 1e6:,.0f}, optimiser "
                   f"{memory['optimizer'] / 1e6:,.0f}, a pass of {plan.micro_batch} sequences "
                   f"{(memory['activations'] + memory['logits']) / 1e6:,.0f})"),
    ]
    if spec.model.init_from:
        rows.append(("weights", f"{spec.model.init_from} ({spec.model.init_fingerprint})"))
    return "\n".join([f"{name:<11} {text}" for name, text in rows] + group_table(c, spec.optim))


def group_table(config: GPTConfig, optim) -> list[str]:
    """What the parametrization makes of each tensor group, a line each. optim: the spec's section.

    Where a value is not the one that sp would give it, the factor is shown beside it."""
    if config.parametrization == "sp":
        return [f"{'groups':<11} sp: every tensor group has the spec's lr and eps, and if it is a "
                "matrix the spec's weight decay"]
    plain_config = replace(config, parametrization="sp")
    sp = {row["group"]: row for row in describe_groups(plain_config, optim)}
    cells = [("group", "tensors", "params", "optimizer", "lr", "weight decay", "eps", "init std",
              "forward")]
    for row in describe_groups(config, optim):
        def value(key: str) -> str:
            now, plain = row[key], sp[row["group"]][key]
            if now is None or key == "init_std" and not now:
                return "-"
            return f"{now:.3g}" + (f" (x{now / plain:.3g})" if plain and now != plain else "")
        cells.append((row["group"], f"{row['tensors']}", f"{row['params']:,}", row["optimizer"],
                      *map(value, ("lr", "weight_decay", "eps", "init_std")), row["multiplier"]))
    widths = [max(map(len, column)) for column in zip(*cells)]
    head = f"{config.parametrization}: width {width_ratio(config):g} x base_width" \
        + (f", depth {depth_ratio(config):g} x base_depth"
           if config.parametrization == "completep" else "") + "; (x...): against sp"
    return [f"{'groups':<11} {head}"] + [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in cells]


def as_facts(plan: Plan) -> dict:
    """The plan's numbers as plain data, for a run's record."""
    facts = asdict(plan)
    facts.update(tokens=plan.tokens, flops=plan.flops, epochs=plan.epochs,
                 tokens_per_step=plan.tokens_per_step)
    return facts
