"""What this machine offers a sweep: GPUs, cores, memory; and from that, slots. No torch."""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache

from slm.errors import UserError

RUNS_PER_GPU = 1  # what --runs-per-gpu=auto means


@dataclass(frozen=True)
class Gpu:
    """id: what CUDA_VISIBLE_DEVICES calls it."""
    id: str
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Slot:
    """A place for one run. gpus: what it may see; none: a CPU slot."""
    name: str
    gpus: tuple[Gpu, ...] = ()
    share: int = 1  # runs that share these GPUs


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """The visible NVIDIA GPUs, from nvidia-smi and CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return ()
    if not shutil.which("nvidia-smi"):
        return ()
    try:
        text = subprocess.run(["nvidia-smi", "--query-gpu=index,uuid,name,memory.total",
                               "--format=csv,noheader,nounits"], capture_output=True, text=True,
                              timeout=20, check=True).stdout
        rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line]
        found = {key: Gpu(key, row[2], int(row[3]) * 2**20) for row in rows for key in row[:2]}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ()
    names = [n.strip() for n in visible.split(",")] if visible else [row[0] for row in rows]
    fallback = next(iter(found.values()), None)  # a MIG slice is not in the list by its own name
    return tuple(found.get(n) or Gpu(n, fallback.name, fallback.memory_bytes)
                 for n in names if n and fallback)


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**63


def make_slots(cpu: bool, slots: int | None, runs_per_gpu: int | None, per_run: int) -> list[Slot]:
    """One slot a run. cpu: no GPU is wanted; slots: that many CPU slots; runs_per_gpu: K, None
    for auto; per_run: GPUs that one run takes (torchrun). Raises UserError: no GPU where one is
    asked for, or too few."""
    found = () if cpu or slots else gpus()
    if not found:
        if runs_per_gpu:
            raise UserError("--runs-per-gpu: no GPU is visible here (nvidia-smi finds none, or "
                            "CUDA_VISIBLE_DEVICES hides them); for a CPU give --slots=N")
        alone = platform.system() == "Darwin" and not cpu and not slots  # its one GPU is shared
        count = slots or (1 if alone else max(1, cores() // per_run))
        return [Slot(f"cpu {i}") for i in range(count)]
    if per_run > len(found):
        raise UserError(f"a run takes {per_run} GPUs, {len(found)} "
                        f"{'is' if len(found) == 1 else 'are'} visible")
    groups = [found[i:i + per_run] for i in range(0, len(found) - per_run + 1, per_run)]
    share = runs_per_gpu or RUNS_PER_GPU
    return [Slot(f"gpu {','.join(g.id for g in group)}", group, share)
            for _ in range(share) for group in groups]


def check_device(names: set[str]) -> None:
    """Raises UserError where specs ask for a GPU that is not there, or choose one themselves."""
    for name in sorted(n for n in names if n.startswith("cuda")):
        if not gpus():
            raise UserError(f"device.name = {name}: no GPU is visible here (nvidia-smi finds none, "
                            "or CUDA_VISIBLE_DEVICES hides them); device.name=auto takes the CPU")
        if name != "cuda" and name != "cuda:0":
            raise UserError(f"device.name = {name}: a sweep places its runs itself, so that each "
                            "sees one GPU: use device.name=auto (CUDA_VISIBLE_DEVICES chooses)")
