"""Branches: one trunk run serves many horizons (train.branches).

With warm-up in tokens and a warm-up–stable–decay schedule, runs of every horizon are the same run
until the shortest begins to decay (Hägele et al. 2024, arXiv 2405.18392). So the longest is trained
once and keeps a checkpoint where each shorter horizon would begin its decay; each branch then is
an ordinary run of its own spec (train.tokens = its horizon) that starts from that checkpoint, and
ends with bitwise the weights of a run trained straight to that horizon."""
from __future__ import annotations

import json
import math
from pathlib import Path

from slm import checkpoint
from slm.optim import decay_start
from slm.plan import Plan, make_plan
from slm.schema import Spec
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


def seed_branch(trunk: Path, child: Spec) -> bool:
    """Put the trunk's checkpoint and its history up to there into the branch's own run folder,
    as if it had trained that far itself. False where the folder has begun already."""
    folder = run_folder(child)
    if checkpoint.last(folder / "checkpoints"):
        return False
    state = checkpoint.load(branch_file(trunk, child))
    state.update(identity=identity(child), scheduler=None, best_val=math.inf,
                 evaluations_since_best=0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = (trunk / name).read_text().splitlines() if (trunk / name).exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= state["step"]]
        (folder / name).write_text("".join(line + "\n" for line in kept))
    checkpoint.save(checkpoint.step_file(folder / "checkpoints", state["step"]), state)
    return True
