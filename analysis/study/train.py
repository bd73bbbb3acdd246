"""The records of the study, from nothing: two sweeps, a prediction, the run it is about."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys

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
        gather()
        for recipe in FORECASTS:
            command("-m", "analysis.predict", str(RUNS), "--spec", spec,
                    "--out", str(PREDICTIONS), *recipe)
    command("run.py", spec, f"--track.dir={FOLDER}-heldout")
    gather()


def command(*words: str) -> None:
    say("$ python " + " ".join(words))
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code:
        raise UserError(f"python {' '.join(words)}: ended with exit code {code}; the same command "
                        "again goes on from there")


def gather() -> None:
    """Copy the records (no weights) of the finished runs, metrics thinned to LINES lines a run."""
    for part in ("small", "large", "heldout"):
        for source in sorted((ROOT / f"{FOLDER}-{part}").glob("*/summary.json")):
            if json.loads(source.read_text())["status"] != "finished":
                continue
            target = RUNS / source.parent.name
            target.mkdir(parents=True, exist_ok=True)
            for name in ("spec.yaml", "summary.json", "samples.jsonl"):
                shutil.copy(source.parent / name, target / name)
            lines = (source.parent / "metrics.jsonl").read_text().splitlines()
            (target / "metrics.jsonl").write_text("\n".join(thinned(lines)) + "\n")


def thinned(lines: list[str]) -> list[str]:
    """At most about LINES lines: every evaluation, and every k-th of the others."""
    step = -(-len(lines) // LINES)
    return [line for i, line in enumerate(lines) if i % step == 0 or '"val/loss"' in line]
