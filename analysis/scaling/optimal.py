"""How to spend compute: N*(C) and D*(C) by every approach, side by side, with their disagreement.

1   envelope: the best size at each compute, where the loss curves of the sizes cross
2   IsoFLOP parabolas; 2i: the same minima by interpolation, no parabola assumed
3   parametric: the least loss of L(N, D) along C = c(N) D

Approaches after Hoffmann et al. 2022, arXiv 2203.15556, section 3. Intervals of all four come from
one resampled world: runs drawn around the fitted law, each approach applied to each draw. In that
world the true exponents are known, so the bias of approaches 1 and 2 (a parabola is not the
profile, budgets have few sizes) is measured and taken out of their intervals.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.scaling import isoflop
from analysis.scaling.fit import Fit
from analysis.scaling.resample import Resamples
from analysis.scaling import Law, fit_law
from slm.errors import UserError

SPAN = 9              # budgets over the range of the runs that define approach 3's exponents
DRAWS = 1000


@dataclass
class CostCurve:
    """FLOPs per token as a function of size: log c is a quadratic (or line) in log N through the
    runs, continued straight outside them. With C = 6 N D it is the line of slope 1."""
    coefficients: np.ndarray
    low: float
    high: float

    @classmethod
    def through(cls, n_params: np.ndarray, tokens: np.ndarray, flops: np.ndarray) -> CostCurve:
        x, y = np.log(n_params), np.log(flops / tokens)
        degree = min(2, len(np.unique(np.round(x, 6))) - 1)
        line = np.polyfit(x, y, min(1, degree))
        curve = np.polyfit(x, y, degree)
        bends = degree == 2 and np.abs(np.polyval(curve, x) - np.polyval(line, x)).max() > 1e-6
        best = curve if bends else line
        ends = np.array([x.min(), x.max()])
        if (np.polyval(np.polyder(best), ends) <= 0.05).any():     # cost must grow with size
            best = line
        return cls(best, *ends)

    def __call__(self, log_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log c and its slope d log c / d log N."""
        at = np.clip(log_n, self.low, self.high)
        slope = np.polyval(np.polyder(self.coefficients), at)
        return np.polyval(self.coefficients, at) + slope * (log_n - at), slope


def parametric_optimum(fit: Fit, theta: np.ndarray, cost: CostCurve, log_c: np.ndarray):
    """log N* and log D*, (B, m) each, of laws theta (B, 5) at compute log_c (m,).

    At the optimum alpha A N^-alpha = p beta B D^-beta with p the slope of log c(N) (with
    C = 6 N D, p = 1: Hoffmann et al. 2022, eq. 4). The difference of both sides' logs falls with
    N: bisection."""
    d = fit.design
    (a, b), (i, j) = d.scale_at, d.exponent_at
    alpha, beta = (np.maximum(theta[:, k, None], 1e-6) for k in (i, j))
    left = np.log(alpha) + theta[:, a, None] + alpha * d.centre[0]
    right = np.log(beta) + theta[:, b, None] + beta * d.centre[1]
    low = np.full((len(theta), len(log_c)), cost.low - 30.0)
    high = np.full_like(low, cost.high + 40.0)
    for _ in range(60):
        mid = (low + high) / 2
        log_cost, p = cost(mid)
        rising = left - alpha * mid > right + np.log(p) - beta * (log_c - log_cost)
        low, high = np.where(rising, mid, low), np.where(rising, high, mid)
    return low, log_c - cost(low)[0]


@dataclass
class Approach:
    """One way to the frontier. log_n(log_c) and log_d(log_c) give (B, m) for the data (B = 1) and
    for the draws; exponents (2,) and draws (B, 2) are a and b of N* ~ C^a, D* ~ C^b."""
    name: str
    label: str
    exponents: np.ndarray
    draws: np.ndarray
    lines: np.ndarray | None         # (1 + B, 4): k_n, a, k_d, b of data, then draws; None: 3
    points: int                      # crossings or budgets behind the line


