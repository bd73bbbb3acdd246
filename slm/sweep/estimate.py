"""How long points will take: from runs that finished here, else from a stated assumption."""
from __future__ import annotations

import heapq
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from slm.sweep.points import Point, Sweep

MOST_RUNS = 200          # read no more than this many finished runs
SHARE_OF_MATMUL = 0.3    # of a plain matrix product's speed, reached by training on a CPU
GPU_FLOPS = 5e13         # per second, assumed of a GPU until a run has finished here


@dataclass
class Rate:
    """Training FLOPs per second. known: (FLOPs per token, FLOPs per second) of finished runs."""
    known: list[tuple[float, float]] = field(default_factory=list)
    assumed: float = 0.0
    reason: str = ""

    def of(self, flops_per_token: float) -> float:
        """That of the finished run nearest in size, since larger models run closer to peak."""
        if not self.known:
            return self.assumed
        return min(self.known, key=lambda k: abs(math.log(k[0] / flops_per_token)))[1]

    def seconds(self, point: Point) -> float:
        return point.flops / self.of(point.plan.flops_per_token["matmul"])


def measure(sweep: Sweep, on_gpu: bool) -> Rate:
    """The rate to expect of a run on this machine."""
    known = finished_runs(sweep.folder, on_gpu) or finished_runs(sweep.folder.parent, on_gpu)
    if known:
        return Rate(known, 0.0, f"from {len(known)} finished run{'s' * (len(known) > 1)} here")
    if on_gpu:
        return Rate([], GPU_FLOPS, f"assuming {GPU_FLOPS / 1e12:.0f} TFLOP/s a GPU, as no run has "
                                   "finished here yet")
    rate = matmul_flops()
    return Rate([], SHARE_OF_MATMUL * rate,
                f"assuming {SHARE_OF_MATMUL:.0%} of this CPU's {rate / 1e9:.0f} GFLOP/s in matrix "
                "products on one thread, as no run has finished here yet")


def finished_runs(folder: Path, on_gpu: bool) -> list[tuple[float, float]]:
    """(FLOPs per token, FLOPs per second) of the runs in a folder that finished on such a device,
    the newest first."""
    out = []
    try:
        runs = sorted((e for e in os.scandir(folder) if e.is_dir()),
                      key=lambda e: -e.stat().st_mtime)
    except OSError:
        return []
    for entry in runs[:MOST_RUNS]:
        summary = read_json(Path(entry.path) / "summary.json") or {}
        seconds, flops = summary.get("time_sec"), summary.get("flops")
        device = summary.get("machine", {}).get("device", "cpu")
        if summary.get("status") == "finished" and seconds and flops \
                and on_gpu == device.startswith("cuda"):
            out.append((summary["flops_per_token"]["matmul"], flops / seconds))
    return out


def read_json(path: Path) -> dict | None:
    try:
        value = json.loads(path.read_bytes())
        return value if isinstance(value, dict) else None
    except (OSError, ValueError):
        return None


def matmul_flops() -> float:
    """FLOPs per second of one thread's float32 matrix products, measured for 0.1 s."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    import numpy as np
    n, best = 512, math.inf
    a = np.ones((n, n), np.float32)
    stop = time.perf_counter() + 0.1
    while time.perf_counter() < stop:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def makespan(seconds: list[float], slots: int) -> float:
    """Time until all are done, each in turn taken by the first free slot."""
    free = [0.0] * max(1, slots)
    for s in seconds:
        heapq.heappush(free, heapq.heappop(free) + s)
    return max(free)
