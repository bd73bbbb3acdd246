"""Branches: one trunk run serves many horizons (train.branches).

With warm-up in tokens and a warm-up–stable–decay schedule, runs of every horizon are the same run
until the shortest begins to decay (Hägele et al. 2024, arXiv 2405.18392). So the longest is trained
once and keeps a checkpoint where each shorter horizon would begin its decay; each branch then is
an ordinary run of its own spec (train.tokens = its horizon) that starts from that checkpoint, and
ends with bitwise the weights of a run trained straight to that horizon."""
from __future__ import annotations

import math
import os
from pathlib import Path

from slm import checkpoint
from slm.files import rows_of, write_whole
from slm.optim import decay_start
from slm.plan import Plan, make_plan
from slm.schema import Spec
from slm.screen import say
from slm.spec import identity, run_folder


def branch_specs(spec: Spec) -> list[Spec]:
    """The spec of each branch, shortest first."""
    out = []
    for tokens in spec.train.branches or []:
        child = spec.model_copy(deep=True)
        child.train.tokens, child.train.branches = tokens, []
        out.append(child)
    return out


def branch_file(folder: Path, child: Spec) -> Path:
    """Where the trunk in `folder` keeps the checkpoint from which a branch starts."""
    return folder / "checkpoints" / f"branch-{child.train.tokens}.pt"


def branch_steps(spec: Spec, plan: Plan, folder: Path) -> dict[int, list[Path]]:
    """Trunk step -> the files to keep there, one for each branch that decays from it on."""
    files: dict[int, list[Path]] = {}
    for child in branch_specs(spec):
        steps = make_plan(child, plan.config.vocab_size, plan.epoch_tokens).steps
        start = decay_start(child.optim, steps)
        files.setdefault(start, []).append(branch_file(folder, child))
    return files


def seed_branches(spec: Spec) -> list[Spec]:
    """Make the branches of a finished trunk ready to train, and return their specs. One whose trunk
    stopped before its decay would have begun is left out, and that is said."""
    trunk, ready = run_folder(spec), []
    sweep = leave_agent()
    for child in branch_specs(spec):
        if checkpoint.last(run_folder(child) / "checkpoints") is None:
            if not branch_file(trunk, child).exists():
                say(f"no branch of {child.train.tokens:,} tokens: {trunk} stopped before it")
                continue
            seed_branch(trunk, child)
        child.track.group = child.track.group or sweep
        ready.append(child)
    return ready


def leave_agent() -> str | None:
    """A branch is a W&B run of its own, not the one that a sweep's agent gave the trunk. Returns
    the sweep's id, under which the branches are grouped."""
    sweep = os.environ.pop("WANDB_SWEEP_ID", None)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        os.environ.pop(name, None)
    return sweep


def seed_branch(trunk: Path, child: Spec) -> None:
    """Put the trunk's checkpoint and its history up to there into the branch's own run folder,
    as if it had trained that far itself."""
    folder = run_folder(child)
    state = checkpoint.load(branch_file(trunk, child))
    state.update(identity=identity(child), scheduler=None, best_val=math.inf,
                 evaluations_since_best=0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "samples.jsonl"):
        kept = [line for row, line in rows_of((trunk / name).read_bytes())
                if row["step"] <= state["step"]]
        write_whole(folder / name, b"".join(kept))
    checkpoint.save(checkpoint.step_file(folder / "checkpoints", state["step"]), state)
