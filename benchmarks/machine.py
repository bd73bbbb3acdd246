"""What the measurements were taken on, and how busy others kept it meanwhile."""
from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOISY_CORES = 0.1  # of other processes and the host: beyond it a timing is doubtful


def describe() -> dict[str, Any]:
    """Processor, cores, memory, versions, date, commit, load. No torch is imported."""
    return {
        "processor": processor(), "cores": cores(), "memory_gb": round(total_memory() / 1e9, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in
                     ("torch", "numpy", "scipy", "tiktoken", "datasets", "wandb")},
        "threads": os.environ.get("OMP_NUM_THREADS", "torch's choice"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_sha": git("rev-parse", "--short=10", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def heading(machine: dict[str, Any]) -> str:
    """The machine as the head of a table."""
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    dirty = " with changes" if machine["git_dirty"] else ""
    return (f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
            f"{machine['system']}\nPython {machine['python']}, {versions}\n{machine['date']}, "
            f"commit {machine['git_sha']}{dirty}, threads: {machine['threads']}, load "
            f"{' '.join(map(str, machine['load']))}")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
        flags = next((x.split(":")[1].split() for x in lines if x.startswith("flags")), [])
        best = [f for f in ("amx_tile", "avx512_bf16", "avx512f", "avx2") if f in flags]
        return name + (f" ({best[0]})" if best else "")
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git(*args: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True,
                              text=True).stdout.strip()
    except OSError:
        return ""


# -- other processes ---------------------------------------------------------------------------

def busy_sec() -> tuple[float, float] | None:
    """CPU seconds that this machine has spent on anything since it started, and those that its host
    took away from it (steal); None where /proc/stat is not there."""
    try:
        with open("/proc/stat") as f:
            ticks = [int(x) for x in f.readline().split()[1:]]
    except OSError:
        return None
    second = os.sysconf("SC_CLK_TCK")
    return sum(ticks[:3] + ticks[5:7]) / second, ticks[7] / second   # idle and iowait are no work


class Others:
    """How many cores the processes of others kept busy since this was made, and how many the host
    of a virtual machine took away. Ours are this process and its children that have ended."""

    def __init__(self) -> None:
        self.start, self.own, self.at = busy_sec(), sum(os.times()[:4]), time.monotonic()

    def cores(self) -> dict[str, float]:
        """others_cores and stolen_cores; empty where that can't be known."""
        now = busy_sec()
        if now is None or self.start is None:
            return {}
        busy, stolen = (b - a for a, b in zip(self.start, now))
        own, sec = sum(os.times()[:4]) - self.own, time.monotonic() - self.at
        return {"others_cores": max(0.0, busy - own) / sec, "stolen_cores": stolen / sec}


def warning(found: dict[str, float], when: str) -> str:
    """One line where others were at work or the host was, else ''. found: of Others.cores."""
    if sum(found.values()) <= NOISY_CORES:
        return ""
    return (f"WARNING: not a quiet machine: other processes kept {found['others_cores']:.2f} of "
            f"{cores()} cores busy {when}, its host took {found['stolen_cores']:.2f}; no timing "
            "here is worth quoting")


# -- what the processor can do -----------------------------------------------------------------

class Gemm:
    """Square matrix products in float32 on all threads: the rate that nothing here can exceed."""

    def __init__(self, size: int) -> None:
        import torch
        self.size = size
        generator = torch.Generator().manual_seed(0)
        self.a, self.b = (torch.randn(size, size, generator=generator) for _ in range(2))
        self.out = torch.empty(size, size)  # the same pages each time

    def __call__(self) -> dict[str, float]:
        import torch
        started = time.perf_counter()
        torch.mm(self.a, self.b, out=self.out)
        return {"flops_per_sec": 2 * self.size ** 3 / (time.perf_counter() - started)}
