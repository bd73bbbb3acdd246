"""fit_law: a table of runs to a law with intervals, warnings and predictions.

    law = fit_law(runs)                           # L = E + A / N^alpha + B / D^beta
    print(law.summary())
    law.predict(n_params=1e8, tokens=2e9)         # value and an interval for a new run
"""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.scaling.checks import check_enough, check_options, fit_warnings, misfit, \
    table_warnings
from analysis.scaling.fit import DELTA, POLISHED, Fit, fit_point, floor_limit
from analysis.scaling.forms import Columns, Form, get_form, make_design
from analysis.scaling.holdout import held_out
from analysis.scaling.resample import METHODS, Resamples, resample
from analysis.table import usable
from analysis.scaling.varpro import fit_varpro
from slm.errors import UserError


@dataclass
class Prediction:
    """Loss that the law expects (nats/token), and where a new run will fall with probability
    `level`: parameter uncertainty and the noise of a single run together. band_low and band_high
    hold the curve alone. Floats, or arrays (m,)."""
    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    band_low: float | np.ndarray
    band_high: float | np.ndarray
    level: float

    def __str__(self) -> str:
        lines = [f"{v:.4f} [{low:.4f}, {high:.4f}]" for v, low, high in zip(
            *map(np.atleast_1d, (self.value, self.low, self.high)))]
        return "\n".join(lines) + f" ({self.level:.0%} of new runs)"


