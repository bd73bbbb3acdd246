"""Many small smooth minimisations at once: BFGS on thousands of problems of few parameters.

A scaling law is fitted from thousands of starts and refitted to thousands of resamples; each of
those problems is tiny, so what costs is the interpreter, not the arithmetic. Here every problem is
a row of one array and finished rows drop out. Same minima as scipy's BFGS, two orders faster
(benchmarks/laws.py).
"""
from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

# fun(x, rows): objective (b,) and gradient (b, p) at x (b, p) of the problems numbered `rows` (b,)
BatchedFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass
class Minima:
    """x (B, p), f (B,), converged (B,) bool, and the most iterations that any problem took."""
    x: np.ndarray
    f: np.ndarray
    converged: np.ndarray
    iterations: int


def line_search(fun: BatchedFunction, x, f, g, d, rows, max_steps: int = 30):
    """Weak Wolfe conditions by doubling and bisection (Lewis & Overton 2013), per problem.

    x, g, d: (b, p), f: (b,). Returns the new x, f, g and ok (b,), False where no step was found
    (x is unchanged there)."""
    slope = np.einsum("bp,bp->b", g, d)
    step, low, high = np.ones(len(x)), np.zeros(len(x)), np.full(len(x), np.inf)
    new_x, new_f, new_g, ok = x.copy(), f.copy(), g.copy(), np.zeros(len(x), bool)
    open_ = np.arange(len(x))
    for _ in range(max_steps):
        trial = x[open_] + step[open_, None] * d[open_]
        tf, tg = fun(trial, rows[open_])
        tf = np.where(np.isfinite(tf), tf, np.inf)
        too_long = tf > f[open_] + 1e-4 * step[open_] * slope[open_]
        too_short = ~too_long & (np.einsum("bp,bp->b", tg, d[open_]) < 0.9 * slope[open_])
        better = ~too_long & (tf <= new_f[open_])        # keep the best Armijo point seen
        at = open_[better]
        new_x[at], new_f[at], new_g[at], ok[at] = trial[better], tf[better], tg[better], True
        high[open_[too_long]] = step[open_[too_long]]
        low[open_[too_short]] = step[open_[too_short]]
        open_ = open_[too_long | too_short]
        if not len(open_):
            break
        step[open_] = np.where(np.isinf(high[open_]), 2 * low[open_],
                               (low[open_] + high[open_]) / 2)
    return new_x, new_f, new_g, ok


