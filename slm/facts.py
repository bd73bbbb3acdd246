"""What is recorded of every run, so that any convention of FLOPs or parameters, any loss unit and
any selection of runs can be recomputed later, from summary.json alone."""
from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any


def describe_run(spec, plan, meta: dict, machine) -> dict[str, Any]:
    """The static facts of a run, for summary.json and W&B's config.

    spec: a resolved Spec; plan: its slm.plan.Plan; meta: of the prepared tokens (meta.json);
    machine: a slm.device.Machine. No path, host or user name in it."""
    c, o, train = plan.config, plan.optim, meta["train"]
    unique = train["tokens"]
    return {
        "params": plan.params,
        "flops_per_token": plan.flops_per_token,
        "shape": {"preset": spec.model.preset, "n_layer": c.n_layer, "n_head": c.n_head,
                  "n_embd": c.n_embd, "head_size": c.head_size, "d_ff": c.d_ff,
                  "block_size": c.block_size, "activation": c.activation, "norm": c.norm,
                  "position": c.position, "qk_norm": c.qk_norm, "tied": c.tied, "bias": c.bias,
                  "dropout": c.dropout, "zero_init": c.zero_init, "attention": "causal, full",
                  "n_vocab": meta["n_vocab"], "vocab_size": c.vocab_size},
        "horizon": {"steps": plan.steps, "tokens": plan.tokens, "flops": plan.flops,
                    "unique_tokens": unique, "epochs": plan.tokens / unique},
        "batch": {"sequences": plan.batch_size, "tokens": plan.tokens_per_step,
                  "micro_batch": plan.micro_batch, "world": machine.world,
                  "accumulation": plan.batch_size // (plan.micro_batch * machine.world)},
        "optim": {"name": o.name, "lr": o.lr, "muon_lr": o.muon_lr, "schedule": o.schedule,
                  "warmup_steps": plan.warmup_steps,
                  "warmup_tokens": plan.warmup_steps * plan.tokens_per_step, "decay": o.decay,
                  "final_lr": o.final_lr, "weight_decay": o.weight_decay, "beta1": o.beta1,
                  "beta2": o.beta2, "eps": o.eps, "muon_momentum": o.muon_momentum,
                  "grad_clip": o.grad_clip},
        "rules": plan.rules,
        "init": {"init_std": c.init_std, "parametrization": c.parametrization,
                 "base_width": c.base_width, "base_depth": c.base_depth,
                 "base_head_size": c.base_head_size,
                 "input_mult": c.input_mult, "output_mult": c.output_mult},
        "seeds": {"train": spec.train.seed, "data": spec.data.seed},
        "data": {"corpus": meta["corpus"], "corpus_sha256": meta["corpus_fingerprint"],
                 "tokenizer": meta["tokenizer"], "tokenizer_sha256": meta["tokenizer_fingerprint"],
                 "train": _split(train), "val": _split(meta["val"]),
                 "overlap": meta.get("overlap"),
                 "eval_mode": spec.data.eval_mode, "eval_tokens": spec.data.eval_tokens},
        "machine": {"hardware": machine.name(), "device": machine.type, "world": machine.world,
                    "precision": machine.precision, "compile": machine.compile},
        "versions": versions(),
    }


def _split(part: dict) -> dict:
    return {k: part[k] for k in ("documents", "tokens", "bytes", "sha256") if k in part}


def versions() -> dict[str, Any]:
    """Of what the numbers depend on, and the commit of this checkout (None: not a checkout)."""
    import numpy
    import torch

    import slm
    commit, dirty = git_commit(Path(slm.__file__).parent.parent)
    return {"slm": slm.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": numpy.__version__, "cuda": torch.version.cuda, "os": platform.system(),
            "git_sha": commit, "git_dirty": dirty}


def git_commit(root: Path) -> tuple[str | None, bool | None]:
    """(SHA, whether tracked files differ from it) of the repository whose top folder is root;
    (None, None) where root is none, or git is missing or slow."""
    if not (root / ".git").exists():
        return None, None

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True,
                              timeout=2, check=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return None, None
