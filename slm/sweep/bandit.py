"""Early termination by Hyperband, as W&B defines it (wandb/sweeps 0.3.0, hyperband_stopping.py;
Li et al. 2016, arXiv 1603.06560).

A "band" is a number of logged points of the metric. At each band the best 1/eta of all runs that
got there set a threshold; a running point worse than that of its latest band is stopped.
"""
from __future__ import annotations

import json
import math
from pathlib import Path


def bands(stop: dict) -> list[int]:
    """The bands of an `early_terminate:`, in logged points of the metric, rising."""
    eta = stop.get("eta", 3)
    if "max_iter" in stop:
        sizes = [stop["max_iter"] / eta**i for i in range(1, stop["s"] + 1)]
        return sorted(int(b) for b in sizes if b >= 1)
    return [int(stop["min_iter"] * eta**i) for i in range(60) if stop["min_iter"] * eta**i < 1e12]


def threshold(values: list[float], eta: float) -> float:
    """What a run must not exceed at a band where these are all the values."""
    return sorted(values)[int(len(values) / eta)] if values else math.inf


def to_stop(histories: dict[str, list[float]], running: list[str], stop: dict) -> dict[str, str]:
    """The running points to end, each with the reason.

    histories: for every point so far its values of the metric, lower being better."""
    eta, out = stop.get("eta", 3), {}
    limits = [(band, threshold([h[band - 1] for h in histories.values() if len(h) >= band], eta))
              for band in bands(stop)]
    for name in running:
        history = histories.get(name, [])
        passed = [(band, limit) for band, limit in limits if band <= len(history)]
        if not passed:
            continue
        band, limit = passed[-1]
        value = history[band - 1] if stop.get("strict", True) else min(history)
        if value > limit:
            out[name] = (f"{value:.4g} after {band} values, where the best 1/{eta:g} have "
                         f"{limit:.4g}")
    return out


class History:
    """The values of one metric in a growing metrics.jsonl, lower being better."""

    def __init__(self, path: Path, metric: str, maximize: bool) -> None:
        self.path, self.metric, self.sign = path, metric, -1.0 if maximize else 1.0
        self.offset, self.values = 0, []

    def read(self) -> list[float]:
        """All values so far; reads only what is new (all of it where the file became shorter)."""
        try:
            with open(self.path, "rb") as f:
                f.seek(0, 2)
                if f.tell() < self.offset:
                    self.offset, self.values = 0, []
                f.seek(self.offset)
                new = f.read()
        except OSError:
            return self.values
        whole = new[:new.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            value = json.loads(line).get(self.metric)
            if isinstance(value, (int, float)) and math.isfinite(value):
                self.values.append(self.sign * value)
        return self.values
