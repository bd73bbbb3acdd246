"""What noise does to a fit: resampling over runs, and intervals and predictions from it.

A run is the unit: the rows of one run (its checkpoints) share their luck, so they are drawn
together. Three ways:

residuals  the fitted law plus noise drawn from its residuals, fitted again; every root (estimate -
           truth) is divided by the noise of its own resample, as Student's t is (Hall 1992,
           section 3.5). Right for 15 to 100 runs, where noise is about equal everywhere.
own        as residuals, each run's noise of its own size; for estimators that can't do `runs`.
runs       runs drawn with replacement, percentile intervals, as Besiroglu et al. 2024. Asks
           nothing of the noise, but needs many runs: too wide below about 100.

Roots are turned about the estimate, which presumes that it scatters alike wherever the truth lies.
Where runs say so little that refits pile up at the limit of the search for a floor, or that
exponents below zero would come of it, it does not: intervals are then percentiles of the refits (of
a small sweep with a fitted floor 92 to 98 % hold the truth; of turned roots 50 to 83 % did).

What they hold is measured by benchmarks/interval_coverage.py (results/coverage.json beside it).
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats

from analysis.scaling.fit import Fit, refit
from analysis.scaling.forms import Columns

METHODS = ("auto", "residuals", "runs")
PILED = 0.025        # share of refits at the limit, from which on they are the tail of an interval


@dataclass
class Noise:
    """Residuals of a fit, taken apart by run. groups (n,): run number of each row."""
    fit: Fit
    groups: np.ndarray

    def __post_init__(self) -> None:
        r = self.fit.residuals()
        self.n_runs = int(self.groups.max()) + 1
        self.level = self.run_mean(r)                              # a run's own luck, (g,)
        self.within = r - self.level[self.groups]                  # (n,), 0 for single rows
        self.scale = float(typical_size(r))
        self.pool = self.corrected_pool(r)
        spread = min(self.pool.std(), np.median(np.abs(self.pool)) / 0.6745)
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
        j_run = np.stack([self.run_mean(c) for c in j.T], 1)
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

    def draw_new(self, rng: np.random.Generator, columns: Columns, n_draw: int) -> np.ndarray:
        """Noise of one evaluation of runs not in the table, with these columns (m,): (B, m). Where
        residuals grow or shrink with a column, so does it, as far as the runs reach."""
        m = len(next(iter(columns.values())))
        noise = self.draw_levels(rng, (n_draw, m)) + rng.choice(self.within, size=(n_draw, m))
        if self.unequal is None or self.unequal not in columns:
            return noise
        x = self.run_mean(np.log(self.fit.design.columns[self.unequal]))
        size = np.maximum(np.abs(self.level), 0.1 * self.scale)
        slope = stats.theilslopes(np.log(size), x).slope
        at = np.clip(np.log(columns[self.unequal]), x.min(), x.max())
        typical = np.sqrt(np.mean(np.exp(2 * slope * (x - x.mean()))))
        return noise * np.exp(slope * (at - x.mean())) / typical

    def run_mean(self, values: np.ndarray) -> np.ndarray:
        """Means over the rows of each run: (n,) to (g,)."""
        return np.bincount(self.groups, values) / np.bincount(self.groups)

    @cached_property
    def unequal(self) -> str | None:
        """The column with which the size of residuals changes (Spearman, p < 0.05), if any."""
        size = np.abs(self.level)
        for name in ("n_params", "tokens", "flops"):
            if name not in self.fit.design.form.needs or self.n_runs < 10 or self.scale < 1e-9:
                continue
            x = self.run_mean(np.log(self.fit.design.columns[name]))
            if min(np.ptp(x), np.ptp(size)) > 0 and stats.spearmanr(size, x).pvalue < 0.05:
                return name
        return None


def typical_size(r: np.ndarray) -> np.ndarray:
    """Mean |residual| over the last axis, none counted as more than four medians: an outlier
    must not set the unit."""
    size = np.abs(r)
    return np.minimum(size, 4 * np.median(size, axis=-1, keepdims=True)).mean(-1)


@dataclass
class Resamples:
    """Refits of a law to resampled runs. theta (B, p); scale (B,): typical_size of each refit's
    residuals; log_loss (B, n): what was fitted (None where runs were drawn)."""
    method: str
    fit: Fit
    noise: Noise
    theta: np.ndarray
    scale: np.ndarray
    log_loss: np.ndarray | None
    converged: float

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Natural parameters of every refit, (B,) each."""
        return self.fit.design.to_params(self.theta)

    @cached_property
    def at_limit(self) -> float:
        """Share of the refits whose floor is at the limit of its search."""
        return float(self.fit.at_limit(self.theta).mean())

    @property
    def piled(self) -> bool:
        """Whether refits pile up at that limit, or the fit itself lies there."""
        return self.at_limit > PILED or bool(self.fit.at_limit(self.fit.theta[None])[0])

    @cached_property
    def percentiles(self) -> str:
        """Why intervals are percentiles of the refits; "" where roots are turned about the
        estimate."""
        if self.method == "runs":
            return "runs were drawn"
        if self.piled:
            return f"{self.at_limit:.0%} of them have their floor at the limit of its search"
        at = sorted(set(self.fit.design.exponent_at))
        low, _ = self.turned(self.fit.theta[at], self.theta[:, at], self.fit.theta[at], 0.025)
        return "exponents below zero would come of turning them about the estimate" \
            if (low < 0).any() else ""

    def turned(self, value, draws: np.ndarray, truth, tail: float):
        """(low, high) by roots draws - truth, each in units of its own noise, turned about the
        value."""
        scale = self.scale.reshape(-1, *[1] * (np.ndim(draws) - 1))
        low, high = quantiles((draws - truth) / scale, tail)
        return value - high * self.noise.scale, value - low * self.noise.scale

    def world(self, n_draw: int) -> Resamples:
        """The first resamples as made-up losses, for estimators that need rows to fit: these, or
        (where runs were drawn) ones made with each run's own noise."""
        if self.log_loss is None:
            return resample(self.fit, self.noise.groups, n_draw, "own")[0]
        return replace(self, theta=self.theta[:n_draw], scale=self.scale[:n_draw],
                       log_loss=self.log_loss[:n_draw])

    def interval(self, value, draws: np.ndarray, level: float = 0.95, truth=None):
        """Interval of a quantity from its value and its draws (B, ...): (low, high), with the value
        inside.

        truth: the quantity's true value in the resampled world, where the estimator is not the
        one that made the world (approaches 1 and 2): their bias is then taken out, and the
        value may lie outside."""
        tail = (1 - level) / 2
        if truth is not None:
            return self.turned(value, draws, truth, tail)
        low, high = quantiles(draws, tail) if self.percentiles else \
            self.turned(value, draws, value, tail)
        return np.minimum(low, value), np.maximum(high, value)


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
        column = noise.unequal
        method = "residuals" if column is None else "runs"
        why = "noise looks equal over the runs" if column is None else \
            f"the size of residuals changes with {column}"
    if method in ("residuals", "own"):
        draw = noise.draw if method == "residuals" else noise.draw_own
        log_loss = fit.log_loss - fit.residuals() + draw(rng, n_draw)
        found = refit(fit, log_loss=log_loss)
        with np.errstate(all="ignore"):
            scale = typical_size(log_loss - np.log(fit.design.value(found.x)[0]))
    else:
        if counts is None:
            n = noise.n_runs
            counts = rng.multinomial(n, np.full(n, 1 / n), size=n_draw)
        found = refit(fit, weights=np.asarray(counts, float)[:, groups])
        log_loss, scale = None, np.full(len(counts), noise.scale)
    return Resamples(method, fit, noise, found.x, np.maximum(scale, 1e-12), log_loss,
                     float(found.converged.mean())), why
