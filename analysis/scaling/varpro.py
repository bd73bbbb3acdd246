"""Variable projection (Golub & Pereyra 1973): a law is linear in its floor and scales, so that only
exponents are searched for. Another objective (relative least squares), another algorithm and two
dimensions instead of five: what it finds should agree with the Huber fit.
"""
from __future__ import annotations

from itertools import product

import numpy as np

from analysis.scaling.forms import Design
from analysis.scaling.optimise import BatchedFunction, bfgs, bfgs_in_blocks


def project(design: Design, theta: np.ndarray, loss: np.ndarray, weight: np.ndarray):
    """Best floor and scales for given exponents: the linear half of variable projection.

    theta (b, p): only exponents and extras are read; loss (n,) or (b, n); weight (n,) or (b, n)
    multiplies residuals. Returns theta with floor and scales filled in (a negative scale becomes
    tiny), and weighted residuals (b, n)."""
    xs, _ = design.shifted_x(theta)
    with np.errstate(over="ignore", under="ignore"):
        basis = [np.exp(-theta[:, j, None] * x) for j, x in zip(design.exponent_at, xs)]
    if design.free_floor:
        basis.insert(0, np.ones_like(basis[0]))
    columns = np.stack(np.broadcast_arrays(*basis), -1) * weight[..., None]      # (b, n, k)
    target = np.broadcast_to((loss - (0 if design.floor is None else design.floor)) * weight,
                             columns.shape[:2])
    coefficients = solve_scaled(columns, target)
    out = theta.copy()
    tiny = 1e-9 * np.abs(loss).max()
    for i in range(coefficients.shape[1]):
        c = coefficients[:, i]
        out[:, i] = c if i in design.floor_at else np.log(np.maximum(c, tiny))
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


def exponent_grid(design: Design) -> np.ndarray:
    """Points (s, p) over plausible exponents (and extras); floor and scales still zero."""
    n_exponent = len(design.form.exponents)
    grid = [np.geomspace(0.05, 1.0, 4)] * n_exponent
    grid += [np.log([2.0, 8.0, 30.0])] * len(design.form.extra)
    points = np.array(list(product(*grid)))
    return np.concatenate([np.zeros((len(points), len(design.names) - points.shape[1])), points], 1)


def fit_varpro(design: Design, log_loss: np.ndarray,
               around: np.ndarray | None = None) -> np.ndarray:
    """theta (B, p) by variable projection for log losses (B, n), or (p,) for one (n,).

    around: theta (p,) to start from; without it every point of exponent_grid is a start (one data
    set only)."""
    one = log_loss.ndim == 1
    fit = np.exp(log_loss if one else log_loss.mean(0))      # makes residuals relative
    fun = projected_objective(design, log_loss, fit)
    if around is None:
        found = bfgs(fun, exponent_grid(design), tol=1e-10)
        theta = found.x[found.f.argmin()][None]
    else:
        n_problem = 1 if one else len(log_loss)
        theta = bfgs_in_blocks(fun, np.tile(around, (n_problem, 1)), tol=1e-9).x
    solved = project(design, theta, np.exp(log_loss), 1 / fit)[0]
    return solved[0] if one else solved
