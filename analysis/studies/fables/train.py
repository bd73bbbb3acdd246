"""The records of the study, from nothing: two sweeps, a prediction, the run it is about."""
from __future__ import annotations

from analysis.studies import ROOT
from analysis.studies.fables import HELD_OUT, PREDICTIONS, RUNS, WIDE
from analysis.studies.records import command, copy_records

SWEEPS = ("sweeps/study-small.yaml", "sweeps/study-large.yaml")
# The first counts: without the smallest budget, as the warning of the fit to all runs advises. The
# others say what a reader who knows the floor, or who reads no warnings, would have expected.
LATE = ("--where", f"flops > {WIDE:.0e}")
FORECASTS = (LATE, (*LATE, "--floor", "floor"), ())
FOLDER = "runs/study"


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


def gather() -> None:
    """The records of both sweeps and of the held-out run, put beside this file."""
    for part in ("small", "large", "heldout"):
        copy_records(ROOT / f"{FOLDER}-{part}", RUNS)
