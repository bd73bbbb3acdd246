"""Head and cross-entropy in one function, with interchangeable implementations.

With a 50k vocabulary the logits are the largest tensor of a training step and head with
cross-entropy three quarters of its time. All implementations give the same loss and gradients up to
rounding; the loss is computed in float32 at least. Padded ids of the vocabulary have ordinary
logits here, as in nanoGPT; they are only never sampled.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.errors import UserError

IMPLEMENTATIONS = ("plain", "chunked", "torch")
LARGE_VOCAB = 16_384
CHUNK_TOKENS = {"cpu": 256}          # a chunk re-reads the head's gradient: 256-512 is best on CPU
CHUNK_TOKENS_GPU = 4096              # fills a GPU; 0.8 GB of float32 logits at a 50k vocabulary


def choose_loss(name: str, device_type: str, vocab_size: int) -> tuple[str, str]:
    """The implementation for `device.loss` and the reason, for the screen.

    Raises UserError for an unknown name, or for 'torch' where this torch has no such function.
    """
    if name == "auto":
        if device_type == "cpu" and vocab_size >= LARGE_VOCAB:
            return "chunked", f"vocabulary of {vocab_size:,} on CPU: logits in chunks of 256 tokens"
        return "plain", "fastest here"
    if name not in IMPLEMENTATIONS:
        raise UserError(f"device.loss={name!r} is not one of auto, {', '.join(IMPLEMENTATIONS)}")
    if name == "torch" and not hasattr(F, "linear_cross_entropy"):
        raise UserError(f"device.loss=torch needs torch >= 2.13 (here {torch.__version__}): "
                        "use chunked, which does the same")
    return name, "as asked"


def lm_loss(h: Tensor, w: Tensor, targets: Tensor, impl: str = "plain", reduction: str = "mean",
            scale: float = 1.0) -> Tensor:
    """Cross-entropy of logits = scale * h w^T against targets, in nats.

    h: (b, t, d); w: (v, d); targets: (b, t) int64, -1 is ignored.
    reduction: 'mean' over the targets that count (scalar), or 'none' (b, t), 0 where ignored.
    'none' with gradients takes the plain way whatever impl says: chunked gradients are made in the
    forward pass, before the weights of the tokens are known.
    """
    h = h * scale if scale != 1 else h
    if impl == "plain" or (reduction == "none" and torch.is_grad_enabled() and h.requires_grad):
        logits = at_least_float32(F.linear(h, w))                            # (b, t, v)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1,
                               reduction=reduction)
    elif impl == "chunked":
        loss = chunked(h.flatten(0, 1), w, targets.flatten(), reduction)
    elif impl == "torch":
        loss = torch_chunked(h.flatten(0, 1), w, targets.flatten(), reduction)
    else:
        raise ValueError(f"unknown loss implementation {impl!r}")
    return loss.view_as(targets) if reduction == "none" else loss


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of x would run here: autocast's, where it is on."""
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return x.dtype


def chunked(h: Tensor, w: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """h (n, d), w (v, d), targets (n,) -> scalar or (n,)."""
    dtype = autocast_dtype(h)
    with torch.autocast(h.device.type, enabled=False):
        h, w = h.to(dtype), w.to(dtype)
        need_grads = torch.is_grad_enabled() and (h.requires_grad or w.requires_grad)
        return ChunkedLoss.apply(h, w, targets, reduction, need_grads)


class ChunkedLoss(torch.autograd.Function):
    """Linear head and cross-entropy, a chunk of tokens at a time: no more than one chunk's logits
    exist, and since a chunk's gradient is made while its logits are there, nothing is computed
    twice (as in Liger-Kernel and torch's linear_cross_entropy)."""

    @staticmethod
    def forward(ctx, h: Tensor, w: Tensor, targets: Tensor, reduction: str,
                need_grads: bool) -> Tensor:
        n = h.shape[0]
        loss = torch.zeros(n, device=h.device, dtype=torch.promote_types(h.dtype, torch.float32))
        counted = targets != -1                                              # (n,)
        weight = 1 / counted.sum().to(loss.dtype)      # 1/0 = inf, 0 * inf = nan: as F.cross_entropy
        dh = torch.empty_like(h) if need_grads else None
        dw = torch.zeros_like(w, dtype=loss.dtype) if need_grads else None
        for rows in torch.arange(n).split(CHUNK_TOKENS.get(h.device.type, CHUNK_TOKENS_GPU)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            hc, keep = h[part], counted[part]
            target = targets[part].clamp(min=0)[:, None]
            logits = at_least_float32(hc @ w.T)                              # (chunk, v)
            log_z = logits.logsumexp(dim=-1, keepdim=True)
            loss[part] = ((log_z - logits.gather(1, target)).squeeze(1)) * keep
            if need_grads:
                p = logits.sub_(log_z).exp_()                                # softmax, in place
                p.scatter_add_(1, target, torch.full_like(log_z, -1.0))
                p = p.mul_((keep * weight)[:, None]).to(h.dtype)
                torch.mm(p, w, out=dh[part])
                dw.addmm_(p.T, hc) if dw.dtype == h.dtype else dw.add_(p.T @ hc)
        ctx.grads = (dh, dw)
        return loss if reduction == "none" else loss.sum() * weight

    @staticmethod
    def backward(ctx, upstream: Tensor):
        if ctx.grads is None:
            raise RuntimeError("the chunked loss can be differentiated once")
        (dh, dw), ctx.grads = ctx.grads, None
        # in place: a second copy of dw would cost as much memory as the head
        return dh.mul_(upstream), dw.mul_(upstream), None, None, None


def torch_chunked(h: Tensor, w: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """torch's own chunked head (>= 2.13). h (n, d), w (v, d), targets (n,) -> scalar or (n,)."""
    dtype, chunk = autocast_dtype(h), CHUNK_TOKENS.get(h.device.type, CHUNK_TOKENS_GPU)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    with torch.autocast(h.device.type, enabled=False):
        loss = F.linear_cross_entropy(h.to(dtype), w.to(dtype), targets, reduction=reduction,
                                      ignore_index=-1, options=options)
    return at_least_float32(loss)