@dataclass(repr=False)
class Frontier:
    """Compute-optimal sizes. table: a row per approach; isoflop: a row per budget; warnings."""
    law: Law
    cost: CostCurve
    world: Resamples
    approaches: dict[str, Approach]
    log_c: np.ndarray                # (SPAN,) over the budgets of the runs
    isoflop: pd.DataFrame
    warnings: list[str]
    notes: list[str]

    def __repr__(self) -> str:
        way = self.approaches["3"]
        low, high = self.interval(way, way.exponents, way.draws, way.exponents)
        told = ", ".join(f"{x}* ~ C^{e:.3f} [{a:.3f}, {b:.3f}]"
                         for x, e, a, b in zip("ND", way.exponents, low, high))
        return (f"Frontier {told}: approach 3 of {', '.join(sorted(self.approaches))} (summary() "
                "tells all)")

    def interval(self, approach: Approach, value, draws, truth):
        """Interval of a quantity of one approach; approach 3 is the world's own estimator."""
        if approach.name == "3":
            return self.law.resamples.interval(value, draws, self.law.level)
        return self.world.interval(value, draws, self.law.level, truth)

    def optimum(self, flops, approach: str = "3") -> pd.DataFrame:
        """N*, D* with intervals at training FLOPs C (scalar or (m,)): a row each."""
        if approach not in self.approaches:
            raise UserError(f"no approach {approach!r} here: there are "
                            f"{', '.join(self.approaches)}")
        way, log_c = self.approaches[approach], np.log(np.atleast_1d(np.asarray(flops, float)))
        fit = self.law.fit
        truth = parametric_optimum(fit, fit.theta[None], self.cost, log_c)
        columns = {"flops": np.exp(log_c)}
        draws3 = parametric_optimum(fit, self.law.resamples.theta, self.cost, log_c) \
            if way.lines is None else None
        for k, name in enumerate(("n_params", "tokens")):
            if way.lines is None:
                value, draws = truth[k][0], draws3[k]
            else:
                both = way.lines[:, 2 * k, None] + way.lines[:, 2 * k + 1, None] * log_c
                value, draws = both[0], both[1:]
            low, high = self.interval(way, value, draws, truth[k][0])
            columns |= {name: np.exp(value), f"{name}_low": np.exp(low),
                        f"{name}_high": np.exp(high)}
        return pd.DataFrame(columns)

    def table_at(self, flops: float | None = None) -> pd.DataFrame:
        """Approaches side by side: exponents a and b with intervals, the bias found for them, and
        N*, D* at `flops` (default: ten times the largest budget of the runs)."""
        flops = flops or float(10 * np.exp(self.log_c[-1]))
        truth = self.approaches["3"].exponents
        rows = []
        for way in self.approaches.values():
            row = {"approach": way.name, "label": way.label, "points": way.points}
            low, high = self.interval(way, way.exponents, way.draws, truth)
            for k, name in enumerate("ab"):
                row |= {name: way.exponents[k], f"{name}_low": low[k], f"{name}_high": high[k]}
            row["bias"] = 0.0 if way.name == "3" else \
                float(np.nanmedian(way.draws[:, 0]) - truth[0])
            rows.append(row | self.optimum(flops, way.name).iloc[0].to_dict())
        return pd.DataFrame(rows)

    @property
    def table(self) -> pd.DataFrame:
        return self.table_at()

    def disagreement(self) -> str:
        """How far the approaches are apart, in one line."""
        t = self.table
        if len(t) < 2:
            return "only one approach is possible with these runs: nothing to compare it with"
        ratio = t["n_params"].max() / t["n_params"].min()
        overlap = t["a_low"].max() <= t["a_high"].min()
        return (f"N* ~ C^a with a from {t['a'].min():.3f} to {t['a'].max():.3f}; intervals "
                f"{'overlap' if overlap else 'do NOT all overlap'}; at C = "
                f"{t['flops'].iloc[0]:.2g} the sizes recommended differ {ratio:.2f}-fold")

    def summary(self) -> str:
        """Table, disagreement and warnings as text."""
        rows = [f"  {r.label:<34} a = {r.a:.3f} [{r.a_low:.3f}, {r.a_high:.3f}]  b = {r.b:.3f} "
                f"[{r.b_low:.3f}, {r.b_high:.3f}]  N* {r.n_params:.3g}  D* {r.tokens:.3g}"
                + (f"  (a biased by {r.bias:+.3f}, taken out of the interval)"
                   if abs(r.bias) > 0.2 * (r.a_high - r.a_low) else "")
                for r in self.table.itertuples()]
        head = [f"N* ~ C^a, D* ~ C^b; N* and D* at C = {self.table['flops'].iloc[0]:.3g}"]
        return "\n".join(head + rows + [self.disagreement()] + self.notes
                         + [f"warning: {w}" for w in self.warnings])


