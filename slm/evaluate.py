"""Validation loss on fixed tokens, with its standard error, in nats, bits per byte and above the
floor."""
from __future__ import annotations

import math
from typing import Iterable

import torch
from torch import Tensor, nn

from slm.device import Machine


@torch.no_grad()
def token_sums(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]],
               machine: Machine) -> Tensor:
    """Sums over sequences i with loss S_i (nats) and n_i counted tokens:
    [m, sum n, sum S, sum n^2, sum S n, sum S^2], float64. Under torchrun each rank takes every
    world-th batch and the sums are added up."""
    was_training = model.training
    model.eval()
    sums = torch.zeros(6, dtype=torch.float64)
    for i, (x, y) in enumerate(batches):
        if i % machine.world != machine.rank:
            continue
        x, y = x.to(machine.device), y.to(machine.device)
        with machine.autocast():
            losses = model(x, y, reduction="none")                   # (b, t)
        s = losses.double().sum(1).cpu()                             # (b,)
        n = (y != -1).double().sum(1).cpu()                          # (b,)
        sums += torch.stack([torch.tensor(float(len(s)), dtype=torch.float64), n.sum(), s.sum(),
                             (n * n).sum(), (s * n).sum(), (s * s).sum()])
    model.train(was_training)
    if machine.world > 1:
        on_device = sums.to(machine.device)
        torch.distributed.all_reduce(on_device)
        sums = on_device.cpu()
    return sums


def evaluate(model: nn.Module, validation, machine: Machine) -> dict[str, float]:
    """Metrics of a model on a Validation (slm/loader.py), as they are recorded.

    val/loss is total nats over total tokens. Tokens of one story are not independent, so its
    standard error is that of a ratio estimator over sequences (Cochran 1977, eq. 2.46):
    sqrt(m/(m-1) sum (S_i - L n_i)^2) / sum n_i."""
    m, n, s, nn_, sn, ss = token_sums(model, validation.batches, machine).tolist()
    loss = s / n
    spread = max(0.0, ss - 2 * loss * sn + loss * loss * nn_)
    out = {
        "val/loss": loss,
        "val/loss_se": math.sqrt(m / (m - 1) * spread) / n if m > 1 else float("nan"),
        "val/perplexity": math.exp(min(loss, 700.0)),
        "val/bits_per_byte": s / math.log(2) / validation.bytes,
    }
    if validation.surprisal_nats is not None:
        out["val/floor"] = validation.surprisal_nats / validation.tokens
    return out
