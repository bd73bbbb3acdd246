"""What a run with track.dynamics_interval measured while it was trained, properly averaged."""
from __future__ import annotations

import numpy as np
import pandas as pd

from slm.errors import UserError

PREFIX = "dynamics/"
LEAST = 8               # measurements a window
GROWTH = 1.25           # later windows are so much wider in proportion


def dynamics_of(source: pd.DataFrame, run: str | None = None,
                longest: bool = False) -> pd.DataFrame:
    """The rows of one run's history that hold measurements, in the order of steps.

    source: of load_history or load_runs. run: which, where several were measured; longest: then
    that with most tokens, if none is named. .attrs["measured"]: the names of all that were. Raises
    UserError: none measured, several and no choice, a name that is not there."""
    if not isinstance(source, pd.DataFrame) or "run" not in source:
        raise UserError("dynamics are drawn from a table of load_history or load_runs")
    if "step" not in source:
        from analysis.runs import load_history
        source = load_history(source)
    columns = [c for c in source if str(c).startswith(PREFIX)]
    rows = source[source[columns].notna().any(axis=1)] if columns else source.iloc[:0]
    names = list(dict.fromkeys(rows["run"]))
    if not names:
        raise UserError("no run here measured its dynamics: train one with "
                        "--track.dynamics_interval=<steps>")
    if run is None and longest:
        run = rows.groupby("run", sort=False)["tokens"].max().idxmax()
    if run is None and len(names) > 1:
        raise UserError(f"{len(names)} runs measured their dynamics: say run=, one of "
                        + ", ".join(names[:6]))
    if run is not None and run not in names:
        raise UserError(f"run={run!r} measured no dynamics; these did: {', '.join(names[:6])}")
    rows = rows[rows["run"] == (run or names[0])].sort_values("step", kind="stable")
    rows = rows.dropna(axis=1, how="all").reset_index(drop=True)
    rows.attrs["measured"] = names
    return rows


def windows(n: int) -> list[slice]:
    """Neighbouring measurements to average, LEAST of n or more each, wider as training goes on and
    changes less. One window where there are fewer than 2 LEAST."""
    starts = [0]
    while (end := max(starts[-1] + LEAST, round(starts[-1] * GROWTH))) + LEAST <= n:
        starts.append(end)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], n])]


def noise_scale(source: pd.DataFrame, run: str | None = None) -> pd.DataFrame:
    """The simple gradient noise scale of a run over its training, a row a window: tokens (mean), n
    measurements, value, low, high (95 %), grad_mean_sq, grad_variance_tokens. In tokens.

    tr(Sigma) and |G|^2 are averaged over the window and then divided (McCandlish et al. 2018, arXiv
    1812.06162, appendix A.1): a single step's |G|^2 may be negative, and a mean of ratios is biased
    without bound. The interval is Fieller's for a ratio of means (1954); where |G|^2 is not clearly
    above 0 it has no upper end. value is inf where the mean of |G|^2 is not positive.

    Raises UserError as dynamics_of does, and where the run has no noise scale."""
    rows = dynamics_of(source, run)
    names = [f"{PREFIX}grad_variance_tokens", f"{PREFIX}grad_mean_sq"]
    if not set(names) <= set(rows):
        raise UserError(f"{rows['run'][0]} has no noise scale: a batch of one sequence has no "
                        "parts to compare")
    rows = rows.dropna(subset=names)
    out = []
    for window in windows(len(rows)):
        part = rows.iloc[window]
        variance, mean_sq = part[names].to_numpy(float).T
        low, high = fieller(variance, mean_sq)
        over, under = variance.mean(), mean_sq.mean()
        out.append({"tokens": part["tokens"].mean(), "n": len(part), "value": over / under
                    if under > 0 else np.inf, "low": low, "high": high, "grad_mean_sq": under,
                    "grad_variance_tokens": over})
    return pd.DataFrame(out)


def fieller(a: np.ndarray, b: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of mean(a) / mean(b) for paired samples (n,) of positive quantities: the ratios r
    for which mean(a - r b) is not significantly off 0. Ends are 0 and inf where the data set none
    (all of both for n < 2)."""
    from scipy.stats import t
    n = len(a)
    if n < 2:
        return 0.0, np.inf
    t2 = t.ppf((1 + level) / 2, n - 1) ** 2
    (vaa, vab), (_, vbb) = np.cov(a, b) / n
    square, half = b.mean() ** 2 - t2 * vbb, a.mean() * b.mean() - t2 * vab
    under_root = half**2 - square * (a.mean() ** 2 - t2 * vaa)
    if under_root < 0:                      # any ratio will do
        return 0.0, np.inf
    ends = sorted((half + sign * np.sqrt(under_root)) / square for sign in (-1, 1))
    if square <= 0:                         # the mean of b may be 0: from the larger end on
        return max(ends[1], 0.0), np.inf
    return max(ends[0], 0.0), ends[1]
