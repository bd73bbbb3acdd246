"""What layers, heads and width do to the loss, with the luck of seeds as the yardstick.

Least squares on effect-coded factors (levels sum to zero), main effects and pairwise interactions,
on balanced and unbalanced grids: a term's sum of squares is what the full model loses without it
(Yates 1934's weighted squares of means, "type III"), which on a balanced grid is the usual analysis
of variance.
"""
from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pandas as pd

from analysis.comparison.noise import (SHAPE, UNITS, Noise, cells, check_columns, pooled_noise,
                                       prepared, setting_columns, telling, varying)
from slm.errors import UserError

NAMED = 3               # runs that a note names


@dataclass
class Effects:
    """terms: a row for each main effect and interaction (dof, sum_sq, share of the variance within
    blocks, largest difference between levels or largest |interaction|, F, p, p_holm = p corrected
    for the number of terms, verdict). levels: factor, level, effect, se, n_runs.
    interactions: term, level_a, level_b, effect, se. doubling: factor, effect of doubling it, se,
    low, high. Effects are differences of `column`; yardstick: seeds | residual | none, with its
    sd and dof."""
    terms: pd.DataFrame
    levels: pd.DataFrame
    interactions: pd.DataFrame
    doubling: pd.DataFrame
    column: str
    yardstick: str
    sd: float
    dof: int
    noise: Noise
    notes: list[str]

    def summary(self) -> str:
        unit = UNITS.get(self.column, "")
        lines = [f"effects on {self.column} ({unit}), " + {
            "seeds": f"against seed noise of sd {self.sd:.3g} ({self.dof} degrees of freedom)",
            "residual": f"seed noise unknown; the residual of sd {self.sd:.3g} ({self.dof} degrees "
                        "of freedom) is its upper estimate",
            "none": "seed noise unknown, and no residual to stand in for it"}[self.yardstick]]
        for _, t in self.terms.iterrows():
            lines.append(f"  {t.term:<18} {t.share:>6.1%} of the variance, {t.verdict}")
        for _, d in self.doubling.iterrows():
            error = f" ± {d.se:.2g}" if np.isfinite(d.se) else ""
            lines.append(f"  doubling {d.factor}: {d.effect:+.4f}{error} {unit}")
        return "\n".join(lines + self.notes)


def effects(runs: pd.DataFrame, factors: tuple[str, ...] = ("n_layer", "n_head", "n_embd"), *,
            column: str = "loss", level: float = 0.95, allow_mixed: bool = False) -> Effects:
    """Main effects and pairwise interactions of some settings on the loss.

    Other settings that vary at equal factors (tokens, lr, ...) are blocks: each combination has its
    own mean, so only differences within one count. Settings that go along with a factor can't be
    told from it, and the notes say which. The yardstick is the noise of seeds. Without replicates
    it is the residual, which holds noise and higher interactions: what is clear against it is
    clear, what is not is left open. Where all runs together can't tell the factors apart, the
    largest part that shares a group or a setting and can is taken; a note says who is left out.
    Raises UserError: too few runs, a factor that is not there, none that varies, factors that only
    vary together."""
    kept, notes = prepared(runs, column, allow_mixed)
    factors = tuple(dict.fromkeys(factors))
    check_columns("factors", factors, kept)
    missing = [f for f in factors if kept[f].isna().all()]
    if missing:
        raise UserError(f"no value of {', '.join(missing)} in this table: effects need one of "
                        "every factor")
    whole = kept[list(factors)].notna().all(axis=1)
    if not whole.all():
        notes.append(f"{int((~whole).sum())} of {len(kept)} runs left out: without a value of "
                     "every factor")
    kept = kept[whole].reset_index(drop=True)
    kept, model, blocks = told_apart(kept, factors, column, notes)
    noise = pooled_noise(kept, column, level)
    kind, sd, dof = model.yardstick(noise, notes)
    terms = model.terms_table(kind, sd, dof, 1 - level)
    levels, pairs, doubling = model.contrasts(kept, sd, dof, level)
    if blocks:
        notes.append(f"differences taken at equal {', '.join(blocks)}")
    return Effects(terms, levels, pairs, doubling, column, kind, sd, dof, noise,
                   notes + list(noise.notes))


class Tied(UserError):
    """Factors that these runs can't tell apart: .factors"""

    def __init__(self, factors: list[str]) -> None:
        super().__init__(f"{' and '.join(factors)} can't be told apart (from each other or from "
                         "the other settings) in these runs: runs that vary one alone would")
        self.factors = factors


