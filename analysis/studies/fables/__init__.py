"""A law on fables, checked against what is known: the floor, and a run predicted in advance.

    python -m analysis.studies fables            analysis/study-fables.md and figures, from records
    python -m analysis.studies fables --train    the records first: sweeps, prediction, held-out run
"""
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNS = HERE / "runs"
PREDICTIONS = RUNS / "predictions.jsonl"
HELD_OUT = "study-heldout"              # the spec of the run foretold, and how its name begins
WIDE = 4e11                             # budgets above it: the runs that are past their first fall