@dataclass(repr=False)
class Law:
    """A fitted law. params: natural parameters by name; intervals: name -> (low, high) at
    `level`; objective: sum of Huber terms; runs: the rows fitted; notes and warnings: one line
    each (notes say what was done, warnings what to distrust)."""
    form: Form
    fit: Fit
    runs: pd.DataFrame
    resamples: Resamples
    level: float
    notes: list[str]
    warnings: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        from analysis.scaling.describe import brief
        return brief(self)

    @property
    def params(self) -> dict[str, float]:
        known = {} if self.floor is None or np.ptp(self.floor) else {"E": float(self.floor[0])}
        return known | self.fit.params

    @property
    def objective(self) -> float:
        return self.fit.objective

    @property
    def floor(self) -> np.ndarray | None:
        """Known floors (n,), or None where E was fitted (or is absent)."""
        return self.fit.design.floor

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Of every fitted parameter at `level`; scales and extras by their logarithms. None reaches
        into what can't be: an exponent's ends at 0, and a floor's has no lower end (-inf) where it
        would lie beyond the limit of the search."""
        out, draws = {}, self.resamples.params
        for name, value in self.fit.params.items():
            logged = name != "E" and name not in self.form.exponents
            with np.errstate(divide="ignore", over="ignore"):
                x, xs = (np.log(value), np.log(draws[name])) if logged else (value, draws[name])
                low, high = self.resamples.interval(x, xs, self.level)
                low, high = (np.exp(low), np.exp(high)) if logged else (low, high)
            if name in self.form.exponents:
                low = min(max(low, 0.0), value)
            elif name == "E" and low <= floor_limit(self.fit.log_loss):
                low = -np.inf
            out[name] = (float(low), float(high))
        return out

    @property
    def at_limit(self) -> bool:
        """Whether the fitted floor is where its search ends: the runs do not determine it."""
        return bool(self.fit.at_limit(self.fit.theta[None])[0])

    @cached_property
    def condition(self) -> float:
        """Loosest over tightest direction of the parameters (singular values of the Jacobian of
        log loss, columns scaled to one)."""
        j = self.fit.jacobian()
        s = np.linalg.svd(j / np.maximum(np.linalg.norm(j, axis=0), 1e-300), compute_uv=False)
        return float((s[0] / max(s[-1], 1e-300)) ** 2)

    @cached_property
    def misfit(self) -> tuple[float, float] | None:
        """How far the form misses the runs, beside what seeds move them; see checks.misfit."""
        return misfit(self)

    @cached_property
    def coverage(self) -> dict:
        """How often this recipe's prediction intervals held runs that it had not seen; see
        holdout.held_out. Made on demand: it fits several times."""
        return held_out(self)

    @cached_property
    def cross_check(self) -> dict[str, float]:
        """Parameters by variable projection (another objective and algorithm); empty for the form
        that is not linear in its scales."""
        if not self.fit.design.separable:
            return {}
        theta = fit_varpro(self.fit.design, self.fit.log_loss)
        return {k: float(v[0]) for k, v in self.fit.design.to_params(theta[None]).items()}

    @cached_property
    def cross_intervals(self) -> dict[str, tuple[float, float]]:
        """Intervals of the exponents (and E) by variable projection, in the same resampled
        world as the law's own."""
        design, world = self.fit.design, self.resamples.world(500)
        around = fit_varpro(design, self.fit.log_loss)
        draws = design.to_params(fit_varpro(design, world.log_loss, around))
        return {k: tuple(float(x) for x in world.interval(self.cross_check[k], draws[k], self.level,
                                                          truth=self.fit.params[k]))
                for k in self.fit.params if k in [*self.form.exponents, "E"]}

    def predict(self, *, n_params=None, tokens=None, flops=None, unique_tokens=None, floor=None,
                level: float | None = None) -> Prediction:
        """The loss of new runs, floats or arrays that broadcast; only what the form needs
        (where it needs flops and they are not given, C = 6 N D).

        floor: of the new runs, where floors are known and differ (default: the fit's own). Raises
        UserError for a missing or non-positive argument."""
        level = self.level if level is None else level
        check_options(level, floor=floor)
        given = {"n_params": n_params, "tokens": tokens, "flops": flops,
                 "unique_tokens": unique_tokens}
        if flops is None and n_params is not None and tokens is not None:
            given["flops"] = 6 * np.asarray(n_params, float) * np.asarray(tokens, float)
        columns = broadcast(given, self.form)
        one = columns.pop("one")
        new_floor = None
        if self.floor is not None:
            if floor is None and np.ptp(self.floor):
                raise UserError("the runs' floors differ: say floor= of the run to predict")
            size = len(next(iter(columns.values())))
            new_floor = np.full(size, self.floor[0] if floor is None else floor)
        return predict(self.resamples, columns, new_floor, level, one)

    def summary(self) -> str:
        """The law in words: parameters with intervals, how it was fitted, what to distrust."""
        from analysis.scaling.describe import summary
        return summary(self)

    def to_dict(self) -> dict:
        """Plain values, for JSON (an unbounded interval has None at that end)."""
        def plain(x: float) -> float | None:
            return float(x) if np.isfinite(x) else None

        return {"form": self.form.name, "equation": self.form.equation, "source": self.form.source,
                "params": self.params, "level": self.level,
                "intervals": {k: [plain(x) for x in v] for k, v in self.intervals.items()},
                "objective": self.objective, "huber_delta": self.fit.delta,
                "runs": int(self.runs["run"].nunique()), "rows": len(self.runs),
                "starts": self.fit.n_starts, "polished": self.fit.n_polished,
                "share_at_optimum": self.fit.share_at_optimum,
                "resamples": len(self.resamples.theta), "resampling": self.resamples.method,
                "noise": self.resamples.noise.scale, "cross_check": self.cross_check,
                "notes": self.notes, "warnings": self.warnings}


def broadcast(given: dict, form: Form) -> Columns:
    """The form's columns as arrays (m,), and "one": whether all were scalars."""
    missing = [c for c in form.needs if given[c] is None]
    if missing:
        raise UserError(f"predicting with {form.name} ({form.equation}) needs {', '.join(missing)}")
    arrays = np.broadcast_arrays(*[np.asarray(given[c], float) for c in form.needs])
    for name, a in zip(form.needs, arrays):
        if not (np.isfinite(a) & (a > 0)).all():
            raise UserError(f"predict: {name} should be a positive number")
    return {c: a.ravel() for c, a in zip(form.needs, arrays)} | {"one": arrays[0].ndim == 0}


