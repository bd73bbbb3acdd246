"""The best learning rate as a power law of size and horizon, from runs that tried several.

    fit = fit_lr_law(runs)                        # lr = scale * N^n * D^d
    print(fit.summary())

In each cell (N, D) the vertex of a parabola in log lr through the log losses near the best rate
(as approach 2 of Hoffmann et al. 2022 does over sizes); then least squares of its logarithm on log
N and log D. A cell whose best rate is the lowest or the highest tried has its optimum out there
somewhere: it is left out, and said.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.comparison.noise import cells, setting_columns
from analysis.scaling.checks import check_options
from analysis.table import usable
from slm.errors import UserError
from slm.lr_law import LrLaw
from slm.screen import several

COUNTS = {"n_params": "matmul", "params_blocks": "blocks", "params_total": "total",
          "params_non_embedding": "non_embedding"}     # column -> what slm/lr_law.py calls it
AXES = {"N": "n_params", "D": "tokens"}
REACH = np.log(4.0) + 1e-6        # of the parabola, to both sides of the best rate
COLLINEAR = 0.98                  # correlation of log N and log D beyond which neither can be told


@dataclass
class Cell:
    """One (N, D). lr: its best, nan where left out, and why then; x, log_loss (m,): the runs of the
    parabola, log lr from the best rate tried on; low, high: the rates it spans, in the same."""
    n_params: float
    tokens: float
    n_rates: int
    lr: float = np.nan
    why: str = ""
    centre: float = 0.0
    x: np.ndarray = field(default_factory=lambda: np.empty(0))
    log_loss: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def design(self) -> np.ndarray:
        return np.stack([np.ones_like(self.x), self.x, self.x ** 2], 1)            # (m, 3)

    def vertices(self, log_loss: np.ndarray) -> np.ndarray:
        """log lr of least loss, (b,), of copies of the losses (b, m); nan without a minimum among
        the rates of the parabola."""
        _, b, c = np.linalg.pinv(self.design) @ log_loss.T
        with np.errstate(all="ignore"):
            at = np.where(c > 0, -b / (2 * c), np.nan)
        return np.where((at >= self.x.min()) & (at <= self.x.max()), at, np.nan) + self.centre


@dataclass(repr=False)
class LrFit:
    """A fitted law. intervals: of n, d and `lr` (in the middle of the cells) at `level`; middle:
    N, D and lr there; over: which of N and D were fitted; notes: what was done and left out."""
    law: LrLaw
    cells: list[Cell]
    intervals: dict[str, tuple[float, float]]
    middle: tuple[float, float, float]
    level: float
    over: str
    notes: list[str]

    def __repr__(self) -> str:
        told = ", ".join(f"{k} [{a:.3g}, {b:.3g}]" for k, (a, b) in self.intervals.items())
        return (f"LrFit {self.law} of {len(self.used)} cells (N, D), {self.level:.0%} intervals: "
                f"{told} (summary() tells all)")

    @property
    def used(self) -> list[Cell]:
        return [c for c in self.cells if not c.why]

    def summary(self) -> str:
        law, (n, d, lr) = self.law, self.middle

        def between(name: str) -> str:
            low, high = self.intervals[name]
            return f"[{low:.3g}, {high:.3g}]"
        lines = [f"lr = {law.scale:.4g} N^{law.n:.4g} D^{law.d:.4g}   (N: {law.count} parameters, "
                 f"{law.optimizer}, {law.parametrization})"]
        lines += [f"  exponent of {axis}  {getattr(law, axis.lower()):.3f} {between(axis.lower())}"
                  for axis in self.over]
        lines += [f"  at N = {n:.3g}, D = {d:.3g}  lr = {lr:.3g} {between('lr')}",
                  f"  {self.level:.0%} intervals; {len(self.used)} of {len(self.cells)} cells (N, "
                  "D) fitted", f"  {'N':>10} {'D':>10} rates    best lr    the law's"]
        for c in self.cells:
            said = f"left out: {c.why}" if c.why else \
                f"{c.lr:10.3g} {law.at(c.n_params, c.tokens):12.3g}"
            lines.append(f"  {c.n_params:10.3g} {c.tokens:10.3g} {c.n_rates:5d} {said}")
        return "\n".join(lines + self.notes)

    def to_dict(self) -> dict:
        """For the JSON file that optim.lr_law reads; the law, and how it was made."""
        left = [{"n_params": c.n_params, "tokens": c.tokens, "why": c.why}
                for c in self.cells if c.why]
        return {**self.law.to_dict(), "law": str(self.law), "over": self.over, "level": self.level,
                "intervals": self.intervals,
                "middle": dict(zip(("n_params", "tokens", "lr"), self.middle)),
                "cells": [{"n_params": c.n_params, "tokens": c.tokens, "lr": c.lr}
                          for c in self.used], "left_out": left, "notes": self.notes}


def fit_lr_law(runs: pd.DataFrame, *, over: str = "ND", n_params: str = "n_params",
               level: float = 0.95, bootstrap: int = 2000, seed: int = 0,
               allow_mixed: bool = False) -> LrFit:
    """Fit lr = scale N^n D^d to the best learning rates of a tidy table of runs.

    over        ND, or N or D alone where they vary together (the other's exponent is then 0)
    n_params    the column to take for N, one of COUNTS
    level       of the intervals, from `bootstrap` refits to resampled runs: each cell's parabola
                plus residuals drawn from those of all cells, and what the cells scatter about the
                law beyond that

    Where runs of one cell differ in more than rate and seed (batch, decay), those that share the
    settings of its best run are taken. Raises UserError: no usable run, mixed data, optimisers or
    parametrizations, too few cells with a minimum inside, N and D that can't be told apart."""
    check_options(level, bootstrap)
    if over not in ("ND", "N", "D"):
        raise UserError(f"over={over!r}: should be ND, N or D")
    if n_params not in COUNTS:
        raise UserError(f"n_params={n_params!r}: should be one of {', '.join(COUNTS)}")
    if n_params != "n_params" and n_params in runs:
        runs = runs.assign(n_params=runs[n_params])
    elif n_params not in runs:
        raise UserError(f"n_params={n_params!r}: the table has no such column")
    kept, notes = usable(runs, ("n_params", "tokens", "lr"), allow_mixed)
    notes = list(runs.attrs.get("notes", [])) + notes
    kind = [one_kind(kept, column, default, notes) for column, default in
            (("optimizer", "adamw"), ("parametrization", "sp"))]
    found = find_cells(kept, notes)
    used = [c for c in found if not c.why]
    over = axes_of(used, found, over, notes)
    x = design(used, over)                                                       # (K, p)
    centre = x.mean(0) * (np.arange(x.shape[1]) > 0)
    best = np.log([c.lr for c in used])
    theta = np.linalg.lstsq(x - centre, best, rcond=None)[0]
    draws = resampled(used, x - centre, best, theta, bootstrap, seed)            # (B, p)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    exponents = dict(zip(over, theta[1:]))
    scale = float(np.exp(theta[0] - theta[1:] @ centre[1:]))
    ranges = [(min(getattr(c, a) for c in used), max(getattr(c, a) for c in used))
              for a in AXES.values()]
    law = LrLaw(scale, float(exponents.get("N", 0)), float(exponents.get("D", 0)),
                COUNTS[n_params], *kind, *ranges)
    middle = tuple(float(np.exp(np.mean(np.log([getattr(c, a) for c in used]))))
                   for a in AXES.values())
    intervals = {"lr": (float(np.exp(low[0])), float(np.exp(high[0])))}
    intervals |= {axis.lower(): (float(low[i]), float(high[i])) for i, axis in enumerate(over, 1)}
    return LrFit(law, found, intervals, (*middle, float(np.exp(theta[0]))), level, over, notes)


def one_kind(runs: pd.DataFrame, column: str, default: str, notes: list[str]) -> str:
    """The one optimiser (or parametrization) of the runs: a law holds for one. Raises UserError."""
    kinds = runs[column].dropna().unique() if column in runs else []
    if len(kinds) > 1:
        raise UserError(f"runs of {len(kinds)} kinds of {column} ({', '.join(sorted(kinds))}): a "
                        f"law holds for one; choose with --where \"{column} = {kinds[0]}\"")
    if not len(kinds):
        notes.append(f"the table does not say which {column}: taken as {default}")
        return default
    return str(kinds[0])


def find_cells(runs: pd.DataFrame, notes: list[str]) -> list[Cell]:
    """The cells of a usable table, by N and D. Adds a note where a cell held other settings."""
    others = [c for c in setting_columns(runs) if c not in ("lr", "n_params", "tokens")]
    out, mixed = [], 0
    for (n, d), rows in runs.groupby(["n_params", "tokens"]):
        kinds = cells(rows, others) if others else np.zeros(len(rows), int)
        if kinds.any():
            rows = rows[kinds == kinds[rows["loss"].to_numpy().argmin()]]
            mixed += 1
        out.append(read_cell(float(n), float(d), rows))
    if mixed:
        notes.append(f"{mixed} of {len(out)} cells hold runs that differ in more than learning "
                     "rate and seed: those with the settings of the cell's best run are taken")
    return out


def read_cell(n: float, d: float, rows: pd.DataFrame) -> Cell:
    mean = rows.groupby("lr")["loss"].mean()
    rates, at = np.log(mean.index.to_numpy(float)), int(mean.to_numpy().argmin())
    cell = Cell(n, d, len(rates))
    if len(rates) < 3:
        cell.why = f"{several(len(rates), 'learning rate')}, needs 3"
    elif at in (0, len(rates) - 1):
        cell.why = f"the best rate, {mean.index[at]:.3g}, is the " + (
            "lowest" if at == 0 else "highest") + " tried"
    if cell.why:
        return cell
    x = np.log(rows["lr"].to_numpy(float))
    low, high = min(rates[at] - REACH, rates[at - 1]), max(rates[at] + REACH, rates[at + 1])
    near = (x >= low - 1e-9) & (x <= high + 1e-9)
    cell.centre = rates[at]
    cell.x, cell.log_loss = x[near] - rates[at], np.log(rows["loss"].to_numpy(float)[near])
    cell.lr = float(np.exp(cell.vertices(cell.log_loss[None])[0]))
    if not np.isfinite(cell.lr):
        cell.why = "the parabola has no minimum among the rates tried"
    return cell


def axes_of(used: list[Cell], found: list[Cell], over: str, notes: list[str]) -> str:
    """Which of the axes asked for these cells can tell. Raises UserError."""
    edge = sum("tried" in c.why and "best rate" in c.why for c in found)
    if edge:
        notes.append(f"{edge} of {len(found)} cells have their best learning rate at the edge of "
                     "those tried, and are left out: widen the range there")
    for axis in over if over == "ND" else "":
        values = {getattr(c, AXES[axis]) for c in used}
        if len(values) == 1:
            over = over.replace(axis, "")
            notes.append(f"all cells have {axis} = {values.pop():.3g}: the law says nothing of "
                         f"other {axis}, its exponent is 0")
    logs = {axis: np.log([getattr(c, AXES[axis]) for c in used]) for axis in AXES}
    if len(used) < len(over) + 2 or any(len(set(logs[axis])) < 2 for axis in over) or not over:
        raise UserError(f"{len(used)} of {len(found)} cells (N, D) have a best learning rate "
                        f"inside those tried: a law in {' and '.join(over) or 'N and D'} needs "
                        f"{max(len(over), 1) + 2}, of different sizes"
                        + "".join(f"; N = {c.n_params:.3g}, D = {c.tokens:.3g}: {c.why}"
                                  for c in [c for c in found if c.why][:3]))
    if over == "ND" and abs(np.corrcoef(logs["N"], logs["D"])[0, 1]) > COLLINEAR:
        raise UserError("N and D vary together in these cells, so that their exponents can't be "
                        "told apart: add cells with another D / N, or fit over N alone (over=N, "
                        "--over=N), which then holds at this D / N only")
    if len(over) == 1 and len(set(logs["ND".replace(over, "")])) > 1:
        notes.append(f"fitted over {over} alone: it holds where {'ND'.replace(over, '')} varies "
                     "with it as it does here")
    return over


def design(used: Sequence[Cell], over: str) -> np.ndarray:
    """Columns 1, log N and log D (those in `over`) of the cells: (K, p)."""
    columns = [np.log([getattr(c, AXES[axis]) for c in used]) for axis in over]
    return np.stack([np.ones(len(used)), *columns], 1)


def resampled(used: list[Cell], x: np.ndarray, best: np.ndarray, theta: np.ndarray, n_draw: int,
              seed: int) -> np.ndarray:
    """The coefficients of n_draw refits, (B, p); see fit_lr_law."""
    rng = np.random.default_rng(seed)
    fits = [c.design @ (np.linalg.pinv(c.design) @ c.log_loss) for c in used]
    pool = np.concatenate([(c.log_loss - f) * np.sqrt(len(f) / (len(f) - 3))
                           for c, f in zip(used, fits) if len(f) > 3] or [np.zeros(1)])
    drawn = np.empty((n_draw, len(used)))
    for k, (c, f) in enumerate(zip(used, fits)):
        shape = (n_draw, len(f))
        noise = rng.choice(pool, size=shape) * rng.choice([-1.0, 1.0], size=shape)
        drawn[:, k] = c.vertices(f + noise)
    residuals = best - x @ theta
    spare = len(used) - x.shape[1]
    by_runs = np.nanvar(drawn, axis=0).mean()
    beyond = max(0.0, float(residuals @ residuals) / spare - by_runs)
    few = np.sqrt(rng.chisquare(spare, size=(n_draw, 1)) / spare)       # Student's t: of few cells
    drawn += np.sqrt(beyond) * rng.standard_normal(drawn.shape) / few
    weight = np.isfinite(drawn)                          # a draw may lose a cell's minimum
    y = np.where(weight, drawn, 0.0)
    gram = np.einsum("kp,bk,kq->bpq", x, weight, x)
    return np.einsum("bpq,bq->bp", np.linalg.pinv(gram), y @ x)
