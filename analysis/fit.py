"""Fitting a form: the objective, its many starts, and refits to thousands of resamples.

Objective: sum over runs of Huber_delta(log L - log L_model), delta = 1e-3 (Hoffmann et al. 2022).
A *sum*: the mean makes optimisers stop early (Besiroglu et al. 2024, arXiv 2404.10102, found that
in the original). Only a third of the usual starts lead to the optimum, so there are many.
"""
from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from analysis.forms import Design
from analysis.optimise import BatchedFunction, Minima, bfgs, bfgs_in_blocks, inverse_hessian

DELTA = 1e-3
POLISHED = 256       # starts that are followed to the bottom, of those with the lowest objective


def huber_objective(design: Design, log_loss: np.ndarray, weights: np.ndarray | None = None,
                    delta: float = DELTA) -> BatchedFunction:
    """The objective of many problems at once.

    log_loss: (n,), or (B, n) with each problem's own; weights: (B, n) multiplicities of rows, or
    None; delta: of Huber, np.inf for least squares."""
    def fun(theta: np.ndarray, rows: np.ndarray):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            loss, pull = design.value(theta)
            r = (log_loss if log_loss.ndim == 1 else log_loss[rows]) - np.log(loss)   # (b, n)
            psi = np.clip(r, -delta, delta)
            rho = psi * (r - psi / 2)
            if weights is not None:
                rho, psi = rho * weights[rows], psi * weights[rows]
            return rho.sum(1), pull(-psi / loss)
    return fun


def project(design: Design, theta: np.ndarray, loss: np.ndarray, weight: np.ndarray):
    """Best floor and scales for given exponents: the linear half of variable projection.

    theta (b, p): only exponents and extras are read; loss (n,) or (b, n); weight (n,) or (b, n)
    multiplies residuals. Returns theta with floor and scales filled in (a negative one becomes
    tiny, a negative floor is left out and the rest solved again), residuals (b, n) weighted."""
    xs, _ = design.shifted_x(theta)
    with np.errstate(over="ignore", under="ignore"):
        basis = [np.exp(-theta[:, j, None] * x) for j, x in zip(design.exponent_at, xs)]
    if design.free_floor:
        basis.insert(0, np.ones_like(basis[0]))
    columns = np.stack(np.broadcast_arrays(*basis), -1) * weight[..., None]      # (b, n, k)
    target = np.broadcast_to((loss - (0 if design.floor is None else design.floor)) * weight,
                             columns.shape[:2])
    coefficients = solve_scaled(columns, target)
    if design.free_floor:
        below = coefficients[:, 0] <= 0
        coefficients[below, 0] = 0
        coefficients[below, 1:] = solve_scaled(columns[below][:, :, 1:], target[below])
    out = theta.copy()
    tiny = 1e-9 * np.abs(loss).max()
    for i in range(coefficients.shape[1]):
        out[:, i] = np.log(np.maximum(coefficients[:, i], tiny))
    return out, target - np.einsum("bnk,bk->bn", columns, coefficients)


def solve_scaled(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares of many problems by normal equations with unit columns and a touch of ridge:
    columns (b, n, k), target (b, n) -> (b, k)."""
    size = np.maximum(np.linalg.norm(columns, axis=1), 1e-300)                   # (b, k)
    unit = columns / size[:, None]
    gram = np.einsum("bnk,bnl->bkl", unit, unit) + 1e-12 * np.eye(size.shape[1])
    return np.linalg.solve(gram, np.einsum("bnk,bn->bk", unit, target)[..., None])[..., 0] / size


def projected_objective(design: Design, log_loss: np.ndarray, fit: np.ndarray) -> BatchedFunction:
    """Variable projection (Golub & Pereyra 1973): sum of squares of (L - model) / fit as a
    function of the exponents alone, floor and scales being solved for.

    A cross-check of the Huber fit: another objective, another algorithm, two dimensions instead of
    five. log_loss (n,) or (B, n); fit (n,) is the loss that makes residuals relative."""
    loss, linear = np.exp(log_loss), len(design.scale_at) + design.free_floor

    def fun(theta: np.ndarray, rows: np.ndarray):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            solved, r = project(design, theta, loss if loss.ndim == 1 else loss[rows], 1 / fit)
            _, pull = design.value(solved)
            g = pull(-2 * r / fit)           # the envelope theorem: linear parts don't contribute
        g[:, :linear] = 0
        return np.einsum("bn,bn->b", r, r), g
    return fun


def starts(design: Design, log_loss: np.ndarray) -> np.ndarray:
    """Where fits begin: (s, p).

    Two terms and a floor: the 4,500 points of Besiroglu et al. 2024 (exponents 0, .5 .. 2, log E
    -1, -.5 .. 1, log scales 0, 5 .. 25), and 36 more whose floor and scales are solved for, which
    know the units of the data. Other forms: grids alike, as fine as 4,500 points allow."""
    n_term, n_exponent = len(design.scale_at), len(design.form.exponents)
    fine = np.arange(0, 2.01, 0.1)
    exponent = np.arange(0, 2.01, 0.5) if n_exponent == 2 else fine
    scale = np.arange(0, 26, 5.0 if n_term == 2 else 1.0)
    floor = [np.arange(-1, 1.01, 0.5)] if design.free_floor else []
    grid = np.array(list(product(*floor, *[scale] * n_term, *[exponent] * n_exponent)))
    for i, j, c in zip(design.scale_at, design.exponent_at, design.centre):
        grid[:, i] -= grid[:, j] * c
    guesses = np.array(list(product(np.geomspace(0.03, 1.2, 6), repeat=n_exponent)))
    solved = np.zeros((len(guesses), grid.shape[1]))
    solved[:, grid.shape[1] - n_exponent:] = guesses
    extras = [np.log([2.0, 8.0, 30.0])] * len(design.form.extra)
    if extras:
        solved = np.array([[*s, *e] for s in solved for e in product(*extras)])
        grid = np.concatenate([grid, np.full((len(grid), len(extras)), np.log(8.0))], 1)
    loss = np.exp(log_loss)
    return np.concatenate([grid, project(design, solved, loss, 1 / loss)[0]])


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
    # the solved starts always take part: a grid in absolute units can miss small-scale data
    best = np.unique(np.concatenate([best, np.arange(len(x0))[-36:]]))
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
                          fit.delta)
    own = huber_objective(fit.design, fit.log_loss, delta=fit.delta)
    return bfgs_in_blocks(fun, np.tile(fit.theta, (n_problem, 1)), block=500, tol=tol,
                          h0=inverse_hessian(own, fit.theta))
