"""The records of the study, from nothing: two sweeps, a prediction, the run it is about."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from analysis.study import HELD_OUT, HERE, PREDICTIONS, RUNS, WIDE
from slm.errors import UserError
from slm.screen import say

ROOT = HERE.parent.parent
SWEEPS = ("sweeps/study-small.yaml", "sweeps/study-large.yaml")
# The first counts: without the smallest budget, as the warning of the fit to all runs advises. The
# others say what a reader who knows the floor, or who reads no warnings, would have expected.
LATE = ("--where", f"flops > {WIDE:.0e}")
FORECASTS = (LATE, (*LATE, "--floor", "floor"), ())
FOLDER = "runs/study"
LINES = 100             # of metrics.jsonl that the repository keeps of a run


def train() -> None:
    """Train what is missing (a second call goes on where the first stopped), predict, train the
    held-out run, and put the records beside this file. Raises UserError where a step fails."""
    spec = f"experiments/{HELD_OUT}.yaml"
    for sweep in SWEEPS:
        command("-m", "slm.sweep", "run", sweep)
    if not PREDICTIONS.exists():       # a prediction is made once, and in advance
        gather_all()
        for recipe in FORECASTS:
            command("-m", "analysis.predict", str(RUNS), "--spec", spec,
                    "--out", str(PREDICTIONS), *recipe)
    command("run.py", spec, f"--track.dir={FOLDER}-heldout")
    gather_all()


def command(*words: str) -> None:
    say("$ python " + " ".join(words))
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code:
        raise UserError(f"python {' '.join(words)}: ended with exit code {code}; the same command "
                        "again goes on from there")


def gather_all() -> None:
    """The records of both sweeps and of the held-out run, put beside this file."""
    for part in ("small", "large", "heldout"):
        gather(ROOT / f"{FOLDER}-{part}", RUNS)


def gather(source: Path, target: Path, lines: int = LINES) -> None:
    """Copy the records (no weights) of the finished runs of a folder to another, a folder each,
    metrics thinned to about `lines` lines a run."""
    for summary in sorted(source.glob("*/summary.json")):
        if json.loads(summary.read_text())["status"] != "finished":
            continue
        kept = target / summary.parent.name
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("spec.yaml", "summary.json", "samples.jsonl"):
            shutil.copy(summary.parent / name, kept / name)
        metrics = (summary.parent / "metrics.jsonl").read_text().splitlines()
        (kept / "metrics.jsonl").write_text("\n".join(thinned(metrics, lines)) + "\n")


def thinned(lines: list[str], wanted: int = LINES) -> list[str]:
    """At most about `wanted` lines: every evaluation, and every k-th of the others."""
    step = -(-len(lines) // wanted)
    return [line for i, line in enumerate(lines) if i % step == 0 or '"val/loss"' in line]
