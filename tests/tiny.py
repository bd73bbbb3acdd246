"""A spec that trains in a second or two, and ways to run it: as a command and in this process."""
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
TINY = {
    "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16, "model.block_size": 32,
    "model.dropout": 0.1, "data.tokenizer": "bpe:512", "data.fables.stories": 400,
    "data.fables.val_stories": 20, "data.fables.facts": 50, "train.batch_tokens": 128,
    "train.steps": 20, "train.eval_interval": 5, "optim.lr": 3e-3, "sample.max_new_tokens": 5,
    "track.log_interval": 4, "track.checkpoint_interval": 6, "track.wandb": "disabled",
}


def write_spec(folder: Path, **changes) -> Path:
    """A YAML file with TINY and changes (dots as double underscores: train__steps=5)."""
    values = {**TINY, **{k.replace("__", "."): v for k, v in changes.items()},
              "data.cache": str(folder / "data"), "track.dir": str(folder / "runs")}
    path = folder / "tiny.yaml"
    path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items()))
    return path


def command(spec: Path, *overrides: str, **kw) -> subprocess.CompletedProcess:
    """`python run.py spec overrides`, waited for."""
    return subprocess.run([sys.executable, str(ROOT / "run.py"), str(spec), *overrides],
                          cwd=spec.parent, capture_output=True, text=True, env=environment(), **kw)


def start(spec: Path, *overrides: str, **kw) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / "run.py"), str(spec), *overrides],
                            cwd=spec.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, env=environment(), **kw)


def environment() -> dict:
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return {**env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def only_run(folder: Path) -> Path:
    runs = list((folder / "runs").iterdir())
    assert len(runs) == 1, runs
    return runs[0]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    last = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    return torch.load(last, weights_only=True)["model"]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("time_sec", "tokens_per_sec", "mfu")}
            for row in rows]


def equal_weights(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
