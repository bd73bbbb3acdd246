"""Known answer, known law: do the exponents of a law follow from the data's own?

    python -m analysis.studies zipf            analysis/study-zipf.md and its figures, from records
    python -m analysis.studies zipf --train    the records first: a sweep, and what its models pay
"""
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNS = HERE / "runs"
SWEEP = "sweeps/zipf.yaml"
CELLS = HERE / "facts.csv"              # what each model pays for facts; see measure.py