def update_inverse_hessian(h: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The BFGS update (Nocedal & Wright 2006, eq. 6.17), rows without positive curvature kept.

    h: (b, p, p), s and y: (b, p) steps and changes of the gradient."""
    sy = np.einsum("bp,bp->b", s, y)
    good = sy > 1e-14 * np.linalg.norm(s, axis=1) * np.linalg.norm(y, axis=1)
    rho = np.where(good, 1 / np.where(good, sy, 1), 0)
    hy = np.einsum("bpq,bq->bp", h, y)
    scale = rho * (1 + rho * np.einsum("bp,bp->b", y, hy))
    cross = rho[:, None, None] * np.einsum("bp,bq->bpq", hy, s)
    return h + scale[:, None, None] * np.einsum("bp,bq->bpq", s, s) - cross - cross.swapaxes(1, 2)


def bfgs(fun: BatchedFunction, x0: np.ndarray, h0: np.ndarray | None = None,
         tol: float = 1e-10, max_iterations: int = 200) -> Minima:
    """Minimise B problems of p parameters from x0 (B, p).

    h0: first inverse Hessian (p, p) of all problems; without it the first step is a scaled
    gradient step. A problem has converged when the decrease that its quadratic model still
    promises is below `tol` of its objective: unlike a gradient norm, that needs no units.
    """
    x = np.array(x0, float)
    n_problem, p = x.shape
    rows = np.arange(n_problem)
    f, g = fun(x, rows)
    f = np.where(np.isfinite(f), f, np.inf)
    h = np.empty((n_problem, p, p))
    if h0 is not None:
        h[:] = h0
    else:
        h[:] = np.eye(p)[None] / np.maximum(np.linalg.norm(np.nan_to_num(g), axis=1), 1e-12)[
            :, None, None]
    out = Minima(x.copy(), f.copy(), np.zeros(n_problem, bool), 0)
    fresh = np.full(n_problem, h0 is None)               # rows whose H was never scaled to fit
    stalled = np.zeros(n_problem, int)
    keep = np.isfinite(f)
    rows, x, f, g, h, fresh, stalled = (v[keep] for v in (rows, x, f, g, h, fresh, stalled))
    for out.iterations in range(1, max_iterations + 1):
        if not len(rows):
            break
        d = -np.einsum("bpq,bq->bp", h, g)
        promised = -np.einsum("bp,bp->b", g, d)
        uphill = promised <= 0
        d[uphill], promised[uphill] = -g[uphill], np.einsum("bp,bp->b", g, g)[uphill]
        nx, nf, ng, ok = line_search(fun, x, f, g, d, rows)
        s, y = nx - x, ng - g
        if fresh.any():                                  # Nocedal & Wright 2006, eq. 6.20
            scale = np.einsum("bp,bp->b", s, y) / np.maximum(np.einsum("bp,bp->b", y, y), 1e-300)
            at = fresh & (scale > 0)
            h[at] = np.eye(p) * scale[at, None, None]
            fresh &= ~at
        h = update_inverse_hessian(h, s, y)
        small = (promised < tol * abs(f) + 1e-26) & ~fresh | (f - nf <= 1e-15 * abs(f)) & ok
        stalled = np.where(ok & ~small, 0, stalled + 1)
        h[~ok] = np.eye(p) / np.maximum(np.linalg.norm(g[~ok], axis=1), 1e-12)[:, None, None]
        x, f, g = nx, nf, ng
        out.x[rows], out.f[rows] = x, f
        done = small | (stalled >= 2)
        out.converged[rows[done]] = True
        rows, x, f, g, h, fresh, stalled = (
            v[~done] for v in (rows, x, f, g, h, fresh, stalled))
    return out


def bfgs_in_blocks(fun: BatchedFunction, x0: np.ndarray, h0: np.ndarray | None = None,
                   block: int = 250, tol: float = 1e-10, max_iterations: int = 200) -> Minima:
    """bfgs on blocks of problems that fit the processor's cache, one thread a core (numpy lets go
    of the interpreter inside its loops). The result does not depend on the number of threads."""
    blocks = [np.arange(i, min(i + block, len(x0))) for i in range(0, len(x0), block)]

    def solve(rows: np.ndarray) -> Minima:
        return bfgs(lambda x, local: fun(x, rows[local]), x0[rows], h0, tol, max_iterations)

    with ThreadPoolExecutor(n_threads()) as pool:
        parts = list(pool.map(solve, blocks))
    return Minima(np.concatenate([m.x for m in parts]), np.concatenate([m.f for m in parts]),
                  np.concatenate([m.converged for m in parts]),
                  max(m.iterations for m in parts))


def n_threads() -> int:
    """Cores this process may use; OMP_NUM_THREADS, where set, is the user's word."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(int(os.environ.get("OMP_NUM_THREADS", cores) or cores), cores or 1))


def inverse_hessian(fun: BatchedFunction, x: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Inverse of the Hessian at x (p,) by central differences of the gradient, eigenvalues made
    positive: a first metric for refits in the neighbourhood. (p, p)"""
    h = hessian(fun, x, step)
    if not np.isfinite(h).all() or not h.any():      # no curvature to learn from
        return np.eye(len(x))
    values, vectors = np.linalg.eigh(h)
    floor = 1e-8 * np.abs(values).max()
    return (vectors / np.maximum(np.abs(values), floor)) @ vectors.T


def hessian(fun: BatchedFunction, x: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Hessian of problem 0 at x (p,) by central differences of the analytic gradient. (p, p)"""
    p = len(x)
    points = np.concatenate([x + step * np.eye(p), x - step * np.eye(p)])
    g = fun(points, np.zeros(2 * p, int))[1]
    h = (g[:p] - g[p:]) / (2 * step)
    return (h + h.T) / 2
