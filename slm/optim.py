"""Optimiser and learning-rate schedule from the plan's `optim`: the spec's section, rules applied.

Groups and their learning rates, decays and epsilons follow slm/parametrization.py: weight decay on
matrices and embeddings, never on biases or gains.
"""
from __future__ import annotations

import math

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, SequentialLR

from slm.adamw import AdamW
from slm.errors import UserError
from slm.model import GPT
from slm.muon import Muon
from slm.parametrization import GROUPS, group_of, group_settings


def param_groups(model: GPT, optim) -> list[dict]:
    """The model's parameters in the groups of slm.parametrization.GROUPS that it has.

    optim: the plan's `optim`. Each dict has name, params, lr, weight_decay and, for AdamW,
    eps; with optim.name='muon' also muon (bool). The groups are the same under every
    parametrization, so that equal settings give bitwise equal runs.
    """
    settings = group_settings(model.config, optim)
    members = {group: [] for group in GROUPS}
    for name, p in model.named_parameters():
        members[group_of(name)].append(p)
    groups = []
    for name in GROUPS:
        if members[name]:
            setting = settings[name]
            group = dict(name=name, params=members[name], lr=setting["lr"],
                         weight_decay=setting["weight_decay"])
            if setting["eps"] is not None:
                group["eps"] = setting["eps"]
            if optim.name == "muon":
                group["muon"] = setting["optimizer"] == "muon"
            groups.append(group)
    return groups


def make_optimizer(model: GPT, optim, device_type: str) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW for what is no hidden matrix.

    model: already on its device, without compile or DDP wrapper. device_type: 'cpu', 'cuda', 'mps'.
    """
    groups = param_groups(model, optim)
    betas, fused = (optim.beta1, optim.beta2), device_type in ("cpu", "cuda")
    if optim.name == "muon":
        return Muon(groups, momentum=optim.muon_momentum, betas=betas, fused=fused)
    if optim.name == "adamw":
        return AdamW(groups, betas=betas, fused=fused or None)   # None: torch chooses
    raise UserError(f"optim.name={optim.name!r} is not one of adamw, muon")


class LinearLR(lr_scheduler.LinearLR):
    """torch's in closed form: no drift, and the same wherever a run is picked up."""

    def get_lr(self) -> list[float]:
        return self._get_closed_form_lr()


class CosineAnnealingLR(lr_scheduler.CosineAnnealingLR):
    """torch's in closed form, with eta_min a fraction of each group's own learning rate (torch's is
    one number for all groups: wrong where they differ, as under muP)."""

    def get_lr(self) -> list[float]:
        cosine = (1 + math.cos(math.pi * min(1, self.last_epoch / self.T_max))) / 2
        return [lr * (self.eta_min + (1 - self.eta_min) * cosine) for lr in self.base_lrs]

    _get_closed_form_lr = get_lr


def decay_start(optim, total_steps: int) -> int:
    """The step from which a wsd schedule decays; until then every horizon is the same run."""
    return total_steps - max(1, round(optim.decay * total_steps))


def make_scheduler(optimizer: torch.optim.Optimizer, optim, total_steps: int,
                   warmup_steps: int) -> LRScheduler:
    """Linear warm-up, then the spec's schedule, as torch schedulers in a SequentialLR. Call
    `step()` after every optimiser step.

    Factor on each group's own learning rate at step i = 0, 1, ..., with W = warmup_steps,
    D the steps of decay, j the steps since it began and f = optim.final_lr:
        warm-up    (i + 1) / (W + 1)                          i < W (nanoGPT)
        cosine     f + (1 - f) (1 + cos(pi j / D)) / 2        D = total_steps - W
        linear     1 - (1 - f) j / D                          D = total_steps - W
        wsd        1, then f + (1 - f) (1 - sqrt(j / D))      D = optim.decay * total_steps, at most
                                                              total_steps - W (arXiv 2405.18392)
        constant   1
    j < D for every step of the run: f would be reached one step after the last.
    Raises UserError if the warm-up is not shorter than the run.
    """
    if not 0 <= warmup_steps < total_steps:
        raise UserError(f"optim.warmup: {warmup_steps} warm-up steps must be fewer than the run's "
                        f"{total_steps}")
    final, rest = optim.final_lr, total_steps - warmup_steps
    phases: list[tuple[LRScheduler, int]] = []            # scheduler, steps
    if warmup_steps:
        start = 1 / (warmup_steps + 1)
        phases.append((LinearLR(optimizer, start, 1.0, warmup_steps), warmup_steps))
    if optim.schedule == "cosine":
        phases.append((CosineAnnealingLR(optimizer, rest, eta_min=final), rest))
    elif optim.schedule == "linear":
        phases.append((LinearLR(optimizer, 1.0, final, rest), rest))
    elif optim.schedule == "wsd":
        decay = total_steps - max(warmup_steps, decay_start(optim, total_steps))
        if rest > decay:
            phases.append((LambdaLR(optimizer, lambda j: 1.0), rest - decay))
        phases.append((LambdaLR(optimizer, lambda j: 1 - (1 - final) * min(1, j / decay) ** 0.5),
                       decay))
    elif optim.schedule == "constant":
        phases.append((LambdaLR(optimizer, lambda j: 1.0), rest))
    else:
        raise UserError(f"optim.schedule={optim.schedule!r} is not one of cosine, linear, wsd, "
                        "constant")
    milestones = [sum(steps for _, steps in phases[:i]) for i in range(1, len(phases))]
    return SequentialLR(optimizer, [scheduler for scheduler, _ in phases], milestones)
