"""What a record costs per step: a line of metrics, a sample's line, the progress line, and W&B
offline, whose processes work beside the training.

A run is imitated: Record and Mirror as run.py uses them, and steps of 50 ms that do nothing. Its
own time per step is what the training loses; the CPU time of W&B's processes is lost only where no
core is free, and is shown apart."""
from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from benchmarks.child import Child
from benchmarks.measure import Options, Reach, Row, skip
from benchmarks.text import family

STEP_SEC = 0.05
TEXT = "Once upon a time, there was a little mouse named Ada. " * 8
METRICS = {"tokens": 1536, "flops": 1.5e11, "train/loss": 2.3456789, "lr": 6e-4,
           "grad_norm": 0.87654321, "tokens_per_sec": 3141.59}


class Tracked:
    """A record whose steps are logged. wandb: disabled | offline."""

    def __init__(self, folder: str, wandb: str, log_interval: int) -> None:
        from slm.record import Record
        from slm.screen import Progress
        self.interval, self.wandb = log_interval, wandb
        track = SimpleNamespace(wandb=wandb, project="slm", entity=None, group=None, tags=[])
        self.record = Record.open(Path(folder) / f"{wandb}-{log_interval}", {"model": {}}, "0" * 8)
        self.record.start(0, {}, track)
        self.bar = Progress(10 ** 9).__enter__()
        self.step = 0
        started = time.monotonic()
        while wandb == "offline" and not self.record.mirror.ready \
                and time.monotonic() - started < 60:
            time.sleep(0.1)
            self.record.mirror.poll()

    def __call__(self, steps: int, pause: float) -> dict[str, float]:
        """Microseconds of the training process per step, and CPU of all W&B's processes. No steps:
        the end of the run."""
        if not steps:
            self.record.mirror.finish(0)
            self.record.close()
            return {}
        spent, wandb = 0.0, self.wandb_cpu_sec()
        for _ in range(steps):
            time.sleep(pause)
            started = time.perf_counter()
            self.one()
            spent += time.perf_counter() - started
        time.sleep(2 if self.wandb == "offline" and pause else 0)     # let them finish their work
        return {"own_us": 1e6 * spent / steps,
                "wandb_us": 1e6 * (self.wandb_cpu_sec() - wandb) / steps}

    def one(self) -> None:
        self.step += 1
        logged = self.step % self.interval == 0
        if logged:
            self.record.log(self.step, METRICS)
        if self.step % 500 == 0:
            self.record.sample(self.step, 1536 * self.step, "Once upon a time", TEXT)
        self.bar.update(self.step, METRICS, logged=logged)

    def wandb_cpu_sec(self) -> float:
        """CPU seconds of this process's descendants: the mirror, wandb-core."""
        total = 0
        for pid in family(os.getpid())[1:]:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
            except OSError:
                continue
        return total / os.sysconf("SC_CLK_TCK")


def rows(options: Options) -> list[Row]:
    out = []
    calls, steps = (1, 40) if options.quick else (5, 200)
    has_wandb = importlib.util.find_spec("wandb") is not None
    with tempfile.TemporaryDirectory() as folder:
        for wandb, interval in (("disabled", 1), ("disabled", 10), ("offline", 1), ("offline", 10)):
            what = f"W&B {wandb}, a line every {'step' if interval == 1 else f'{interval} steps'}"
            if wandb == "offline" and not has_wandb:
                out.append(skip(what, "wandb is not installed"))
                continue
            pause = STEP_SEC if wandb == "offline" else 0.0
            env = {"WANDB_SILENT": "true", "WANDB_DIR": folder} if wandb == "offline" else {}
            with Child("benchmarks.tracking:Tracked", env, folder=folder, wandb=wandb,
                       log_interval=interval) as run:
                found = [run(steps=steps if pause else 50 * steps, pause=pause)
                         for _ in range(calls)]
                run(steps=0, pause=0)
                run.close()
            out += rows_of(what, found, wandb, interval)
    return out


def rows_of(what: str, found: list[dict], wandb: str, interval: int) -> list[Row]:
    def share(key: str) -> list[float]:
        return [100 * r[key] / (1e6 * STEP_SEC) for r in found]

    note = f"of a {1000 * STEP_SEC:.0f} ms step; the training process's own time"
    reach = Reach(1, at_most=True)
    out = [Row(what, "% of a step", share("own_us"), reach=reach, note=note)]
    if wandb == "offline":
        out.append(Row("  CPU of W&B's own processes beside it", "% of a step", share("wandb_us"),
                       reach=reach if interval == 10 else None,
                       note="of one core, after its start; on a machine with a free core the "
                            "training does not feel it"))
    return out
