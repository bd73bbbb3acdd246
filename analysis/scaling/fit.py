"""Fitting a form: the objective, its many starts, and refits to thousands of resamples.

Objective: sum over runs of Huber_delta(log L - log L_model), delta = 1e-3 (Hoffmann et al. 2022).
A *sum*: the mean makes optimisers stop early (Besiroglu et al. 2024, arXiv 2404.10102, found that
in the original). Only a third of the usual starts lead to the optimum, so there are many.
"""
from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from analysis.scaling.forms import Design
from analysis.scaling.optimise import BatchedFunction, Minima, bfgs, bfgs_in_blocks, inverse_hessian
from analysis.scaling.varpro import exponent_grid, project

DELTA = 1e-3
POLISHED = 256       # starts that are followed to the bottom, of those with the lowest objective
SOLVED = 16         # and of those whose floor and scales were solved for


def huber_objective(design: Design, log_loss: np.ndarray, weights: np.ndarray | None = None,
                    delta: float = DELTA, limit: float | None = None) -> BatchedFunction:
    """The objective of many problems at once.

    log_loss: (n,), or (B, n) with each problem's own; weights: (B, n) multiplicities of rows, or
    None; delta: of Huber, np.inf for least squares. A floor below `limit` (default: floor_limit
    of the losses) is pushed back: runs without curvature would send it to minus infinity."""
    n = log_loss.shape[-1]
    limit = floor_limit(log_loss) if limit is None else limit
    least = -2 * limit

    def fun(theta: np.ndarray, rows: np.ndarray):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            loss, pull = design.value(theta)
            r = (log_loss if log_loss.ndim == 1 else log_loss[rows]) - np.log(loss)   # (b, n)
            psi = np.clip(r, -delta, delta)
            rho = psi * (r - psi / 2)
            if weights is not None:
                rho, psi = rho * weights[rows], psi * weights[rows]
            f, g = rho.sum(1), pull(-psi / loss)
        if design.free_floor and (theta[:, 0] < limit).any():
            beyond = np.maximum(-theta[:, 0] / least - 0.5, 0)
            f = f + 1e-3 * n * beyond ** 2
            g[:, 0] -= 2e-3 * n * beyond / least
        return f, g
    return fun


def floor_limit(log_loss: np.ndarray) -> float:
    """Where the search for a floor ends, in nats/token: minus half the least loss."""
    return -float(np.exp(log_loss.min())) / 2


def starts(design: Design, log_loss: np.ndarray) -> np.ndarray:
    """Where fits begin: (s, p).

    Two terms and a floor: the 4,500 points of Besiroglu et al. 2024 (exponents 0, .5 .. 2, log E
    -1, -.5 .. 1, log scales 0, 5 .. 25), and 16 more whose floor and scales are solved for, which
    know the units of the data. Other forms: grids alike, as fine as 4,500 points allow."""
    n_term, n_exponent = len(design.scale_at), len(design.form.exponents)
    fine = np.arange(0, 2.01, 0.1)
    exponent = np.arange(0, 2.01, 0.5) if n_exponent == 2 else fine
    scale = np.arange(0, 26, 5.0 if n_term == 2 else 1.0)
    floor = [np.exp(np.arange(-1, 1.01, 0.5))] if design.free_floor else []
    grid = np.array(list(product(*floor, *[scale] * n_term, *[exponent] * n_exponent)))
    for i, j, c in zip(design.scale_at, design.exponent_at, design.centre):
        grid[:, i] -= grid[:, j] * c
    extra = len(design.form.extra)
    grid = np.concatenate([grid, np.full((len(grid), extra), np.log(8.0))], 1)
    loss = np.exp(log_loss)
    return np.concatenate([grid, project(design, exponent_grid(design), loss, 1 / loss)[0]])


@dataclass
class Fit:
    """A point fit. theta (p,) in the design's coordinates; objective; how it was found."""
    design: Design
    log_loss: np.ndarray             # (n,)
    theta: np.ndarray
    objective: float
    delta: float
    n_starts: int
    n_polished: int
    share_at_optimum: float          # of the polished starts, within 1e-6 of the best

    @property
    def params(self) -> dict[str, float]:
        return {k: float(v[0]) for k, v in self.design.to_params(self.theta[None]).items()}

    def residuals(self) -> np.ndarray:
        """log L - log L_model, (n,)."""
        return self.log_loss - np.log(self.design.value(self.theta[None])[0][0])

    def at_limit(self, theta: np.ndarray) -> np.ndarray:
        """Which of theta (b, p) have their floor at the limit of the search, (b,) bool."""
        return theta[:, 0] < floor_limit(self.log_loss) if self.design.free_floor else \
            np.zeros(len(theta), bool)

    def jacobian(self, step: float = 1e-5) -> np.ndarray:
        """Derivatives of log L_model by theta, (n, p), by central differences."""
        p = len(self.theta)
        points = np.concatenate([self.theta + step * np.eye(p), self.theta - step * np.eye(p)])
        value = np.log(self.design.value(points)[0])                             # (2p, n)
        return ((value[:p] - value[p:]) / (2 * step)).T


def fit_point(design: Design, log_loss: np.ndarray, delta: float = DELTA,
              polish: int | None = POLISHED) -> Fit:
    """The best of many starts. All are evaluated, the `polish` lowest (None: all) minimised, and
    the best of those minimised again to the last digit."""
    fun = huber_objective(design, log_loss, delta=delta)
    x0 = starts(design, log_loss)
    f0 = np.concatenate([fun(part, np.zeros(len(part), int))[0]
                         for part in np.array_split(x0, max(1, x0.shape[0] // 500))])
    f0 = np.where(np.isfinite(f0), f0, np.inf)
    best = np.argsort(f0, kind="stable")[:polish]
    # solved starts always take part: a grid in absolute units can miss data of another scale
    solved = len(x0) - len(exponent_grid(design))
    best = np.union1d(best, solved + np.argsort(f0[solved:], kind="stable")[:SOLVED])
    found = bfgs_in_blocks(fun, x0[best], tol=1e-9, max_iterations=300)
    top = found.x[found.f.argmin()]
    last = bfgs(fun, top[None], h0=inverse_hessian(fun, top), tol=1e-15)
    objective = float(last.f[0])
    share = float(np.mean(found.f <= objective * (1 + 1e-6) + 1e-20))
    return Fit(design, log_loss, last.x[0], objective, delta, len(x0), len(best), share)


def refit(fit: Fit, log_loss: np.ndarray | None = None, weights: np.ndarray | None = None,
          tol: float = 1e-9) -> Minima:
    """Fit again from the point fit: to other losses (B, n), or to multiplicities (B, n) of the
    rows (integers instead of resampled copies: no memory, and rows that were not drawn cost
    nothing in accuracy). Returns theta (B, p) with objectives."""
    n_problem = len(weights if log_loss is None else log_loss)
    fun = huber_objective(fit.design, fit.log_loss if log_loss is None else log_loss, weights,
                          fit.delta, floor_limit(fit.log_loss))
    own = huber_objective(fit.design, fit.log_loss, delta=fit.delta)
    return bfgs_in_blocks(fun, np.tile(fit.theta, (n_problem, 1)), block=500, tol=tol,
                          h0=inverse_hessian(own, fit.theta))