def compute_optimal(runs: pd.DataFrame | Law, *, tolerance: float = 0.1, draws: int = DRAWS,
                    seed: int = 0, **fit_options) -> Frontier:
    """The frontier of a table of runs, or of a law fitted to one (form "chinchilla").

    tolerance: runs whose compute differs by less are one IsoFLOP budget; draws: resamples for
    approaches 1 and 2. Approaches that these runs can't support are left out with a note. Raises
    UserError as fit_law does, and for a law of another form or without compute."""
    law = runs if isinstance(runs, Law) else fit_law(runs, seed=seed, **fit_options)
    if law.form.name != "chinchilla":
        raise UserError(f"the frontier needs a law of N and D: fit form 'chinchilla', not "
                        f"{law.form.name!r}")
    if "flops" not in law.runs:
        raise UserError("the table has no column flops: N*(C) needs the compute of each run")
    n, d, c = (law.runs[k].to_numpy(float) for k in ("n_params", "tokens", "flops"))
    cost = CostCurve.through(n, d, c)
    log_c = np.linspace(np.log(c.min()), np.log(c.max()), SPAN)
    world = law.resamples.world(draws)
    copies = np.concatenate([law.fit.log_loss[None], world.log_loss])
    ways, notes, warnings = {}, [], []
    logs = [np.log(v) for v in (n, c, d)]
    add_envelope(ways, notes, logs, copies)
    table = add_isoflop(ways, notes, warnings, logs, copies, tolerance)
    x = np.concatenate([law.fit.theta[None], law.resamples.theta])
    ends = [np.polyfit(log_c, v.T, 1)[0] for v in parametric_optimum(law.fit, x, cost, log_c)]
    both = np.stack(ends, 1)
    ways["3"] = Approach("3", "3  parametric L(N, D)", both[0], both[1:], None, SPAN)
    return Frontier(law, cost, world, ways, log_c, table, warnings + law.warnings, notes)


def add_envelope(ways: dict, notes: list, logs: list, copies: np.ndarray) -> None:
    """Approach 1, where there are sizes trained to several budgets."""
    log_n, log_c, log_d = logs
    found = isoflop.envelope(log_n, log_c, log_d, copies)
    if found is None or found.is_one[0].sum() < 3:
        notes.append("approach 1 left out: it needs at least four sizes, each trained to several "
                     "budgets, whose curves cross three times")
        return
    lines = fit_lines(found.log_c, found.log_n, found.log_d, found.is_one)
    ways["1"] = Approach("1", "1  envelope of the runs", lines[0, [1, 3]], lines[1:, [1, 3]],
                         lines, int(found.is_one[0].sum()))


def add_isoflop(ways: dict, notes: list, warnings: list, logs: list, copies: np.ndarray,
                tolerance: float) -> pd.DataFrame:
    """Approaches 2 and 2i, where there are IsoFLOP budgets; the table of their minima."""
    log_n, log_c, log_d = logs
    groups = isoflop.budgets(log_n, log_c, tolerance)
    rows = []
    if len(groups) < 3:
        notes.append(f"approach 2 left out: it needs three budgets with four sizes each; there "
                     f"{'is' if len(groups) == 1 else 'are'} {len(groups)}")
        return pd.DataFrame(rows)
    for name, label, find in (("2", "2  IsoFLOP parabolas", isoflop.parabola_minima),
                              ("2i", "2i IsoFLOP minima, interpolated",
                               isoflop.interpolated_minima)):
        found = find(groups, log_d, copies)
        good = np.isfinite(found.log_n) & ~found.on_edge
        for k, g in enumerate(groups):
            rows.append({"approach": name, "flops": g.flops, "sizes": len(np.unique(g.log_n)),
                         "n_params": np.exp(found.log_n[0, k]), "tokens": np.exp(found.log_d[0, k]),
                         "on_edge": bool(found.on_edge[0, k] | np.isnan(found.log_n[0, k]))})
            if not good[0, k]:
                side = "larger" if found.log_n[0, k] > g.log_n.mean() else "smaller"
                warnings.append(f"approach {name}: at C = {g.flops:.3g} the optimum lies on the "
                                f"edge of the sizes tried (budget left out); add {side} models")
        if good[0].sum() < 3:
            notes.append(f"approach {name} left out: fewer than three budgets have their minimum "
                         "inside the sizes tried")
            continue
        lines = fit_lines(found.log_c, found.log_n, found.log_d, good)
        ways[name] = Approach(name, label, lines[0, [1, 3]], lines[1:, [1, 3]], lines,
                              int(good[0].sum()))
    return pd.DataFrame(rows)


def fit_lines(log_c: np.ndarray, log_n: np.ndarray, log_d: np.ndarray,
              good: np.ndarray) -> np.ndarray:
    """(B, 4): intercept and slope of log N*, then of log D*, on log C."""
    a, k_n = isoflop.slope(log_c, log_n, good)
    b, k_d = isoflop.slope(log_c, log_d, good)
    return np.stack([k_n, a, k_d, b], 1)
