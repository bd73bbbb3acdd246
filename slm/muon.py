"""Muon for the hidden matrices and AdamW for the rest, as one torch optimiser.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum, then the update is
replaced by the nearest orthogonal matrix, found by five Newton-Schulz iterations. torch.optim.Muon
takes matrix after matrix, always in bfloat16; here all matrices of one shape go through one batched
product, in bfloat16 on CUDA and float32 elsewhere (30x faster on a CPU without bfloat16 units).
"""
from __future__ import annotations

from collections import defaultdict
from math import sqrt

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from slm.adamw import Unwrapped

COEFFICIENTS = (3.4445, -4.7750, 2.0315)     # of the quintic, steepest at zero
NS_STEPS = 5


def orthogonalize(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest orthogonal matrices, roughly: singular values come to lie in about [0.7, 1.2].

    x: (n, rows, cols), rows <= cols (cheaper that way round). Returns (n, rows, cols) in dtype.
    """
    a, b, c = COEFFICIENTS
    x = x.to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)     # spectral norm <= 1
    for _ in range(NS_STEPS):
        gram = x @ x.mT                                          # (n, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(Unwrapped):
    """One optimiser for a whole model: learning-rate schedulers, GradScaler and state dicts work on
    it as on AdamW. Groups are marked by `muon` (bool).

    Muon groups: lr, weight_decay (decoupled: p -= lr * weight_decay * p), momentum (Nesterov). The
    update is scaled by sqrt(max(1, rows / cols)), which keeps the best lr constant in width. The
    fused query-key-value matrix (3 d, d) is orthogonalised as one matrix.
    Other groups: AdamW with lr, weight_decay, betas, eps.
    ns_dtype: of the Newton-Schulz iterations; None: bfloat16 on CUDA, float32 elsewhere.
    """

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, fused: bool = False,
                 ns_dtype: torch.dtype | None = None) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum,
                                      betas=betas, eps=eps, fused=fused, muon=False))
        self.ns_dtype = ns_dtype

    @torch.no_grad()
    def step(self, closure=None):
        """One step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_shape = defaultdict(list)         # all Muon groups together: more matrices per product
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["muon"]:
                for p, update in zip(params, self._momentum(group, params)):
                    by_shape[min(p.shape), max(p.shape)].append((group, p, update))
            elif params:
                self._adamw(group, params)
        for entries in by_shape.values():
            self._apply(entries)
        return loss

    def _momentum(self, group: dict, params: list[Tensor]) -> list[Tensor]:
        """Nesterov momentum of each parameter's gradient."""
        grads = [p.grad for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        return torch._foreach_lerp(grads, buffers, group["momentum"])

    def _apply(self, entries: list[tuple[dict, Tensor, Tensor]]) -> None:
        """Orthogonalise updates of one shape (or its transpose) together and apply them."""
        device = entries[0][1].device.type
        dtype = self.ns_dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
        wide = [u if u.shape[0] <= u.shape[1] else u.mT for _, _, u in entries]
        for (group, p, _), update in zip(entries, orthogonalize(torch.stack(wide), dtype)):
            rows, cols = p.shape
            update = update if rows <= cols else update.mT
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.to(p.dtype), alpha=-group["lr"] * sqrt(max(1, rows / cols)))

    def _adamw(self, group: dict, params: list[Tensor]) -> None:
        """torch's own AdamW on one group."""
        for p in params:
            if not self.state[p]:
                step_device = p.device if group["fused"] else "cpu"
                self.state[p].update(step=torch.zeros((), device=step_device),
                                     exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adamw(params, [p.grad for p in params], [s["exp_avg"] for s in state],
              [s["exp_avg_sq"] for s in state], [], [s["step"] for s in state],
              fused=group["fused"] or None, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
              weight_decay=group["weight_decay"], eps=group["eps"], maximize=False)
