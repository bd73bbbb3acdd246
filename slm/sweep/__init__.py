"""Sweeps: W&B's own sweep files, checked, planned and run, with or without W&B's server.

    python -m slm.sweep check|plan|run|status|agents|slurm

Starts run.py as a process of its own and never imports it.
"""
