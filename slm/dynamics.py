"""How training goes, beyond the loss: measured every `track.dynamics_interval` steps and written to
metrics.jsonl beside that step's loss.

    dynamics/grad_noise_scale_tokens   tr(Sigma) / |G|^2: the batch above which more data a step
                                       stop helping in proportion
    dynamics/grad_mean_sq              |G|^2, squared norm of the true gradient, unbiased
    dynamics/grad_variance_tokens      tr(Sigma), variance of a token's gradient, unbiased
    dynamics/update_ratio/<group>      rms of the step's change of the weights / rms of the weights,
    dynamics/update_ratio/h.<i>        by tensor group (slm/parametrization.py) and, of the
                                       matrices, by layer
    dynamics/attention_entropy/h.<i>   nats, mean over heads and positions
    dynamics/attention_spread/h.<i>    the same as a share of what uniform attention would have
    dynamics/loss_at/<k>               nats per token of targets that see more than k/2 and up to k
                                       tokens of their window

All but the update are of the weights before the step and of the step's whole batch (new to them
in the first epoch), without dropout. Under torchrun each rank measures its share and the sums are
added up. Nothing that training reads is touched: no .grad, no buffer, no random number.

|G|^2 of one step is an estimate with a large error and may be negative; average it and tr(Sigma)
over steps before dividing (McCandlish et al. 2018, appendix A.1). plots.plot_dynamics does.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import log, sqrt
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.device import Machine
from slm.model import GPT
from slm.parametrization import group_of
from slm.plan import Plan
from slm.screen import say

if TYPE_CHECKING:
    from slm.train import Trainer

PARTS = 16                  # of a batch whose gradients are compared, about
MATRICES = 2**25            # entries of the attention matrices that exist at a time


def announce(interval: int, plan: Plan, world: int) -> None:
    """Say what will be measured, if anything."""
    if interval:
        share = plan.batch_size // world
        size = part_size(share, plan.micro_batch)
        parts = share // size * world
        how = f"noise scale from {parts} parts of {size * plan.config.block_size:,} tokens" \
            if parts > 1 else "no noise scale: a batch of one sequence has no parts to compare"
        say(f"dynamics every {interval} steps ({how})")


def measured_step(trainer: Trainer) -> float:
    """One training step; where the spec says so it is measured and recorded. Returns the seconds
    that measuring took."""
    interval, step = trainer.spec.track.dynamics_interval, trainer.step + 1
    if not interval or (step % interval and step != trainer.plan.steps):
        trainer.train_step()
        return 0.0
    model, machine, start = trainer.model, trainer.machine, trainer.machine.clock()
    x, y = trainer.loader.batch(trainer.step)                    # (b, t) each
    was_training = model.training
    model.eval()
    size = part_size(len(x), trainer.plan.micro_batch)
    gradients = part_gradients(model, x, y, size, machine, trainer.scaler.get_scale())
    values = noise_scale(gradients, size * x.shape[1], machine.world)
    values |= forward_measures(model, x, y, trainer.plan.micro_batch, machine)
    model.train(was_training)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seconds = machine.clock() - start
    trainer.train_step()
    start = machine.clock()
    values |= update_ratios(before, model)
    trainer.record.log(trainer.step, {**trainer.position, **values})
    return seconds + machine.clock() - start


# -- gradients -----------------------------------------------------------------------------------

def part_size(share: int, micro_batch: int) -> int:
    """Sequences of one part: the largest divisor of a rank's share that fits a pass and makes at
    least PARTS parts (or one sequence each). More parts tell |G|^2 hardly any better."""
    most = max(1, min(micro_batch, share // PARTS))
    return next(n for n in range(most, 0, -1) if share % n == 0)


def part_gradients(model: GPT, x: Tensor, y: Tensor, size: int, machine: Machine,
                   scale: float = 1.0) -> Iterator[list[Tensor]]:
    """The gradient of the mean loss of each part of a batch, a tensor a parameter.

    x, y: (b, t) int64; size: sequences a part; scale: of the loss in the backward pass (fp16)."""
    params = list(model.parameters())
    for mx, my in zip(x.split(size), y.split(size)):
        with machine.autocast():
            loss = model(mx, my)
        yield [g / scale for g in torch.autograd.grad(loss * scale, params)]


def noise_scale(gradients: Iterable[Sequence[Tensor]], part_tokens: int,
                world: int = 1) -> dict[str, float]:
    """The simple noise scale from n parts of a batch, in tokens (McCandlish et al. 2018, arXiv
    1812.06162, appendix A.1, with B_small one part and B_big all of them).

    With S the mean squared norm of the parts' gradients g_i and M that of their mean:
        |G|^2 = (n M - S) / (n - 1)        tr(Sigma) = (S - M) part_tokens n / (n - 1)
    Sequences are what is drawn independently: Sigma is block_size times the covariance of a
    sequence's gradient, and a noise scale of k tokens is k / block_size sequences. world: ranks
    that have n / world parts each. Returns {} for a single part, which has no spread."""
    total: list[Tensor] = []
    n, squares = 0, 0.0
    for g in gradients:
        n, squares = n + 1, squares + squared_norm(g)
        total = torch._foreach_add(total, g) if total else list(g)
    if world > 1:
        for tensor in total:
            torch.distributed.all_reduce(tensor)
        shared = torch.tensor(squares, dtype=torch.float32, device=total[0].device)
        torch.distributed.all_reduce(shared)
        n, squares = n * world, shared.item()
    if n < 2:
        return {}
    small, big = squares / n, squared_norm(total) / n**2
    mean_sq, variance = (n * big - small) / (n - 1), (small - big) * part_tokens * n / (n - 1)
    return {"dynamics/grad_noise_scale_tokens": variance / mean_sq if mean_sq else float("inf"),
            "dynamics/grad_mean_sq": mean_sq, "dynamics/grad_variance_tokens": variance}


def squared_norm(tensors: Sequence[Tensor]) -> float:
    return torch.stack(torch._foreach_norm(list(tensors))).square().sum().item()


def update_ratios(before: dict[str, Tensor], model: GPT) -> dict[str, float]:
    """rms of the change of the weights / rms of what they were, by tensor group and, for the
    matrices of the blocks, by layer. before: the parameters by name. Gains and biases stay out of
    the layers, whose rms would be the gains' (about 1 beside 0.02). Infinite where all were 0."""
    change, size = defaultdict(float), defaultdict(float)
    for name, p in model.named_parameters():
        group = group_of(name)
        layer = [".".join(name.split(".")[:2])] if group in ("matrix", "projection") else []
        moved, was = squared_norm([p.detach() - before[name]]), squared_norm([before[name]])
        for key in (group, *layer):
            change[key] += moved
            size[key] += was
    return {f"dynamics/update_ratio/{key}": sqrt(change[key] / size[key]) if size[key] else
            float("inf") for key in change}


