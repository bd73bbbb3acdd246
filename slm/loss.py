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

from slm.cost import CPU_CHUNK, auto_loss, chunk_tokens
from slm.errors import UserError

IMPLEMENTATIONS = ("plain", "chunked", "torch")


def choose_loss(name: str, device_type: str, vocab_size: int,
                precision: str = "fp32") -> tuple[str, str]:
    """The implementation for `device.loss` and the reason, for the screen.

    Raises UserError for an unknown name, or for 'torch' where this torch has no such function or
    would round the loss to half precision.
    """
    if name == "auto":
        if auto_loss(device_type, vocab_size) == "chunked":
            return "chunked", (f"vocabulary of {vocab_size:,} on CPU: logits of at most "
                               f"{CPU_CHUNK} tokens at a time")
        return "plain", "no large vocabulary" if device_type == "cpu" else "compiles into one graph"
    if name not in IMPLEMENTATIONS:
        raise UserError(f"device.loss={name!r} is not one of auto, {', '.join(IMPLEMENTATIONS)}")
    if name == "torch" and not hasattr(F, "linear_cross_entropy"):
        raise UserError(f"device.loss=torch needs torch >= 2.13 (here {torch.__version__}): "
                        "use chunked, which does the same")
    if name == "torch" and precision in ("bf16", "fp16"):
        raise UserError(f"device.loss=torch: rounds the loss to {precision}, by up to 0.4 %; use "
                        "chunked or plain, which compute it in float32")
    return name, "as asked"


def lm_loss(h: Tensor, w: Tensor, targets: Tensor, impl: str = "plain", reduction: str = "mean",
            scale: float = 1.0) -> Tensor:
    """Cross-entropy of logits = scale * h w^T against targets, in nats.

    h: (b, t, d); w: (v, d); targets: (b, t) int64, -1 is ignored.
    reduction: 'mean' over the targets that count (scalar), or 'none' (b, t), 0 where ignored.
    Without gradients the logits are chunked whatever impl says: an evaluation must not need more
    memory than training. 'none' with gradients takes the plain way: chunked gradients are made in
    the forward pass, before the weights of the tokens are known.
    """
    h = h * scale if scale != 1 else h
    if not torch.is_grad_enabled():
        impl = "chunked"
    elif reduction == "none" and h.requires_grad:
        impl = "plain"
    if impl == "plain":
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
    need_grads = torch.is_grad_enabled() and (h.requires_grad or w.requires_grad)
    dtype = autocast_dtype(h)
    with torch.autocast(h.device.type, enabled=False):
        return ChunkedLoss.apply(h, w, targets, dtype, reduction, need_grads)


class ChunkedLoss(torch.autograd.Function):
    """Linear head and cross-entropy, a chunk of tokens at a time: no more than one chunk's logits
    exist, in one buffer that is used again, and since a chunk's gradient is made while its logits
    are there, nothing is computed twice (as in Liger-Kernel and torch's linear_cross_entropy)."""

    @staticmethod
    def forward(ctx, h: Tensor, w: Tensor, targets: Tensor, dtype: torch.dtype, reduction: str,
                need_grads: bool) -> Tensor:
        n, exact = h.shape[0], torch.promote_types(dtype, torch.float32)
        chunk = chunk_tokens(n, h.device.type)
        loss = torch.empty(n, device=h.device, dtype=exact)
        counted = (targets != -1)[:, None].to(exact)                         # (n, 1)
        dh = torch.empty_like(h) if need_grads else None
        dw = torch.zeros_like(w, dtype=exact) if need_grads else None
        w = w.to(dtype)
        buffer = torch.empty(chunk, w.shape[0], device=h.device, dtype=dtype)
        for start in range(0, n, chunk):
            part = slice(start, min(start + chunk, n))
            hc, keep, target = h[part].to(dtype), counted[part], targets[part, None].clamp(min=0)
            e = torch.mm(hc, w.T, out=buffer[:len(hc)]).to(exact)            # logits (chunk, v)
            chosen, top = e.gather(1, target), e.amax(dim=1, keepdim=True)
            z = e.sub_(top).exp_().sum(dim=1, keepdim=True)
            loss[part] = ((z.log() + top - chosen) * keep).squeeze(1)
            if need_grads:
                e.scatter_add_(1, target, -z)   # e / z is now softmax - onehot, the gradient
                if dtype != exact:              # z may exceed the range of float16
                    e, z = e.div_(z).to(dtype), 1
                row = keep / z                  # applied to (chunk, d), which is smaller
                dh[part] = (e @ w) * row
                hc = (hc * row).to(dtype)
                dw.addmm_(e.T, hc) if dtype == exact else dw.add_(e.T @ hc)
        ctx.grads, ctx.weight = (dh, dw), 1 / counted.sum()
        return loss if reduction == "none" else loss.sum() * ctx.weight

    @staticmethod
    def backward(ctx, upstream: Tensor):
        if ctx.grads is None:
            raise RuntimeError("the chunked loss can be differentiated once")
        (dh, dw), ctx.grads = ctx.grads, None
        factor = upstream * ctx.weight       # here, not in the forward: 1/n would underflow in fp16
        # in place: a second copy of dw would cost as much memory as the head
        return dh.mul_(factor), dw.mul_(factor), None, None, None, None


def torch_chunked(h: Tensor, w: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """torch's own chunked head (>= 2.13). h (n, d), w (v, d), targets (n,) -> scalar or (n,)."""
    dtype, chunk = autocast_dtype(h), chunk_tokens(len(h), h.device.type)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    with torch.autocast(h.device.type, enabled=False):
        loss = F.linear_cross_entropy(h.to(dtype), w.to(dtype), targets, reduction=reduction,
                                      ignore_index=-1, options=options)
    return at_least_float32(loss)
