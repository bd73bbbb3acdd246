"""Compute-optimal sizes read off the runs themselves: approaches 1 and 2 of Hoffmann et al. 2022
(arXiv 2203.15556), each for many copies of the losses at once (the data and its resamples).

Everywhere log_loss is (B, n), and what comes back has one row per copy.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

GRID = 400            # points of the interpolated curves


@dataclass
class Budget:
    """Runs of about one budget: rows (m,) of the table sorted by size, mean compute, log sizes."""
    rows: np.ndarray
    flops: float
    log_n: np.ndarray


def budgets(log_n: np.ndarray, log_c: np.ndarray, tolerance: float = 0.1,
            least: int = 4) -> list[Budget]:
    """IsoFLOP groups: runs within `tolerance` of a common compute, with `least` sizes or more.
    The fullest window is taken first, so that stray runs can't bridge two budgets."""
    width, left, out = 2 * np.log1p(tolerance), np.arange(len(log_c)), []
    while len(left):
        x = log_c[left]
        near = (x >= x[:, None]) & (x <= x[:, None] + width)                     # windows from x
        rows = left[near[near.sum(1).argmax()]]
        if len(np.unique(log_n[rows])) < least:
            break
        left = np.setdiff1d(left, rows)
        rows = rows[np.argsort(log_n[rows], kind="stable")]
        out.append(Budget(rows, float(np.exp(log_c[rows].mean())), log_n[rows]))
    return sorted(out, key=lambda g: g.flops)


@dataclass
class Minima:
    """Minima of IsoFLOP profiles. log_n (B, K): size of least loss at each of K budgets, nan where
    the profile has none; log_d (B, K) its tokens; log_c (K,); on_edge (B, K): at or beyond the
    smallest or largest size run, so that the true minimum may lie further out."""
    log_n: np.ndarray
    log_d: np.ndarray
    log_c: np.ndarray
    on_edge: np.ndarray

    def exponents(self) -> tuple[np.ndarray, np.ndarray]:
        """(a, b), (B,) each: N* ~ C^a and D* ~ C^b over the budgets with a minimum inside."""
        good = np.isfinite(self.log_n) & ~self.on_edge
        return slope(self.log_c, self.log_n, good)[0], slope(self.log_c, self.log_d, good)[0]


def slope(x: np.ndarray, y: np.ndarray, good: np.ndarray):
    """Least-squares slope and intercept (B,) of y (B, K) on x (K,) or (B, K) where good (B, K);
    nan with fewer than three points."""
    x, y = np.broadcast_to(x, y.shape), np.where(good, y, 0.0)
    n = good.sum(1)
    with np.errstate(all="ignore"):
        mx, my = (x * good).sum(1) / n, y.sum(1) / n
        dx = (x - mx[:, None]) * good
        k = (dx * (y - my[:, None])).sum(1) / (dx ** 2).sum(1)
    k = np.where(n >= 3, k, np.nan)
    return k, my - k * mx


def parabola_minima(groups: list[Budget], log_d: np.ndarray, log_loss: np.ndarray) -> Minima:
    """Approach 2: a parabola in log N through the log losses of each budget, and its vertex."""
    log_n = np.full((len(log_loss), len(groups)), np.nan)
    for k, g in enumerate(groups):
        x = g.log_n - g.log_n.mean()
        c, b, _ = np.polyfit(x, log_loss[:, g.rows].T, 2)
        with np.errstate(divide="ignore"):
            log_n[:, k] = np.where(c > 0, -b / (2 * c) + g.log_n.mean(), np.nan)
    return finish(groups, log_d, log_n)


def interpolated_minima(groups: list[Budget], log_d: np.ndarray, log_loss: np.ndarray) -> Minima:
    """Approach 2 without a shape: the minimum of an Akima interpolant (Porian et al. 2024, arXiv
    2406.19146, section 3.1) through the mean log loss at each size."""
    log_n = np.full((len(log_loss), len(groups)), np.nan)
    for k, g in enumerate(groups):
        sizes, which = np.unique(g.log_n, return_inverse=True)
        mean = mean_by(which, log_loss[:, g.rows])                               # (B, sizes)
        grid = np.linspace(sizes[0], sizes[-1], GRID)
        log_n[:, k] = grid[Akima1DInterpolator(sizes, mean, axis=1)(grid).argmin(1)]
    return finish(groups, log_d, log_n)


