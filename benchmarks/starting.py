"""What a user waits for besides the training steps: the answers of the planning commands, and the
start and the end of a run, beside nanoGPT's train.py on the same data."""
from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.child import ROOT, ChildFailed, environment, once
from benchmarks.measure import (NO_NANOGPT, Options, Reach, Row, Spread, interleave, number,
                                skip)

# -- start to answer ---------------------------------------------------------------------------


def command_ms(*args: str, cwd: Path = ROOT) -> float:
    """Milliseconds of `python ARGS`, from before it is started until it has ended."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=environment(), text=True,
                          stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise ChildFailed(f"python {' '.join(args)}: {done.stderr[-2000:]}")
    return 1000 * (time.perf_counter() - started)


def answers(options: Options) -> list[Row]:
    """Start to answer of the commands that train nothing."""
    commands = {"python, doing nothing": ["-c", "pass"],
                "run.py --plan": ["run.py", "experiments/base.yaml", "--plan"],
                "run.py --help": ["run.py", "--help"],
                "slm.sweep status": ["-m", "slm.sweep", "status", "sweeps/width-cpu.yaml"],
                "slm.sweep plan": ["-m", "slm.sweep", "plan", "sweeps/width-cpu.yaml"]}
    found = interleave({name: lambda args=args: command_ms(*args)
                        for name, args in commands.items()}, options.rounds(10), warmup=1)
    bare = found.pop("python, doing nothing")
    reach = {"run.py --plan": Reach(1500, at_most=True), "slm.sweep status":
             Reach(1500, at_most=True)}
    note = f"python that does nothing: {number(Spread.of(bare).median)} ms"
    return [Row(f"{name}, start to answer", "ms", values, reach=reach.get(name),
                note=note if name == "run.py --plan" else "") for name, values in found.items()]


# -- a run's fixed cost ------------------------------------------------------------------------

TOKENS, VOCAB = 20_000, 512
SHAPE = dict(n_layer=2, n_head=2, n_embd=32, block_size=32)
BATCH = 4
STEPS = 20


def prepare_data(folder: str) -> object:
    """A child's work: our prepared folder of a text file, and nanoGPT's bins with the same ids."""
    def work() -> dict:
        import numpy as np
        from slm.prepare import prepare
        from slm.spec import load_spec
        words = [f"w{i:03d}" for i in range(200)]
        rng = np.random.default_rng(0)
        text = "<|endoftext|>".join(" ".join(rng.choice(words, 100)) for _ in range(200))
        (Path(folder) / "text.txt").write_text(text)
        found = prepare(load_spec([Path(folder) / "spec.yaml"]).data)
        place = Path(folder) / "data" / "tiny"
        place.mkdir(parents=True)
        for split in ("train", "val"):
            np.asarray(getattr(found, split)).astype(np.uint16).tofile(place / f"{split}.bin")
        vocab = found.meta["vocab_size"]
        (place / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab}))
        return {"vocab_size": vocab}
    return work


def write_spec(folder: Path) -> None:
    import json
    values = {"data.corpus": "files", "data.path": str(folder / "text.txt"),
              "data.tokenizer": f"bpe:{VOCAB}", "data.cache": str(folder / "prepared"),
              "train.batch_tokens": BATCH * SHAPE["block_size"], "train.steps": STEPS,
              "data.eval_tokens": BATCH * SHAPE["block_size"], "train.eval_interval": 0,
              "sample.interval": 0, "track.log_interval": 1, "track.wandb": "disabled",
              "model.bias": False, **{f"model.{k}": v for k, v in SHAPE.items()}}
    (folder / "spec.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items()))


def watched(args: list[str], cwd: Path, first_step) -> dict[str, float]:
    """Run a command; first_step(process) returns when its first step is over. Milliseconds until
    then, and of the whole command."""
    started = time.perf_counter()
    process = subprocess.Popen(args, cwd=cwd, env=environment(PYTHONUNBUFFERED="1"), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    rest: list[str] = []
    first_step(process, rest)
    first = time.perf_counter() - started
    threading.Thread(target=lambda: rest.extend(process.stdout), daemon=True).start()
    code = process.wait()
    whole = time.perf_counter() - started
    if code:
        raise ChildFailed(f"{' '.join(args)} ended with {code}: {''.join(rest)[-2000:]}")
    return {"first": 1000 * first, "whole": 1000 * whole}


def our_run(folder: Path, number_of_run: int) -> dict[str, float]:
    """run.py, with a record, the final evaluation, one sample, a checkpoint and the plot."""
    runs = folder / f"runs-{number_of_run}"

    def first_step(process, rest) -> None:
        while process.poll() is None:
            time.sleep(0.002)
            for file in runs.glob("*/metrics.jsonl"):
                if '"train/loss"' in file.read_text():
                    return

    return watched([sys.executable, str(ROOT / "run.py"), str(folder / "spec.yaml"),
                    f"--track.dir={runs}", "--sample.max_new_tokens=20"], ROOT, first_step)


def nanogpt_run(folder: Path, nanogpt: Path) -> dict[str, float]:
    """train.py, with its evaluation at the start and at the end and its checkpoint."""
    for name in ("train.py", "model.py", "configurator.py"):
        if not (folder / name).exists():
            (folder / name).symlink_to(nanogpt / name)

    def first_step(process, rest) -> None:
        for line in process.stdout:
            rest.append(line)
            if line.startswith("iter 0:"):
                return

    settings = {"dataset": "tiny", "device": "cpu", "compile": False, "dtype": "float32",
                "batch_size": BATCH, "gradient_accumulation_steps": 1, "eval_iters": 1,
                "max_iters": STEPS, "eval_interval": STEPS, "lr_decay_iters": STEPS,
                "warmup_iters": 1, **SHAPE}
    return watched([sys.executable, "train.py", *(f"--{k}={v}" for k, v in settings.items())],
                   folder, first_step)


def fixed_cost(options: Options) -> list[Row]:
    """Whole commands whose steps take next to nothing."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_spec(folder)
        vocab = once("benchmarks.starting:prepare_data", folder=place)["vocab_size"]
        runs = iter(range(100))
        sides = {"ours": lambda: our_run(folder, next(runs))}
        if options.nanogpt:
            sides["nanoGPT"] = lambda: nanogpt_run(folder, options.nanogpt)
        found = interleave(sides, options.rounds(7), warmup=0 if options.quick else 1)
    mine, theirs = found["ours"], found.get("nanoGPT", [])
    note = (f"{STEPS} steps of a model of width {SHAPE['n_embd']} (V={vocab}, prepared before); "
            "ours with lock, record, sample, checkpoints and loss.png, nanoGPT's with checkpoint")
    rows = [Row(f"a run: {what}", "ms", [r[key] for r in mine], [r[key] for r in theirs],
                "nanoGPT's train.py", Reach(1, "ratio") if theirs else None,
                note if key == "first" else "")
            for key, what in (("first", "start to the end of the first step"),
                              ("whole", f"the whole command, {STEPS} tiny steps"))]
    after = Spread.of([r["whole"] - r["first"] for r in mine]).median
    rows[1].note = f"ours from the end of the first step: {number(after)} ms"
    return rows + ([] if theirs else [skip("  beside nanoGPT", NO_NANOGPT)])
