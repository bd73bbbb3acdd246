"""What would be trained and what it costs, before anything is: shape, horizon, FLOPs, memory,
time. No torch in here: a sweep plans a thousand points in seconds."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

from slm.cost import count_params, flops_per_token, memory_bytes
from slm.errors import ImpossiblePoint, UserError
from slm.parametrization import depth_ratio, describe_groups, width_ratio
from slm.resolve import gpt_config, sequences_per_pass
from slm.rules import settings
from slm.schema import Optim, Spec
from slm.screen import several
from slm.shape import GPTConfig

MAX_TOKENS = 1e18


@dataclass(frozen=True)
class Plan:
    """A resolved spec with its numbers. Intervals in steps; 0 means never in between. What trains
    reads batch and `optim` from here: the spec's own may be what rules start from (slm/rules.py).
    """
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
    optim: Optim                        # the spec's, with the effective lr, muon_lr, weight_decay
    rules: dict[str, str]               # what a rule of the spec has set -> how, in words

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
    tokens, asked = horizon_tokens(spec, params, flops["matmul"], epoch_tokens)
    if not tokens < MAX_TOKENS:
        raise UserError(f"{asked[:60]}: more than {MAX_TOKENS:.0e} tokens")
    now = settings(spec, params, tokens)
    batch_tokens = now.batch_size * config.block_size
    if now.batch_size % world:
        by_rule = f" ({batch_tokens} by train.batch_rule)" if "batch" in now.rules else ""
        raise UserError(f"train.batch_tokens = {spec.train.batch_tokens}{by_rule}: "
                        f"{now.batch_size} sequences can't be shared by {world} processes")
    steps = round(tokens / batch_tokens)
    if steps < 1:
        raise ImpossiblePoint(f"{asked}: {tokens:,.0f} tokens are less than one step of "
                              f"{batch_tokens} (train.batch_tokens)")
    warmup = round(spec.optim.warmup * steps) if spec.optim.warmup is not None \
        else round(spec.optim.warmup_tokens / batch_tokens)
    if warmup >= steps and warmup > 0:
        raise ImpossiblePoint(f"optim.warmup_tokens = {spec.optim.warmup_tokens}: the warm-up is "
                              f"longer than the run of {steps * batch_tokens} tokens")

    def interval(asked: int | None, times: int) -> int:
        return max(1, math.ceil(steps / times)) if asked is None else asked

    return Plan(config, params, flops, now.batch_size,
                sequences_per_pass(spec, now.batch_size, world), steps, warmup,
                interval(spec.train.eval_interval, 20), interval(spec.sample.interval, 5),
                interval(spec.track.checkpoint_interval, 10), epoch_tokens, now.optim, now.rules)


def horizon_tokens(spec: Spec, params: dict, flops: float,
                   epoch_tokens: int | None) -> tuple[float, str]:
    """The tokens to train on, by whichever horizon the spec gives, and that horizon in words.
    Raises UserError where epochs are asked of unprepared data."""
    t = spec.train
    if t.steps is not None:
        return t.steps * t.batch_tokens, f"train.steps = {t.steps}"
    if t.tokens is not None:
        return t.tokens, f"train.tokens = {t.tokens}"
    if t.flops is not None:
        return t.flops / flops, f"train.flops = {t.flops:g}"
    if t.tokens_per_param is not None:
        return (t.tokens_per_param * params["matmul"],
                f"train.tokens_per_param = {t.tokens_per_param:g}")
    if epoch_tokens is None:
        raise UserError(f"train.epochs = {t.epochs:g}: the number of steps is known only once the "
                        "data are prepared (python -m slm.prepare <spec> does that)")
    return t.epochs * epoch_tokens, f"train.epochs = {t.epochs:g}"


def training_memory(spec: Spec, plan: Plan, device: str) -> dict[str, int]:
    """slm.cost.memory_bytes of a run on 'cpu' or 'cuda', in the precision it would have there."""
    precision = spec.device.precision
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "fp32"
    return memory_bytes(plan.config, plan.micro_batch, precision, spec.optim.name,
                        spec.device.loss, device)


def advice(plan: Plan) -> list[str]:
    """What our own studies say of a plan's settings, a line each."""
    if plan.config.zero_init and plan.optim.name == "adamw":
        return ["zero_init cost AdamW 0.2 to 0.5 nats at widths 64 and 128 on TinyStories "
                "(analysis/study-tokens.md): consider --model.zero_init=false or "
                "--optim.name=muon"]
    return []