def told_apart(kept: pd.DataFrame, factors: tuple[str, ...], column: str,
               notes: list[str]) -> tuple[pd.DataFrame, Model, list[str]]:
    """The runs and their model: of all runs or, where these can't tell the factors apart, of the
    largest part that agrees in one column and can tell two of them. Raises UserError."""
    try:
        found = []
        model, blocks = Model.of(kept, factors, column, found)
        notes += found
        return kept, model, blocks
    except Tied as e:
        tied = e
    parts = []
    for c in varying(kept, [*["group"] * ("group" in kept), *setting_columns(kept)]):
        cell = cells(kept, [c])
        parts += [(c, cell == k) for k in np.unique(cell) if (cell == k).sum() > 2]
    for c, rows in sorted(parts, key=lambda part: -part[1].sum()):
        part, found = kept[rows].reset_index(drop=True), []
        if len(varying(part, tied.factors)) < min(2, len(tied.factors)):
            continue
        try:
            model, blocks = Model.of(part, factors, column, found)
        except Tied:
            continue
        out = list(map(str, kept[~rows]["run"]))
        names = ", ".join(out[:NAMED]) + (f" and {len(out) - NAMED} more" if out[NAMED:] else "")
        notes += [f"effects of {len(part)} of {len(kept)} runs, those with {c} {part[c].iloc[0]}; "
                  f"left out: {names}, with which {' and '.join(tied.factors)} can't be told apart",
                  *found]
        return part, model, blocks
    raise tied


