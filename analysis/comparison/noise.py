"""Which runs are the same but for their seed, and how far luck moves a loss."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.table import SAME, meant, usable
from slm.errors import UserError

SEEDS = ("seed", "data_seed", "train.seed", "data.seed")
SETTINGS = ("n_layer", "n_head", "n_embd", "tokens", "lr", "muon_lr", "batch_tokens",
            "warmup_tokens", "weight_decay", "dropout", "schedule", "optimizer", "preset",
            "parametrization", "norm", "position", "activation", "qk_norm", "bias", "tied",
            "zero_init", "block_size", "tokenizer", "vocab_size", "corpus",
            "eval_mode", "eval_tokens", "unique_tokens", "head_size", "d_ff", "n_params")
SHAPE = ("n_params", "head_size", "d_ff", "vocab_size")     # follow from other settings
NOT_SETTINGS = ("track.", "device.", "sample.")             # sections that change no loss
UNITS = {"loss": "nats/token", "bits_per_byte": "bits/byte"}


def prepared(runs: pd.DataFrame, column: str = "loss",
             allow_mixed: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Finished runs with a finite `column`, a row each (of checkpoints the last), and notes on what
    was left out. Bits per byte compare across tokenizers, nats per token do not.

    Raises UserError as table.usable does."""
    same = tuple(c for c in SAME if c != "tokenizer" or column != "bits_per_byte")
    kept, notes = usable(runs, (column,), allow_mixed, same, decayed=False)
    if kept["run"].duplicated().any():
        order = kept.sort_values("tokens", kind="stable") if "tokens" in kept else kept
        kept = kept.loc[sorted(order.groupby("run", dropna=False).tail(1).index)]
        notes.append("several rows of one run: its last is taken")
    if "identity" in kept:
        again = kept["identity"].notna() & kept["identity"].duplicated()
        kept = kept[~again]
        if again.any():
            notes.append(f"{int(again.sum())} rows are a run that is there already (same identity),"
                         " left out")
    return kept.reset_index(drop=True), notes


def check_columns(what: str, columns: Iterable[str], runs: pd.DataFrame) -> None:
    """Raises UserError, with the nearest names, where some of `columns` are not in the table."""
    missing = [c for c in columns if c not in runs]
    if missing:
        raise UserError(f"{what}: no column {', '.join(map(str, missing))} in this table"
                        + meant(missing, runs))


def setting_columns(runs: pd.DataFrame) -> list[str]:
    """Columns of the table that say what was trained, seeds aside, in the order of SETTINGS; then
    dotted spec keys that the table was asked for."""
    dotted = [c for c in runs.columns if "." in str(c) and c not in SEEDS
              and not str(c).startswith(NOT_SETTINGS)]
    return [c for c in SETTINGS if c in runs] + dotted


def cells(runs: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """A number for each row (n,), equal where all of `columns` are (missing equals missing)."""
    number = np.zeros(len(runs), int)
    for c in columns:
        values = [str(v) if isinstance(v, (list, dict)) else v for v in runs[c]]
        codes = pd.factorize(pd.Series(values, dtype=object))[0]           # missing: -1
        number = pd.factorize(number * (len(runs) + 1) + codes + 1)[0]
    return number


def varying(runs: pd.DataFrame, columns: list[str]) -> list[str]:
    """Those of `columns` with more than one value."""
    return [c for c in columns if cells(runs, [c]).max() > 0]


def telling(runs: pd.DataFrame, columns: list[str]) -> list[str]:
    """Enough of `columns`, in their order, to tell all settings apart: columns that follow from
    earlier ones (head_size from width and heads) are left out."""
    kept: list[str] = []
    for c in varying(runs, columns):
        if cells(runs, [*kept, c]).max() > (cells(runs, kept).max() if kept else 0):
            kept.append(c)
    return kept


@dataclass(frozen=True)
class Noise:
    """Luck of a single run: standard deviation of `column` between seeds, pooled over `n_cells`
    settings that were run with several, [low, high] its chi-square interval at `level`; log_sd
    that of the logarithm. dof 0: there are no replicates and all are nan. Sampling error of the
    validation set is no part of it: all seeds share that set."""
    sd: float
    low: float
    high: float
    log_sd: float
    n_cells: int
    n_runs: int
    dof: int
    level: float = 0.95
    column: str = "loss"
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        return self.dof > 0

    def __str__(self) -> str:
        if not self.known:
            return "seed noise unknown: no setting was run with several seeds"
        return (f"seed noise: sd {self.sd:.3g} [{self.low:.3g}, {self.high:.3g}] "
                f"{UNITS.get(self.column, self.column)} ({self.log_sd:.2%}), from {self.n_runs} "
                f"runs of {self.n_cells} settings ({self.dof} degrees of freedom)")


def seed_noise(runs: pd.DataFrame, column: str = "loss", *, level: float = 0.95,
               allow_mixed: bool = False) -> Noise:
    """Pooled standard deviation over cells of equal settings and different seeds.

    s^2 = sum over cells of squared deviations from the cell's mean / sum of (n - 1); its interval
    is [s sqrt(dof / chi2_upper), s sqrt(dof / chi2_lower)]. Raises UserError as prepared does."""
    kept, _ = prepared(runs, column, allow_mixed)
    return pooled_noise(kept, column, level)


def pooled_noise(kept: pd.DataFrame, column: str, level: float) -> Noise:
    """seed_noise of a prepared table."""
    from scipy import stats
    seeds = [c for c in SEEDS if c in kept and kept[c].notna().any()]
    seeded = kept[kept[seeds].notna().any(axis=1)] if seeds else kept.iloc[:0]
    cell = cells(seeded, setting_columns(seeded))
    groups, notes, clashes = [], [], 0
    for k in np.unique(cell):
        rows = seeded[cell == k]
        if len(rows) > 1 and len(np.unique(cells(rows, seeds))) < len(rows):
            clashes += 1
        elif len(rows) > 1:
            groups.append(rows[column].to_numpy(float))
    if clashes:
        notes.append(f"{clashes} settings hold runs of one seed that differ in something the table "
                     "does not have: not taken as noise; load_runs(..., spec_keys=[...]) adds it")
    dof = sum(len(g) - 1 for g in groups)
    if not dof:
        return Noise(*[float("nan")] * 4, 0, 0, 0, level, column, tuple(notes))
    squares = sum(float(((g - g.mean()) ** 2).sum()) for g in groups)
    logs = sum(float(((np.log(g) - np.log(g).mean()) ** 2).sum()) for g in groups)
    sd, tail = np.sqrt(squares / dof), (1 - level) / 2
    low, high = (sd * np.sqrt(dof / stats.chi2.ppf(p, dof)) for p in (1 - tail, tail))
    if sd == 0:
        notes.append("runs of different seeds agree exactly: does the seed reach them?")
    elif len(groups) > 1 and all(np.ptp(g) > 0 for g in groups):
        p = stats.bartlett(*groups).pvalue
        if p < 0.01:
            sds = [g.std(ddof=1) for g in groups]
            notes.append(f"seed noise differs between settings (sd {min(sds):.2g} to {max(sds):.2g}"
                         f", Bartlett p = {p:.1g}): the pooled one is too large for some")
    return Noise(float(sd), float(low), float(high), float(np.sqrt(logs / dof)), len(groups),
                 sum(map(len, groups)), dof, level, column, tuple(notes))