def describe(spec: Spec, plan: Plan, gpu: str | None = None) -> str:
    """The text of `run.py --plan`. gpu: name of the GPU that would be trained on, None: the CPU."""
    c, p = plan.config, plan.params
    memory = training_memory(spec, plan, "cuda" if gpu else "cpu")
    peak = f"adamw, peak {plan.optim.lr:g}"
    if spec.optim.name == "muon":
        peak = f"muon, peak {plan.optim.muon_lr:g}, with {peak} for what is no hidden matrix"
    rows = [
        ("model", f"{spec.model.preset}: {several(c.n_layer, 'layer')}, "
                  f"{several(c.n_head, 'head')}, width {c.n_embd}, "
                  f"block {c.block_size}, vocabulary {c.vocab_size}"),
        ("parameters", f"{p['total']:,} (blocks {p['blocks']:,}, embedding {p['wte']:,}"
                       f"{', shared with the head' if c.tied else ''}); in matmuls "
                       f"{p['matmul']:,}"),
        ("data", f"{spec.data.corpus}, tokenizer {spec.data.tokenizer}"
                 + (f", {plan.epoch_tokens:,} training tokens" if plan.epoch_tokens else
                    ", not prepared yet")),
        ("horizon", f"{several(plan.steps, 'step')} of {plan.tokens_per_step:,} tokens = "
                    f"{plan.tokens:,} tokens"
                    + (f", {plan.epochs:.2f} epochs" if plan.epochs else "")
                    + f"; {plan.tokens / p['matmul']:.3g} tokens per matmul parameter"),
        ("schedule", f"{peak}, {spec.optim.schedule}, warm-up "
                     f"{several(plan.warmup_steps, 'step')}"),
        ("compute", f"{plan.flops:.3e} FLOPs ({plan.flops_per_token['matmul'] / 1e6:.1f} MFLOP a "
                    "token, exact matmuls with head, forward and backward)"),
        ("memory", f"about {memory['total'] / 1e6:,.0f} MB on {gpu or 'the CPU'} (weights "
                   f"{memory['weights'] / 1e6:,.0f}, gradients "
                   f"{memory['gradients'] / 1e6:,.0f}, optimiser "
                   f"{memory['optimizer'] / 1e6:,.0f}, a pass of "
                   f"{several(plan.micro_batch, 'sequence')} "
                   f"{(memory['activations'] + memory['logits']) / 1e6:,.0f})"),
    ]
    if spec.model.init_from:
        rows.append(("weights", f"{spec.model.init_from} ({spec.model.init_fingerprint})"))
    rows[5:5] = plan.rules.items()
    rows += [("advice", line) for line in advice(plan)]
    return "\n".join([f"{name:<11} {text}" for name, text in rows] + group_table(c, plan.optim))


def group_table(config: GPTConfig, optim) -> list[str]:
    """What the parametrization makes of each tensor group, a line each. optim: the plan's.

    Where a value is not the one that sp would give it, the factor is shown beside it."""
    if config.parametrization == "sp" and optim.name == "adamw":
        return [f"{'groups':<11} sp: every tensor group has the same lr and eps, and if it is a "
                "matrix the same weight decay"]
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
    head = config.parametrization
    if head != "sp":
        depth = f", depth {depth_ratio(config):g} x base_depth" if head == "completep" else ""
        head += f": width {width_ratio(config):g} x base_width{depth}; (x...): against sp"
    return [f"{'groups':<11} {head}"] + [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in cells]