def finish(groups: list[Budget], log_d: np.ndarray, log_n: np.ndarray) -> Minima:
    """Edges and tokens of minima at log_n (B, K). Tokens at a budget follow from size: log D is
    interpolated over log N (and continued straight)."""
    on_edge, tokens = np.zeros(log_n.shape, bool), np.full(log_n.shape, np.nan)
    for k, g in enumerate(groups):
        low, high = g.log_n[0], g.log_n[-1]
        margin = 1e-3 * (high - low)
        with np.errstate(invalid="ignore"):
            on_edge[:, k] = (log_n[:, k] <= low + margin) | (log_n[:, k] >= high - margin)
        tokens[:, k] = np.polyval(np.polyfit(g.log_n, log_d[g.rows], 1), log_n[:, k])
    log_c = np.log([g.flops for g in groups])
    return Minima(log_n, tokens, log_c, on_edge)


def mean_by(which: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means of values (B, m) over equal entries of which (m,): (B, groups)."""
    one_hot = np.eye(which.max() + 1)[which]
    return values @ one_hot / one_hot.sum(0)


@dataclass
class Envelope:
    """Approach 1: where, with growing compute, one size takes over from the next as the best.
    log_c and log_n (B, G): crossings (their compute, the geometric mean of the two sizes); is_one
    (B, G) which of them are; curves: (log N, log C grid, log loss) of the data, for plots."""
    log_c: np.ndarray
    log_n: np.ndarray
    log_d: np.ndarray
    is_one: np.ndarray
    sizes: np.ndarray

    def exponents(self) -> tuple[np.ndarray, np.ndarray]:
        return (slope(self.log_c, self.log_n, self.is_one)[0],
                slope(self.log_c, self.log_d, self.is_one)[0])


def envelope(log_n: np.ndarray, log_c: np.ndarray, log_d: np.ndarray,
             log_loss: np.ndarray) -> Envelope | None:
    """Loss-against-compute curve of every size (PCHIP through its runs or checkpoints), and the
    points where their lower envelope passes from one size to another. None without four sizes
    that were trained to several budgets each.

    Hoffmann et al. regress the envelope's *size* on compute. With a handful of sizes that
    staircase is flatter than the law ((k^2 - 1) / k^2 of its slope for k steps); its crossings,
    at the geometric mean of both sizes, are not."""
    sizes = [s for s in np.unique(log_n) if len(np.unique(log_c[log_n == s])) > 1]
    if len(sizes) < 4:
        return None
    grid = np.linspace(log_c.min(), log_c.max(), GRID)
    curves = np.full((len(log_loss), len(sizes), GRID), np.inf)
    tokens = np.empty((len(sizes), GRID))
    for i, s in enumerate(sizes):
        rows = np.flatnonzero(log_n == s)
        x, which = np.unique(log_c[rows], return_inverse=True)
        curve = PchipInterpolator(x, mean_by(which, log_loss[:, rows]), axis=1, extrapolate=False)
        curves[:, i] = np.nan_to_num(curve(grid), nan=np.inf)
        tokens[i] = np.polyval(np.polyfit(log_c[rows], log_d[rows], 1), grid)
    best = curves.argmin(1)                                                      # (B, G)
    here, there = best[:, :-1], best[:, 1:]
    g = np.arange(GRID - 1)
    b = np.arange(len(log_loss))[:, None]
    # a size that only starts or ends here crosses nothing
    real = np.isfinite(curves[b, there, g]) & np.isfinite(curves[b, here, g + 1])
    sizes = np.array(sizes)
    return Envelope(np.broadcast_to((grid[:-1] + grid[1:]) / 2, here.shape),
                    (sizes[here] + sizes[there]) / 2,
                    (tokens[here, g] + tokens[there, g]) / 2, (here != there) & real, sizes)
