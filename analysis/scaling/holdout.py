"""Held-out coverage: fit without some runs, predict them, count how many fell inside."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.scaling.fit import Fit, huber_objective
from analysis.scaling.forms import make_design
from analysis.scaling.optimise import bfgs
from analysis.scaling.resample import resample

if TYPE_CHECKING:
    from analysis.scaling import Law

FOLDS, LARGEST, RESAMPLES = 5, 0.2, 500


def held_out(law: Law) -> dict:
    """{"cross_validation": ..., "largest": ...}, each {"inside", "n", "level", "error"} with error
    the mean |log loss - prediction|, or {"skipped": reason}.

    cross_validation: five folds of runs; largest: the fifth of the runs with most compute (or
    with most of what the form has), predicted from the others: what extrapolation does."""
    groups = law.resamples.noise.groups
    n_runs = groups.max() + 1
    folds = np.random.default_rng(0).permutation(n_runs) % FOLDS
    size = np.zeros(n_runs)
    np.maximum.at(size, groups, np.prod([law.runs[c].to_numpy(float) for c in ("n_params", "tokens")
                                         if c in law.form.needs] or
                                        [law.runs["flops"].to_numpy(float)], axis=0))
    largest = np.argsort(size, kind="stable")[-max(1, round(LARGEST * n_runs)):]
    return {"cross_validation": pooled([without(law, groups, np.flatnonzero(folds == k))
                                        for k in range(FOLDS)], law.level),
            "largest": pooled([without(law, groups, largest)], law.level)}


def without(law: Law, groups: np.ndarray, left_out: np.ndarray):
    """(inside (m,), error (m,)) of the last row of each run left out, or None where the others
    can't hold the form."""
    out = np.isin(groups, left_out)
    design, p = law.fit.design, len(law.fit.theta)
    columns = {c: v[~out] for c, v in design.columns.items()}
    if len(np.unique(groups[~out])) < p + 2 or np.linalg.matrix_rank(law.fit.jacobian()[~out]) < p:
        return None
    floor = None if design.floor is None else design.floor[~out]
    part = make_design(design.form, columns, floor, design.centre)
    log_loss = law.fit.log_loss[~out]
    found = bfgs(huber_objective(part, log_loss, delta=law.fit.delta), law.fit.theta[None],
                 tol=1e-12)
    fit = Fit(part, log_loss, found.x[0], float(found.f[0]), law.fit.delta, 1, 1, 1.0)
    refits, _ = resample(fit, np.unique(groups[~out], return_inverse=True)[1], RESAMPLES,
                         law.resamples.method)
    rows = np.flatnonzero(out)[::-1]                 # the last row of each run left out
    last = rows[np.unique(groups[rows], return_index=True)[1]]
    from analysis.scaling import predict
    new = predict(refits, {c: v[last] for c, v in design.columns.items()},
                  None if design.floor is None else design.floor[last], law.level, one=False)
    truth = np.exp(law.fit.log_loss[last])
    return (new.low <= truth) & (truth <= new.high), np.abs(np.log(truth / new.value))


def pooled(parts: list, level: float) -> dict:
    parts = [p for p in parts if p is not None]
    if not parts:
        return {"skipped": "too few runs to leave some out"}
    inside, error = (np.concatenate(x) for x in zip(*parts))
    return {"inside": int(inside.sum()), "n": len(inside), "level": level,
            "error": float(error.mean())}
