"""What we found out with this harness; the pages are analysis/study-*.md.

    python -m analysis.studies fables             a page and its figures, from the records kept here
    python -m analysis.studies fables --train     the records first: its sweeps, on this machine
"""
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STUDIES = ("fables", "zipf", "transfer", "tokens")
