"""nanoGPT (https://github.com/karpathy/nanoGPT), as it lies in a checkout: a peer that is measured
beside ours and never copied here. Its files are run as they are, or after the substitutions below,
which only say where its data lie."""
from __future__ import annotations

import ast
import hashlib
import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Callable

import numpy as np

from slm.errors import UserError

FILES = ("model.py", "train.py", "configurator.py", "data/openwebtext/prepare.py")


def check(folder: Path) -> dict[str, str]:
    """Which nanoGPT this is. Raises UserError where it is none."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"--nanogpt {folder}: no {', '.join(missing)} there; give a checkout of "
                        "https://github.com/karpathy/nanoGPT")
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in FILES))
    found = {"sha256": digest.hexdigest()[:12]}
    if (folder / ".git").exists():
        sha = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short=10", "HEAD"],
                             capture_output=True, text=True).stdout.strip()
        found["git_sha"] = sha
    return found


def model_module(folder: str) -> ModuleType:
    """Its model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(folder: str, shape: dict, weights: dict | None = None):
    """Its GPT of a shape (n_layer, n_head, n_embd, block_size, vocab_size), without biases as its
    train.py has it. weights: a state dict of ours, of the same shape; None: its own."""
    nanogpt = model_module(folder)
    model = nanogpt.GPT(nanogpt.GPTConfig(**shape, dropout=0.0, bias=False))
    if weights is not None:
        theirs = {f"transformer.{name}": tensor for name, tensor in weights.items()}
        model.load_state_dict({**theirs, "lm_head.weight": weights["wte.weight"]})
    return model


def from_train(folder: str, name: str, names: dict) -> Callable:
    """A function of its train.py, which can't be imported without training. names: the globals
    that the function reads."""
    source = (Path(folder) / "train.py").read_text()
    found = [node for node in ast.parse(source).body
             if isinstance(node, ast.FunctionDef) and node.name == name]
    exec(compile(ast.Module(found, []), name, "exec"), names)
    return names[name]


def get_batch(folder: str, data_dir: Path, batch_size: int, block_size: int) -> Callable:
    """The get_batch of its train.py."""
    import os

    import torch
    return from_train(folder, "get_batch", {
        "os": os, "np": np, "torch": torch, "data_dir": str(data_dir), "device": "cpu",
        "device_type": "cpu", "batch_size": batch_size, "block_size": block_size})


def get_lr(folder: str, peak: float, warmup: int, steps: int, final: float) -> Callable:
    """The get_lr of its train.py: step -> learning rate, a cosine from peak to final * peak."""
    import math
    return from_train(folder, "get_lr", {
        "math": math, "learning_rate": peak, "warmup_iters": warmup, "lr_decay_iters": steps,
        "min_lr": final * peak})


def substituted(file: Path, *changes: tuple[str, str]) -> str:
    """The text of a file with each change made exactly once. Raises UserError for a file that has
    changed since this was written."""
    text = file.read_text()
    for old, new in changes:
        if text.count(old) != 1:
            raise UserError(f"{file}: {old!r} is there {text.count(old)} times, not once: another "
                            "nanoGPT than this benchmark knows")
        text = text.replace(old, new)
    return text