def predict(resamples: Resamples, columns: Columns, floor: np.ndarray | None, level: float,
            one: bool) -> Prediction:
    """Value, interval for new runs and band of the curve at `columns` (m,)."""
    fit = resamples.fit
    design = make_design(fit.design.form, columns, floor, fit.design.centre)
    value = design.value(fit.theta[None])[0][0]                                  # (m,)
    if not (value > 0).all():
        raise UserError(f"the law falls to {value.min():.3g} nats there: a floor below zero "
                        f"(E = {fit.params.get('E', 0):.3g}) can't be extrapolated that far; say a "
                        "known floor (floor=) or fit a form without one")
    value = np.log(value)
    with np.errstate(all="ignore"):
        draws = np.log(design.value(resamples.theta)[0])                         # (B, m)
    noise = resamples.noise.draw_new(np.random.default_rng(1), columns, len(draws))
    band = resamples.interval(value, draws, level)
    # a new run is the law's truth plus its own noise: the root is estimate - (truth + noise)
    new = resamples.interval(value, draws - noise, level)
    out = [np.exp(x) for x in (value, *new, *band)]
    return Prediction(*[float(x[0]) if one else x for x in out], level)


def fit_law(runs: pd.DataFrame, form: str = "chinchilla", *, floor: float | str | None = None,
            delta: float = DELTA, bootstrap: int = 2000, resampling: str = "auto",
            level: float = 0.95, seed: int = 0, polish: int | None = POLISHED,
            n_params: str = "n_params", allow_mixed: bool = False) -> Law:
    """Fit a law to a tidy table of runs (analysis.table).

    form        a name of analysis.scaling.forms.FORMS
    floor       a known E in nats/token, or the name of a column of known floors; default: fitted
    delta       of Huber on log loss; np.inf for least squares
    bootstrap   resamples over runs; resampling: auto | residuals | runs (analysis.scaling.resample)
    level       of every interval
    polish      starts that are minimised, of 4,516; None: all
    n_params    the column to take for N (analysis.scaling.conventions compares them)

    Raises UserError for a table that can't be fitted: empty, no losses, too few runs or values of
    N or D, mixed corpora or tokenizers."""
    shape = get_form(form)
    check_options(level, bootstrap, floor, delta, polish)
    if resampling not in METHODS:
        raise UserError(f"resampling={resampling!r}: there are {', '.join(METHODS)}")
    if floor is not None and not shape.floor:
        raise UserError(f"form {form!r} has no floor: leave out floor=, or take a form with E")
    if n_params != "n_params":
        if n_params not in runs:
            raise UserError(f"n_params={n_params!r}: the table has no such column")
        runs = runs.assign(n_params=runs[n_params])
    needs = shape.needs + ((floor,) if isinstance(floor, str) else ())
    kept, notes = usable(runs, needs, allow_mixed)
    check_enough(shape, kept, floor is not None)
    floors = known_floors(kept, floor)
    columns = {c: kept[c].to_numpy(float) for c in shape.needs}
    log_loss = np.log(kept["loss"].to_numpy(float))
    fit = fit_point(make_design(shape, columns, floors), log_loss, delta, polish)
    groups = pd.factorize(kept["run"])[0]
    resamples, why = resample(fit, groups, bootstrap, resampling, seed)
    if resamples.method != "runs" and resamples.percentiles:
        why += f"; percentiles, since {resamples.percentiles}"
    notes = list(runs.attrs.get("notes", [])) + notes + [
        f"intervals from {bootstrap:,} resamples over runs, by {resamples.method}: {why}"]
    law = Law(shape, fit, kept, resamples, level, notes)
    law.warnings = table_warnings(kept, shape) + fit_warnings(law)
    return law


def known_floors(runs: pd.DataFrame, floor: float | str | None) -> np.ndarray | None:
    """Known floors (n,) in nats/token. Raises UserError where a loss lies at or below its floor."""
    if floor is None:
        return None
    floors = runs[floor].to_numpy(float) if isinstance(floor, str) else \
        np.full(len(runs), float(floor))
    below = np.flatnonzero(runs["loss"].to_numpy(float) <= floors)
    if len(below):
        row = runs.iloc[below[0]]
        raise UserError(f"run {row['run']}: loss {row['loss']:.5g} is not above the known floor "
                        f"{floors[below[0]]:.5g}: not the same unit or text, or evaluated on too "
                        "few tokens")
    return floors
