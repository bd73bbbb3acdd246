"""Memory of whole runs beside what `--plan` says: `python run.py` on prepared data, from its start
to its end, with evaluation, samples, checkpoints and plot."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.child import ROOT, ChildFailed, environment, once
from benchmarks.measure import Options
from benchmarks.training import SEED_SHAPE

LARGE = {"data.tokenizer": "gpt2"}                        # 50,304 with its padding
SHAPES = {  # label: sequences a pass, and what differs from the seed's shape with 1,024 tokens
    "seed, V=1,024": (12, {}),
    "seed, V=50,304": (12, LARGE),
    "seed, V=50,304, one sequence a pass": (1, LARGE),
    "seed, V=1,024, batch 48": (48, {}),
    "16 layers": (12, {"model.n_layer": 16}),
    "d512 T256": (8, {"model.n_embd": 512, "model.block_size": 256}),
    "d512 L2, one sequence a pass": (1, {"model.n_embd": 512, "model.n_layer": 2}),
    "8 layers, modern with Muon": (24, {"model.n_layer": 8, "model.preset": "modern",
                                        "optim.name": "muon"}),
    "llama, V=50,304": (12, {**LARGE, "model.preset": "llama"}),
    "d64": (4, {"model.n_embd": 64, "model.n_head": 4})}


class Planned:
    """Prepares a spec's data, in a process of its own, and says what --plan says."""

    def __init__(self, spec: str) -> None:
        self.file = Path(spec)

    def __call__(self) -> dict[str, int]:
        from slm.plan import make_plan, training_memory
        from slm.prepare import prepare
        from slm.spec import load_spec
        spec = load_spec([self.file], {})
        plan = make_plan(spec, prepare(spec.data).tokenizer.vocab_size)
        return {"bytes": training_memory(spec, plan, "cpu")["total"]}


def resident_bytes(spec: Path) -> int:
    """Peak resident set of `python run.py SPEC`."""
    with tempfile.TemporaryFile("w+") as errors:
        run = subprocess.Popen([sys.executable, "run.py", str(spec)], cwd=ROOT, stderr=errors,
                               stdout=subprocess.DEVNULL, env=environment())
        _, status, usage = os.wait4(run.pid, 0)
        if status:
            errors.seek(0)
            raise ChildFailed(f"run.py: {errors.read()[-2000:]}")
    return 1024 * usage.ru_maxrss


def memory_mb(options: Options) -> dict[str, tuple[float, float]]:
    """MB resident at the peak of each run, and what --plan says."""
    out = {}
    for label, (batch, differs) in list(SHAPES.items())[-1 if options.quick else 0:]:
        shape = {f"model.{k}": v for k, v in SEED_SHAPE.items()} | differs
        with tempfile.TemporaryDirectory() as place:
            spec = Path(place) / "run.yaml"
            spec.write_text(json.dumps({
                "data.tokenizer": "bpe:1024", **shape, "data.fables.stories": 3000,
                "data.cache": f"{place}/data", "data.eval_tokens": 10_000, "device.name": "cpu",
                "train.batch_tokens": batch * shape["model.block_size"], "train.steps": 4,
                "train.micro_batch": batch, "track.dir": f"{place}/runs",
                "track.wandb": "disabled"}))
            planned = once("benchmarks.planned:Planned", spec=str(spec))["bytes"]
            out[label] = resident_bytes(spec) / 1e6, planned / 1e6
    return out
