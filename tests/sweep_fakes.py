"""What the tests of slm.sweep share: a run.py without torch, and short ways to write and run a
sweep. The fake keeps run.py's contract: arguments, run folder, exit codes, signals, resume."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent

RUN = '''
import json, os, signal, sys, time
from slm.errors import ImpossiblePoint, UserError
from slm.orphan import die_with_parent
from slm.record import Record
from slm.spec import as_dict, identity, load_spec, parse_arguments, run_folder

Record._plot = lambda self: None  # matplotlib takes longer than all the rest

def main():
    got = []
    for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(n, lambda number, frame: got.append(number))
    under_agent = "WANDB_SWEEP_ID" in os.environ
    try:
        spec = load_spec(*parse_arguments(sys.argv[1:]))
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    folder = run_folder(spec)
    done = Record.peek(folder)
    if done and done["status"] in ("finished", "diverged"):
        return 0
    with open(os.environ["FAKE_STARTS"], "a") as f:
        f.write(folder.name + "\\n")
    if spec.train.seed == 13:                     # crashes each time
        raise RuntimeError("unlucky seed")
    if spec.train.seed == 14 and not folder.exists():
        folder.mkdir(parents=True)                # crashes the first time
        os.kill(os.getpid(), signal.SIGKILL)
    steps, pause = spec.train.steps, float(os.environ.get("FAKE_STEP_SEC", "0.005"))
    if os.path.exists("hurry"):
        pause = 0.002
    with Record.open(folder, as_dict(spec), identity(spec)) as record:
        saved = folder / "checkpoints.txt"
        first = int(saved.read_text()) if saved.exists() else 0
        record.start(first, {"machine": {"device": "cpu"}, "flops_per_token": {"matmul": 1e6}},
                     spec.track if under_agent else None)
        step = first
        while step < steps:
            time.sleep(pause)
            step += 1
            loss = spec.optim.lr * 1000 + spec.train.seed / 100 + 1 / step
            tokens = step * spec.train.batch_tokens
            record.log(step, {"tokens": tokens, "flops": tokens * 1e6, "train/loss": loss,
                              "val/loss": loss})
            if spec.train.seed == 15 and step == 2:
                record.finish("diverged", "training loss nan at step 2")
                return 0 if under_agent else 3
            if got:
                saved.write_text(str(step))
                record.finish("preempted", f"signal {got[0]}")
                return 128 + got[0]
        record.finish("finished", "reached its horizon")
    return 0

sys.exit(main())
'''


def workplace(folder: Path, parameters: dict, base: dict | None = None, **keys) -> Path:
    """A folder with run.py (the fake), base.yaml and s.yaml; returns the sweep file's path."""
    (folder / "run.py").write_text(RUN)
    spec = {"model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16},
            "data": {"tokenizer": "bpe:512"},
            "train": {"steps": 4, "batch_tokens": 64, **(base or {}).pop("train", {})},
            "optim": {"lr": 1e-3}, **(base or {})}
    (folder / "base.yaml").write_text(yaml.safe_dump(spec))
    sweep = {"program": "run.py", "method": "grid",
             "command": ["${env}", "${interpreter}", "${program}", "base.yaml", "${args}"],
             "parameters": parameters, **keys}
    (folder / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    return folder / "s.yaml"


def environment(folder: Path, **extra) -> dict:
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return {**env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled",
            "FAKE_STARTS": str(folder / "starts.txt"), "CUDA_VISIBLE_DEVICES": "",
            **{k: str(v) for k, v in extra.items()}}


def start(folder: Path, *args: str, **extra) -> subprocess.Popen:
    """`python -m slm.sweep ARGS` in a folder, in the background."""
    return subprocess.Popen([sys.executable, "-m", "slm.sweep", *args], cwd=folder,
                            env=environment(folder, **extra), stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def sweep(folder: Path, *args: str, **extra) -> tuple[int, str]:
    """`python -m slm.sweep ARGS` in a folder: exit code, and all that it printed."""
    done = subprocess.run([sys.executable, "-m", "slm.sweep", *args], cwd=folder, text=True,
                          env=environment(folder, **extra), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=100)
    return done.returncode, done.stdout


def starts(folder: Path) -> list[str]:
    """The run folder of every start of the fake, in order."""
    file = folder / "starts.txt"
    return file.read_text().split() if file.exists() else []


def statuses(folder: Path) -> dict[str, str]:
    """Run folder -> status, of all runs under folder/runs."""
    return {p.parent.name: json.loads(p.read_text())["status"]
            for p in folder.glob("runs/*/*/summary.json")}


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
