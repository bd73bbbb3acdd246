"""A law on fables, checked against what is known: the floor, and a run predicted in advance.

    python -m analysis.study            analysis/study-fables.md and its figures, from the records
    python -m analysis.study --train    the records first: sweeps, prediction, held-out run
"""
