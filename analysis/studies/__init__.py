"""Short studies with a command each; their pages are analysis/study-*.md.

    python -m analysis.studies transfer             the page and its figures, from the records
    python -m analysis.studies transfer --train     the records first: its sweeps, on this machine
"""
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STUDIES = ("transfer",)