@dataclass
class Model:
    """y (n,) on block means and effect-coded terms: name -> (n, its degrees of freedom). codes:
    factor -> (levels, coding (levels, levels - 1))."""
    y: np.ndarray
    blocks: np.ndarray
    terms: dict[str, np.ndarray]
    codes: dict[str, tuple[list, np.ndarray]]

    @classmethod
    def of(cls, kept: pd.DataFrame, factors: tuple[str, ...], column: str,
           notes: list[str]) -> tuple[Model, list[str]]:
        moving = varying(kept, list(factors)) if len(kept) else []
        if not moving:
            raise UserError(f"{', '.join(factors)}: each has one value in these "
                            f"{len(kept)} runs; effects need runs that differ")
        notes += [f"{f} has one value: it has no effect to show" for f in factors
                  if f not in moving]
        blocks, along = [], []
        for c in varying(kept, [c for c in setting_columns(kept) if c not in factors]):
            known = cells(kept, [*moving, *blocks])          # c may follow from all of these
            inside = pd.Series(cells(kept, [c])).groupby(known).nunique().max() > 1
            (blocks if inside else along).append(c)
        along = [c for c in telling(kept, along) if c not in SHAPE]
        if along:
            notes.append(f"going along with these factors: {', '.join(along)}; what that does is "
                         "part of the effects")
        codes: dict[str, tuple[list, np.ndarray]] = {}
        terms: dict[str, np.ndarray] = {}
        for f in moving:
            values = sorted(kept[f].unique())
            coding = np.vstack([np.eye(len(values) - 1), -np.ones(len(values) - 1)])
            codes[f] = (values, coding)
            terms[f] = coding[[values.index(v) for v in kept[f]]]
        block = cells(kept, blocks)                             # all 0 where there are none
        model = cls(kept[column].to_numpy(float), np.eye(block.max() + 1)[block], terms, codes)
        model.add_interactions(notes)
        return model, blocks

    def design(self, without: str = "") -> np.ndarray:
        return np.hstack([self.blocks, *(x for name, x in self.terms.items() if name != without)])

    def lost(self, name: str) -> int:
        """Degrees of freedom that go with a term; fewer than its columns: not told from others."""
        full = np.linalg.matrix_rank(self.design())
        return int(full - np.linalg.matrix_rank(self.design(name)))

    def add_interactions(self, notes: list[str]) -> None:
        """All pairwise products, less those that these runs can't tell."""
        mains = list(self.terms)
        tied = [f for f in mains if self.lost(f) < self.terms[f].shape[1]]
        if tied:
            raise Tied(tied)
        for a, b in combinations(mains, 2):
            both = self.terms[a][:, :, None] * self.terms[b][:, None, :]
            self.terms[f"{a} x {b}"] = both.reshape(len(self.y), -1)
        while np.linalg.matrix_rank(self.design()) < self.design().shape[1]:
            pairs = [t for t in self.terms if t not in mains]
            drop = [t for t in pairs if self.lost(t) < self.terms[t].shape[1]] or pairs
            for t in drop:
                del self.terms[t]
            notes.append(f"not told: {', '.join(drop)} (not every combination was run)")

    def squares(self, without: str = "") -> float:
        x = self.design(without)
        residual = self.y - x @ np.linalg.lstsq(x, self.y, rcond=None)[0]
        return float(residual @ residual)

    def yardstick(self, noise: Noise, notes: list[str]) -> tuple[str, float, int]:
        """(seeds | residual | none, sd, dof); a note where runs scatter about the model by more
        than seeds can."""
        from scipy import stats
        left = len(self.y) - self.design().shape[1]
        if not noise.known:
            pairs = [t for t in self.terms if " x " in t]
            if not left and pairs:
                notes.append("every degree of freedom is in the model: the interactions stand in "
                             "for the residual")
                without = Model(self.y, self.blocks, {t: x for t, x in self.terms.items()
                                                      if t not in pairs}, self.codes)
                return without.yardstick(noise, notes)
            sd = np.sqrt(self.squares() / left) if left else float("nan")
            return ("residual" if left else "none"), float(sd), left
        lack, free = self.squares() - noise.dof * noise.sd ** 2, left - noise.dof
        if free > 0 and noise.sd > 0:
            p = stats.f.sf(lack / free / noise.sd ** 2, free, noise.dof)
            if p < 0.01:
                notes.append("runs differ from this model by more than seeds explain (lack of fit "
                             f"p = {p:.1g}): higher interactions, or a setting not in the table")
        return "seeds", noise.sd, noise.dof

    def terms_table(self, kind: str, sd: float, dof: int, alpha: float) -> pd.DataFrame:
        from scipy import stats
        blocks = self.y - self.blocks @ np.linalg.lstsq(self.blocks, self.y, rcond=None)[0]
        total, full = float(blocks @ blocks), self.squares()
        rows = []
        for name, x in self.terms.items():
            k, extra = x.shape[1], max(self.squares(name) - full, 0.0)
            f = extra / k / sd ** 2 if sd > 0 else (np.inf if sd == 0 and extra > 0 else np.nan)
            rows.append({"term": name, "dof": k, "sum_sq": extra,
                         "share": extra / total if total else 0.0, "largest": self.largest(name),
                         "F": f, "p": stats.f.sf(f, k, dof) if dof else float("nan")})
        table = pd.DataFrame(rows)
        table["p_holm"] = holm(table["p"].to_numpy())
        table["verdict"] = [verdict(kind, x, p, alpha) for x, p in
                            zip(table["largest"], table["p_holm"])]
        return table

    def largest(self, name: str) -> float:
        values = self.expand(name) @ self.coefficients()[self.place(name)]
        return float(np.abs(values).max() if " x " in name else np.ptp(values))

    def coefficients(self) -> np.ndarray:
        return np.linalg.lstsq(self.design(), self.y, rcond=None)[0]

    def place(self, name: str) -> slice:
        start = self.blocks.shape[1]
        for other, x in self.terms.items():
            if other == name:
                return slice(start, start + x.shape[1])
            start += x.shape[1]
        raise KeyError(name)

    def expand(self, name: str) -> np.ndarray:
        """Matrix from a term's coefficients to the effects of its levels (or pairs of levels)."""
        codings = [self.codes[f][1] for f in name.split(" x ")]
        return codings[0] if len(codings) == 1 else np.kron(*codings)

    def contrasts(self, kept: pd.DataFrame, sd: float, dof: int,
                  level: float) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        from scipy import stats
        beta, x = self.coefficients(), self.design()
        inverse = np.linalg.inv(x.T @ x)
        reach = stats.t.ppf((1 + level) / 2, dof) if dof else float("nan")
        levels, pairs, doubling = [], [], []
        for name in self.terms:
            at, expand = self.place(name), self.expand(name)
            value, cov = expand @ beta[at], expand @ inverse[at, at] @ expand.T
            se = sd * np.sqrt(np.diag(cov))
            values = [self.codes[f][0] for f in name.split(" x ")]
            if len(values) == 2:
                pairs += [{"term": name, "level_a": a, "level_b": b, "effect": v, "se": error}
                          for (a, b), v, error in zip(product(*values), value, se)]
                continue
            count = kept[name].value_counts()
            levels += [{"factor": name, "level": v, "effect": value[i], "se": se[i],
                        "n_runs": int(count[v])} for i, v in enumerate(values[0])]
            if all(isinstance(v, (int, float, np.number)) and v > 0 for v in values[0]):
                log = np.log2(np.asarray(values[0], float))
                c = (log - log.mean()) / ((log - log.mean()) ** 2).sum()
                slope, error = c @ value, sd * np.sqrt(c @ cov @ c)
                doubling.append({"factor": name, "effect": slope, "se": error,
                                 "low": slope - reach * error, "high": slope + reach * error})
        return (pd.DataFrame(levels),
                pd.DataFrame(pairs, columns=["term", "level_a", "level_b", "effect", "se"]),
                pd.DataFrame(doubling, columns=["factor", "effect", "se", "low", "high"]))


def holm(p: np.ndarray) -> np.ndarray:
    """p values corrected for their number (Holm 1979)."""
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(raised, 1)
    return out


def verdict(kind: str, largest: float, p: float, alpha: float) -> str:
    clear = p < alpha                            # nan is not
    if kind == "seeds":
        word = f"up to {largest:.3g}"
        return f"clear: {word}" if clear else f"inside seed noise ({word})"
    if kind == "residual":
        return (f"clear even against the residual: up to {largest:.3g}" if clear else
                f"open: up to {largest:.3g}, noise unknown")
    return f"up to {largest:.3g}, noise unknown"