# -- attention and loss --------------------------------------------------------------------------

@torch.no_grad()
def forward_measures(model: GPT, x: Tensor, y: Tensor, size: int,
                     machine: Machine) -> dict[str, float]:
    """Attention entropy by layer and loss by position of a batch, `size` sequences a pass.

    x, y: (b, t) int64. Position i (from 1) sees i tokens, so its entropy is at most log i;
    `spread` is the sum of entropies over the sum of these: 1 for uniform attention at any length,
    and a position counts as much as it has to choose from."""
    (b, t), n_layer = x.shape, len(model.h)
    sums = torch.zeros(n_layer + 1, t, device=x.device)          # entropies, and the losses

    def see(layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        sums[layer] += entropy(q, k, model.h[layer].attn.scale).mean(1).sum(0)

    with attending(model, see):
        for mx, my in zip(x.split(size), y.split(size)):
            with machine.autocast():
                sums[n_layer] += model(mx, my, reduction="none").float().sum(0)
    if machine.world > 1:
        torch.distributed.all_reduce(sums)
    *entropies, losses = (sums / (b * machine.world)).double().cpu()
    uniform = sum(log(i) for i in range(1, t + 1))
    out = {}
    for layer, h in enumerate(entropies):
        out[f"dynamics/attention_entropy/h.{layer}"] = h.mean().item()
        if t > 1:
            out[f"dynamics/attention_spread/h.{layer}"] = h.sum().item() / uniform
    return out | by_position(losses)


def by_position(losses: Tensor) -> dict[str, float]:
    """Loss at positions 1, 2, 3-4, 5-8, ..., named by the end of each bucket. losses: (t,) nats."""
    out, start, end = {}, 0, 1
    while start < len(losses):
        end = min(end, len(losses))
        out[f"dynamics/loss_at/{end}"] = losses[start:end].mean().item()
        start, end = end, 2 * end
    return out


@contextmanager
def attending(model: GPT, see: Callable[[int, Tensor, Tensor, Tensor], None]) -> Iterator[None]:
    """In this context every forward pass of the model also calls see(layer, q, k, v), with
    queries, keys and values (b, h, t, k) as the softmax meets them. For passes without a cache."""
    def hook(attn, inputs) -> None:
        see(attn.layer, *attn.heads(*inputs[:2]))

    handles = [block.attn.register_forward_pre_hook(hook) for block in model.h]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Causal attention as a matrix, which the model itself never forms: (..., t, k) twice ->
    (..., t, t) float32, the rows sum to 1. scale: the attention's own, Attention.scale."""
    with torch.autocast(q.device.type, enabled=False):
        logits = (q.float() @ k.float().mT) * scale
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return F.softmax(logits.masked_fill(future, float("-inf")), dim=-1)


def entropy(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Entropy of each position's attention in nats: (b, h, t, k) twice -> (b, h, t)."""
    at_once = max(1, MATRICES // q.shape[2] ** 2)
    pairs = zip(q.flatten(0, 1).split(at_once), k.flatten(0, 1).split(at_once))
    parts = [torch.special.entr(attention_weights(*pair, scale)).sum(-1) for pair in pairs]
    return torch.cat(parts).view(q.shape[:3])
