"""What noise does to a fit: resampling over runs, and intervals and predictions from it.

A run is the unit: the rows of one run (its checkpoints) share their luck, so they are drawn
together. Three ways:

residuals  the fitted law plus noise drawn from its residuals, fitted again; every root (estimate -
           truth) is divided by the noise of its own resample, as Student's t is (Hall 1992,
           section 3.5). Right for 15 to 100 runs, where noise is about equal everywhere.
own        as residuals, each run's noise of its own size; for estimators that can't do `runs`.
runs       runs drawn with replacement, percentile intervals, as Besiroglu et al. 2024. Asks
           nothing of the noise, but needs many runs: too wide below about 100.

benchmarks/coverage.py measures what they hold; benchmarks/results/coverage.json is its outcome.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.fit import Fit, refit

METHODS = ("auto", "residuals", "runs")


@dataclass
class Noise:
    """Residuals of a fit, taken apart by run. groups (n,): run number of each row."""
    fit: Fit
    groups: np.ndarray

    def __post_init__(self) -> None:
        r = self.fit.residuals()
        self.n_runs = int(self.groups.max()) + 1
        size = np.bincount(self.groups)
        self.level = np.bincount(self.groups, r) / size            # a run's own luck, (g,)
        self.within = r - self.level[self.groups]                  # (n,), 0 for single rows
        self.scale = float(np.abs(r).mean())
        self.pool = self.corrected_pool(r)
        spread = min(self.pool.std(), 1.25 * np.abs(self.pool).mean())
        self.width = 0.9 * spread * len(self.pool) ** -0.2         # Silverman 1986, eq. 3.31
        self.shrink = 1 / np.sqrt(1 + (self.width / max(self.pool.std(), 1e-300)) ** 2)

    def corrected_pool(self, r: np.ndarray) -> np.ndarray:
        """Run residuals with the shape and size that errors have. An L1-like fit passes exactly
        through p points: those p zeros say nothing of the noise and are left out (Koenker 2005,
        section 3.4). Least squares shrinks all a little: divided by sqrt(1 - leverage)."""
        p = len(self.fit.theta)
        single = self.n_runs == len(r)
        if single and np.mean(np.abs(r) > self.fit.delta) > 0.5:
            keep = max(3, len(r) - p)
            return self.level[np.argsort(-np.abs(self.level), kind="stable")[:keep]]
        j = self.fit.jacobian()                                    # (n, p)
        size = np.bincount(self.groups)
        j_run = np.stack([np.bincount(self.groups, c) / size for c in j.T], 1)
        leverage = np.einsum("gp,pq,gq->g", j_run, np.linalg.pinv(j_run.T @ j_run), j_run)
        return self.level / np.sqrt(1 - np.clip(leverage, 0, 0.9))

    def draw_levels(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Noise of fresh runs: residuals drawn with random sign, smoothed by a normal kernel."""
        picked = rng.choice(self.pool, size=shape) * rng.choice([-1.0, 1.0], size=shape)
        return self.shrink * (picked + self.width * rng.standard_normal(shape))

    def draw(self, rng: np.random.Generator, n_draw: int) -> np.ndarray:
        """Noise for every row, (B, n): a fresh level for each run; what varies within a run keeps
        its order and gets a random sign."""
        levels = self.draw_levels(rng, (n_draw, self.n_runs))[:, self.groups]
        if not self.within.any():
            return levels
        signs = rng.choice([-1.0, 1.0], size=(n_draw, self.n_runs))[:, self.groups]
        return levels + signs * self.within

    def draw_own(self, rng: np.random.Generator, n_draw: int) -> np.ndarray:
        """Noise where its size differs between runs, (B, n): each run's own residuals, times a
        normal number (wild bootstrap, Wu 1986)."""
        return (rng.standard_normal((n_draw, self.n_runs))[:, self.groups]
                * self.fit.residuals() / np.sqrt(max(1 - len(self.fit.theta) / self.n_runs, 0.1)))

    def draw_new(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Noise of one evaluation of runs not in the table."""
        return self.draw_levels(rng, shape) + rng.choice(self.within, size=shape)

    def unequal(self) -> str | None:
        """The column with which the size of residuals changes (Spearman, p < 0.05), if any."""
        columns = {name: np.log(self.fit.design.columns[name]) for name in ("n_params", "tokens")
                   if name in self.fit.design.form.needs}
        columns["loss"] = self.fit.log_loss
        size = np.bincount(self.groups)
        for name, x in columns.items():
            mean = np.bincount(self.groups, x) / size
            if self.n_runs > 9 and np.ptp(mean) > 0 and \
                    stats.spearmanr(np.abs(self.level), mean).pvalue < 0.05:
                return name
        return None


@dataclass
class Resamples:
    """Refits of a law to resampled runs. theta (B, p); scale (B,): mean |residual| of each refit
    (of residual resamples); log_loss (B, n): what was fitted (None for resampled runs)."""
    method: str
    fit: Fit
    noise: Noise
    theta: np.ndarray
    scale: np.ndarray
    log_loss: np.ndarray | None
    converged: float

    @property
    def params(self) -> dict[str, np.ndarray]:
        return self.fit.design.to_params(self.theta)

    def interval(self, value, draws: np.ndarray, level: float = 0.95, truth=None):
        """Interval of a quantity from its value and its draws (B, ...): (low, high).

        truth: the quantity's true value in the resampled world, where the estimator is not the
        one that made the world (approaches 1 and 2): their bias is then taken out."""
        tail = (1 - level) / 2
        if self.method == "runs":
            low, high = quantiles(draws, tail)
            return low, high
        scale = self.scale.reshape(-1, *[1] * (np.ndim(draws) - 1))
        low, high = quantiles((draws - (value if truth is None else truth)) / scale, tail)
        return value - high * self.noise.scale, value - low * self.noise.scale


def quantiles(draws: np.ndarray, tail: float):
    """The tail and 1 - tail quantiles over draws (B, ...), as order statistics at ranks of B + 1
    so that an interval from few draws is not too short. Draws that failed (nan) count as extreme
    on both sides."""
    rank = max(int(tail * (len(draws) + 1)), 1)
    low = np.sort(np.where(np.isfinite(draws), draws, -np.inf), axis=0)[rank - 1]
    high = np.sort(np.where(np.isfinite(draws), draws, np.inf), axis=0)[-rank]
    return low, high


def resample(fit: Fit, groups: np.ndarray, n_draw: int, method: str = "auto", seed: int = 0,
             counts: np.ndarray | None = None) -> tuple[Resamples, str]:
    """Refit to `n_draw` resamples; returns them and a line that says which way was taken and why.

    counts (B, g): how often each run is drawn, for method "runs" (default: drawn from `seed`)."""
    rng = np.random.default_rng(seed)
    noise = Noise(fit, groups)
    why = "as asked"
    if method == "auto":
        column = noise.unequal()
        method = "residuals" if column is None else "runs"
        why = "noise looks equal over the runs" if column is None else \
            f"the size of residuals changes with {column}"
    if method in ("residuals", "own"):
        draw = noise.draw if method == "residuals" else noise.draw_own
        log_loss = fit.log_loss - fit.residuals() + draw(rng, n_draw)
        found = refit(fit, log_loss=log_loss)
        with np.errstate(all="ignore"):
            scale = np.abs(log_loss - np.log(fit.design.value(found.x)[0])).mean(1)
    else:
        if counts is None:
            n = noise.n_runs
            counts = rng.multinomial(n, np.full(n, 1 / n), size=n_draw)
        found = refit(fit, weights=np.asarray(counts, float)[:, groups])
        log_loss, scale = None, np.full(len(counts), noise.scale)
    return Resamples(method, fit, noise, found.x, np.maximum(scale, 1e-12), log_loss,
                     float(found.converged.mean())), why
