"""Checkpoints: atomic to write, exact to resume from, safe to read.

A checkpoint is a dict of plain values and tensors, read with torch.load(weights_only=True). Nothing
random is in it, since nothing random has state: batch i is a pure function of (data.seed, i), and
dropout in step i draws from a generator seeded with (train.seed, i, rank).
"""
from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import torch

from slm.device import is_out_of_memory
from slm.errors import UserError

FORMAT = "slm-checkpoint-1"
BEST = "best.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write state under a temporary name, flush it to the disk, then rename: whoever is killed
    half-way leaves the earlier file whole. Raises UserError where the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            torch.save({"format": FORMAT, **state}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:
        temporary.unlink(missing_ok=True)
        said = e if isinstance(e, OSError) else e.__context__  # torch.save hides what the disk said
        why = getattr(said, "strerror", None) or str(e)
        if getattr(said, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            why = "no space left on the disk: free some, and the same command goes on"
        kept = "; earlier checkpoints are whole" if any(path.parent.glob("*.pt")) else ""
        raise UserError(f"{path}: can't write the checkpoint: {why}{kept}") from None


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU. Raises UserError for a file that is missing, truncated or not one
    of ours."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint") from None
    except Exception as e:  # whatever an unpickler makes of a stranger's bytes
        if is_out_of_memory(e):
            raise
        raise UserError(f"{path}: truncated or no checkpoint ({type(e).__name__}); remove it to "
                        "go on from the one before") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: a torch file, but no checkpoint of slm's; remove it to go on "
                        "from the one before")
    return state


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of each step-<n>.pt in a run's checkpoints folder, oldest first."""
    found = ((re.fullmatch(r"step-(\d+)\.pt", p.name), p) for p in folder.glob("step-*.pt"))
    return sorted((int(m.group(1)), p) for m, p in found if m)


def last(folder: Path) -> Path | None:
    files = numbered(folder)
    return files[-1][1] if files else None


def step_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def keep_last(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` numbered checkpoints, and what a killed writer left."""
    for _, path in numbered(folder)[:-keep]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
