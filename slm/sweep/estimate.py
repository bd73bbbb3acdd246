"""How long points will take: from runs that finished here, else from a stated assumption."""
from __future__ import annotations

import heapq
import json
import math
import os
import statistics
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from slm.screen import several
from slm.sweep.points import Point, Sweep
from slm.sweep.status import took_sec

MOST_RUNS = 200          # read no more than this many finished runs
SHARE_OF_MATMUL = 0.3    # of a plain matrix product's speed, reached by training on a CPU
LAYER_SEC = 0.006        # of a pass through a layer on a CPU, beside its matrix products (36 models
                         # of 1 to 3 layers, widths 16 to 64, 512 tokens a pass, one thread)
GPU_FLOPS = 5e13         # per second, assumed of a GPU until a run has finished here
FIXED_SEC = 4.0          # of a run, beside its training: imports, data, last checkpoint, plot
                         # (three tiny runs on two quiet cores: 3.9 to 4.2)


@dataclass(frozen=True)
class Run:
    """A finished run. fixed_sec: from its start to its end without its training, where a launcher
    has noted it."""
    flops_per_token: float
    flops: float
    train_sec: float
    fixed_sec: float | None = None


@dataclass
class Times:
    """Expected seconds of a sweep's points. known: finished runs; assumed: FLOPs per second where
    there are none; layer_sec: of a pass through a layer, then."""
    sweep: Sweep
    known: list[Run] = field(default_factory=list)
    assumed: float = 0.0
    layer_sec: float = 0.0
    how: str = ""

    @cached_property
    def fixed_sec(self) -> float:
        """Seconds of a run beside its training; the median of the known."""
        noted = [run.fixed_sec for run in self.known if run.fixed_sec is not None]
        return statistics.median(noted) if noted else FIXED_SEC

    @property
    def reason(self) -> str:
        """What the times rest on."""
        measured = any(run.fixed_sec is not None for run in self.known)
        fixed = f"{self.fixed_sec:.2g} s for the start and the end of each"
        if self.known:
            return (f"from {several(len(self.known), 'finished run')} here, with "
                    f"{'their' if measured else 'an assumed'} {fixed}")
        return f"assuming {self.how}, and {fixed}, as no run has finished here yet"

    def seconds(self, point: Point) -> float:
        """Of the whole process of a point."""
        return self.fixed_sec + self.train_seconds(point)

    def train_seconds(self, point: Point) -> float:
        """By the finished run nearest in size and length: larger models run closer to peak, and
        short runs have more evaluations for each step."""
        plan = point.plan
        per_token = plan.flops_per_token["matmul"]
        if self.known:
            near = min(self.known, key=lambda run: abs(math.log(run.flops_per_token / per_token))
                       + abs(math.log(run.flops / point.flops)))
            return near.train_sec * point.flops / near.flops
        evaluations = 1 + math.ceil(plan.steps / (plan.eval_interval or plan.steps))
        evaluated = evaluations * self.sweep.eval_tokens(point.spec) / 3  # forward: a third of it
        passes = point.tokens / (plan.micro_batch * plan.config.block_size)
        return ((point.flops + evaluated * per_token) / self.assumed
                + passes * (plan.config.n_layer + 1) * self.layer_sec)


def measure(sweep: Sweep, on_gpu: bool) -> Times:
    """The times to expect of runs on this machine."""
    known = finished_runs(sweep.folder, on_gpu) or finished_runs(sweep.folder.parent, on_gpu)
    if known:
        return Times(sweep, known)
    if on_gpu:
        return Times(sweep, [], GPU_FLOPS, 0.0, f"{GPU_FLOPS / 1e12:.0f} TFLOP/s a GPU, no time to "
                                                "compile")
    rate = matmul_flops()
    return Times(sweep, [], SHARE_OF_MATMUL * rate, LAYER_SEC,
                 f"{SHARE_OF_MATMUL:.0%} of this CPU's {rate / 1e9:.0f} GFLOP/s in matrix products "
                 f"on one thread, {1000 * LAYER_SEC:.0f} ms more a layer and pass")


def finished_runs(folder: Path, on_gpu: bool) -> list[Run]:
    """The runs in a folder that finished on such a device, the newest first."""
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
            took = took_sec(Path(entry.path))
            out.append(Run(summary["flops_per_token"]["matmul"], flops, seconds,
                           took and max(0.0, took - seconds)))
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
