"""Runs side by side: which setting is best, by how much, and is it more than luck?

    print(compare(load_runs("runs/")).summary())
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from analysis.comparison.effects import Effects, effects
from analysis.comparison.noise import (UNITS, Noise, cells, check_columns, pooled_noise, prepared,
                                       seed_noise, setting_columns, telling, varying)
from slm.errors import UserError
from slm.screen import amount
from slm.sweep.table import table as text_table

__all__ = ["Comparison", "compare", "effects", "seed_noise", "smooth", "smooth_curves"]
ROWS = 256                # of the kernel matrix at a time
SHOWN = 8                 # settings named in a summary
WIDE = 1.5                # losses further apart than this: noise is taken as a share of the loss
FACTORS = ("n_layer", "n_head", "n_embd")
LARGE = 10_000            # a whole number from here on is written as 20k
WORDS = {"loss": "validation loss", "bits_per_byte": "validation bits per byte"}


def smooth(y, x=None, bandwidth: float = 0.05) -> np.ndarray:
    """A loss curve without its jitter, (n,): local linear regression with the tricube kernel.

    At each x a line is fitted by weighted least squares to what lies within `bandwidth` times the
    range of x on either side (or as far as the third neighbour) and read off there. It is exact on
    straight lines, the ends included, where a moving average lags and a shrinking window is noise
    (Cleveland 1979; Fan and Gijbels 1996, section 3.2.5). A value that is not finite stays a gap.

    y: (n,). x: (n,), default 0, 1, ...; in any order. For the early fall of a loss give the
    logarithm of the tokens: the window then widens with them. Raises UserError: shapes that differ,
    a bandwidth that is not above 0."""
    y = np.asarray(y, float)
    x = np.arange(y.size, dtype=float) if x is None else np.asarray(x, float)
    if y.ndim != 1 or x.shape != y.shape:
        raise UserError(f"smooth: y {y.shape} and x {x.shape} should be two equally long rows")
    if not bandwidth > 0:
        raise UserError(f"smooth: bandwidth={bandwidth} should be above 0 (share of x's range)")
    out = np.full(y.size, np.nan)
    good = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    order = good[np.argsort(x[good], kind="stable")]
    if order.size:
        out[order] = local_lines(x[order], y[order], bandwidth)
    return out


def local_lines(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    """smooth() of finite values with x ascending."""
    n, k = len(x), min(3, len(x) - 1)
    padded = np.concatenate([np.full(k, -np.inf), x, np.full(k, np.inf)])
    # the third nearest neighbour lies within the k before and the k after
    near = np.sort(np.abs(np.stack([padded[i:i + n] for i in range(2 * k + 1)]) - x), axis=0)[k]
    reach = np.maximum(bandwidth * (x[-1] - x[0]), near) * (1 + 1e-9)
    reach[reach == 0] = 1.0
    first, last = np.searchsorted(x, x - reach), np.searchsorted(x, x + reach, side="right")
    out = np.empty(n)
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        near = slice(first[rows].min(), last[rows].max())
        d = (x[near] - x[rows, None]) / reach[rows, None]              # (rows, near)
        w = np.abs(d)
        w = np.maximum(1 - w * w * w, 0)
        w = w * w * w                                                  # ** 3 is ten times slower
        s0, s1, s2 = w.sum(1), (w * d).sum(1), (w * d * d).sum(1)
        t0, t1 = w @ y[near], (w * d) @ y[near]
        det = s0 * s2 - s1 * s1
        flat = det <= 1e-12 * s0 * s0                                  # all at one x: their mean
        out[rows] = np.where(flat, t0 / s0, (s2 * t0 - s1 * t1) / np.where(flat, 1, det))
    return out


def smooth_curves(history: pd.DataFrame, key: str = "train/loss", x: str = "tokens",
                  bandwidth: float = 0.05, log_x: bool = False) -> pd.DataFrame:
    """Every run's curve with its smoothing: rows run, step, x, key and "smooth", in the order of x.

    history: of load_history. log_x: windows of equal ratio instead of equal width (points at x <= 0
    are left out). Raises UserError: no history, a column that is not there."""
    missing = [c for c in ("run", key, x) if c not in history]
    if missing or history.empty:
        there = ", ".join(map(str, history.columns[:12]))
        raise UserError("no history to smooth: " + (
            f"no column {', '.join(missing)} (there are {there})" if missing else
            "the table is empty"))
    columns = list(dict.fromkeys(c for c in ("run", "step", x, key) if c in history))
    rows = history[columns]
    rows = rows[rows[key].notna() & rows[x].notna() & ((rows[x] > 0) | (not log_x))]
    parts = [part.sort_values(x, kind="stable") for _, part in rows.groupby("run", sort=False)]
    for part in parts:
        at = part[x].to_numpy(float)
        part["smooth"] = smooth(part[key].to_numpy(float), np.log(at) if log_x else at, bandwidth)
    return pd.concat(parts, ignore_index=True) if parts else rows.assign(smooth=[])


@dataclass(repr=False)
class Comparison:
    """table: a row per setting, best first (within each group of `within`): setting (in words), the
    settings that vary, mean, n_seeds, sd (its own seeds'), se (pooled noise / sqrt n), difference
    to the best with its simultaneous interval [low, high], verdict, runs. column: what is compared;
    effects: of layers, heads and width, None where these runs can't tell (notes say why)."""
    table: pd.DataFrame
    column: str
    within: tuple[str, ...]
    noise: Noise
    effects: Effects | None
    notes: list[str]

    def __repr__(self) -> str:
        best = self.table.iloc[0]
        return (f"Comparison of {len(self.table)} settings, {self.table['n_seeds'].sum():.0f} runs "
                f"by {self.column}, best {best['mean']:.4f}: {best['setting']} (summary() tells "
                "all)")

    def summary(self) -> str:
        t, unit = self.table, UNITS.get(self.column, "")
        lines = [f"{len(t)} settings, {int(t['n_seeds'].sum())} runs, by "
                 f"{WORDS.get(self.column, self.column)} ({unit})", str(self.noise), ""]
        groups, rows, after = cells(t, list(self.within)), [], {}
        for g in pd.unique(groups):
            group = t[groups == g]
            for _, row in group.head(SHOWN).iterrows():
                error = f" ± {row.se:.2g}" if np.isfinite(row.se) else ""
                rows.append([f"{row['mean']:.4f}{error}", str(row.n_seeds), row.verdict,
                             row.setting])
            more = f"  ... {len(group) - SHOWN} more, up to {group['mean'].iloc[-1]:.4f}"
            after[len(rows)] = [*[more] * (len(group) > SHOWN), ""]
        head, *body = text_table([self.column, "seeds", "verdict", "setting"], rows, {0, 2, 3})
        lines.append(f"  {head}")
        for i, line in enumerate(body, 1):
            lines += [f"  {line}", *after.get(i, [])]
        lines += [*([self.effects.summary()] if self.effects else [])]
        told = self.effects.notes if self.effects else []
        return "\n".join(lines + [note for note in self.notes if note not in told])


def compare(runs: pd.DataFrame, *, within: tuple[str, ...] = (), column: str | None = None,
            factors: tuple[str, ...] = FACTORS, level: float = 0.95,
            allow_mixed: bool = False) -> Comparison:
    """The settings of some runs, best first, and whether the best is more than luck.

    within    columns at equal values of which settings compete: ("n_params", "tokens") gives the
              best learning rate of each cell of a ladder; default: all compete
    column    what is compared; default loss, or bits_per_byte where there are several tokenizers
    factors   of the effects (analysis.comparison.effects)
    level     of every interval and verdict

    "same within noise": the mean lies above the best's by no more than k settings of equal quality
    would differ by luck (Tukey 1953, Kramer 1956: studentized range, standard error of the pooled
    seed noise; of its share of the loss where losses differ more than 1.5-fold). The best was
    picked for being low, so a plain t-test would find the others worse too often.

    Raises UserError: fewer than two runs, no losses, factors or columns to compare within that are
    not there, mixed corpora or evaluation modes unless allow_mixed."""
    notes = []
    if column is None:
        column, notes = choose_column(runs)
    kept, more = prepared(runs, column, allow_mixed)
    notes += more
    if len(kept) < 2:
        raise UserError(f"one usable run ({kept['run'].iloc[0]}): a comparison needs at least two"
                        + "".join(f"; {n}" for n in notes))
    check_columns("within", within, kept)
    if factors != FACTORS:          # a table without layers can still be compared
        check_columns("factors", factors, kept)
    within = tuple(dict.fromkeys(within))
    noise = pooled_noise(kept, column, level)
    table = settings_table(kept, column, within, noise, level)
    found = None
    try:
        found = effects(kept, factors, column=column, level=level, allow_mixed=allow_mixed)
    except UserError as e:
        notes.append(f"no effects of {', '.join(factors)}: {e}")
    return Comparison(table, column, within, noise, found, notes + list(noise.notes))


def choose_column(runs: pd.DataFrame) -> tuple[str, list[str]]:
    """loss, or bits per byte where tokenizers differ, and a line that says so."""
    finished = runs
    if isinstance(runs, pd.DataFrame) and "status" in runs:
        finished = runs[runs["status"].isin(("finished",)) | runs["status"].isna()]
    if not isinstance(runs, pd.DataFrame) or "tokenizer" not in runs \
            or finished["tokenizer"].nunique() < 2:
        return "loss", []
    kinds = ", ".join(sorted(finished["tokenizer"].dropna().astype(str).unique())[:4])
    return "bits_per_byte", [f"several tokenizers ({kinds}): compared by bits per byte, since nats "
                             "per token are not comparable"]


def settings_table(kept: pd.DataFrame, column: str, within: tuple[str, ...], noise: Noise,
                   level: float) -> pd.DataFrame:
    """Comparison.table of prepared runs."""
    columns = setting_columns(kept)
    shown = [*within, *varying(kept, [c for c in columns if c not in within])]
    texts = {c: spelled(kept[c]) for c in telling(kept, shown)}
    rows = []
    cell = cells(kept, [*within, *columns])
    for k in np.unique(cell):
        part = kept[cell == k]
        values = part[column].to_numpy(float)
        first = part.iloc[0]
        words = " ".join(f"{c}={how(first[c])}" for c, how in texts.items())
        rows.append({"setting": words or "one setting", **{c: first[c] for c in shown},
                     "mean": values.mean(), "n_seeds": len(part),
                     "sd": values.std(ddof=1) if len(part) > 1 else np.nan,
                     "se": luck(values.mean(), noise, kept[column]) / np.sqrt(len(part)),
                     "runs": ", ".join(map(str, part["run"]))})
    table = pd.DataFrame(rows)
    group = cells(table, list(within))
    parts = [judged(table[group == g].sort_values("mean", kind="stable"), noise, level)
             for g in pd.unique(group)]
    best = sorted(parts, key=lambda p: p["mean"].iloc[0])
    table = pd.concat(best, ignore_index=True)
    return table[[c for c in table if c != "runs"] + ["runs"]]


def luck(mean, noise: Noise, values: pd.Series):
    """Standard deviation between seeds of a setting with this mean: one for all, or a share of the
    mean where losses differ so much that one for all would drown the best settings."""
    wide = values.max() > WIDE * values.min() > 0
    return noise.log_sd * mean if wide else noise.sd + 0 * mean


def judged(part: pd.DataFrame, noise: Noise, level: float) -> pd.DataFrame:
    """Settings sorted by mean, with their difference to the first and a verdict in words."""
    part, k, var = part.copy(), len(part), part["se"].to_numpy() ** 2
    gap = part["mean"].to_numpy() - part["mean"].iloc[0]
    width = np.full(k, np.nan)
    if noise.known and k > 1:
        q = studentized_range(level, k, noise.dof)
        width = q / np.sqrt(2) * np.sqrt(var + var[0])
        width[0] = 0.0
    part["difference"], part["low"], part["high"] = gap, gap - width, gap + width
    words = [f"worse by {g:.4f}" if w < g else "same within noise" if w >= g else
             f"worse by {g:.4f}, noise unknown" for g, w in zip(gap, width)]
    words[0] = "best" if noise.known and k > 1 else "only one" if k == 1 else "best, noise unknown"
    return part.assign(verdict=words)


@lru_cache(maxsize=256)
def studentized_range(level: float, k: int, dof: int) -> float:
    from scipy import stats
    return float(stats.studentized_range.ppf(level, k, dof))


def spelled(values: pd.Series) -> Callable[[object], str]:
    """How a setting's values are written: in few digits where these tell all apart."""
    kinds, ways = values.dropna().unique(), []
    if values.dtype.kind in "if" and len(kinds):
        ways = [amount, "{:,.0f}".format] if max(kinds) >= LARGE else ["{:.4g}".format]
    return next(how for how in (*ways, str) if len({how(v) for v in kinds}) == len(kinds))
