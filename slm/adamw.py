"""torch's AdamW without torch's compiler.

The first call of a torch optimiser imports torch._dynamo, only to keep torch.compile away from its
methods: 1.9 s of CPU (torch 2.13), more than anything else a run does besides its steps. Nothing
here compiles an optimiser, so the methods are called as they are beneath those wrappers.
"""
from __future__ import annotations

import inspect

import torch

WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


class Unwrapped(torch.optim.Optimizer):
    """An optimiser whose methods are torch's, without the compiler's wrappers."""


for method in WRAPPED:
    setattr(Unwrapped, method, inspect.unwrap(getattr(torch.optim.Optimizer, method)))


class AdamW(Unwrapped, torch.optim.AdamW):
    """torch.optim.AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), step for step."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
