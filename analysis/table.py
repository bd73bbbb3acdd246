"""The one tidy table: a row per run (or per run and evaluation), the same columns from anywhere.

run           id; rows that share it are checkpoints of one run
n_params      N: parameters that do matrix work (blocks and head); the default of every fit
tokens        D: training tokens seen
flops         C: training FLOPs, exact count of matrix products, head included
loss          validation loss, nats per token
optional      loss_se floor unique_tokens epochs seed lr warmup_tokens status corpus tokenizer
              eval_mode eval_tokens n_layer n_head n_embd vocab_size block_size d_ff tied
              parametrization, ... (those of analysis.runs.columns)
"""
from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from slm.errors import UserError

REQUIRED = ("run", "n_params", "tokens", "flops", "loss")
SAME = ("corpus", "tokenizer", "eval_mode")        # losses per token compare only within one
SET = ("val_sha256", "eval_tokens")                # and of one tokenizer within one of these
FINISHED = ("finished",)


def load_table(source: str | Path | pd.DataFrame, *, n_params: str = "N", tokens: str | None = "",
               flops: str | None = "", loss: str = "loss", run: str | None = "",
               **more: str) -> pd.DataFrame:
    """Any table of runs as the tidy table.

    source: a .csv or .parquet file, or a DataFrame. The other arguments name *its* columns
    (default: tokens D, flops C and run run, those of them that it has; None: none); `more` maps
    further tidy columns (unique_tokens="U", ...); columns not named are kept as they are. Without
    tokens or flops C = 6 N D gives it; without a run column every row is a run of its own.
    `.attrs["notes"]` says what was filled in. Raises UserError for a file that can't be read, a
    column that is not there, and a name in `more` that is no column of the tidy table.
    """
    frame = read(source)
    asked = {"n_params": n_params, "tokens": tokens, "flops": flops, "loss": loss, "run": run}
    asked |= {name: column for name, column in more.items() if is_tidy(name)}
    notes, rename = [], {}
    for name, column in asked.items():
        if column == "":
            column = {"tokens": "D", "flops": "C", "run": "run"}[name]
            column = column if column in frame else None
        if column is None:
            continue
        if column not in frame:
            raise UserError(f"{described(source)}: no column {column!r} for {name}; its columns "
                            f"are {', '.join(map(str, frame.columns))}. Say {name}=<column>")
        if column in rename:
            raise UserError(f"{described(source)}: column {column!r} can't be both "
                            f"{rename[column]} and {name}")
        rename[column] = name
    clash = [c for c in frame.columns if c in rename.values() and c not in rename]
    tidy = frame.drop(columns=clash).rename(columns=rename)
    for name in ("n_params", "tokens", "flops", "loss"):
        if name in tidy:
            tidy[name] = numeric(tidy[name], name, source)
    if "tokens" not in tidy and "flops" not in tidy:
        raise UserError(f"{described(source)}: needs a column of tokens (tokens=) or of training "
                        "FLOPs (flops=)")
    if "tokens" not in tidy:
        tidy["tokens"] = tidy["flops"] / (6 * tidy["n_params"])
        notes.append("tokens taken as D = C / (6 N)")
    if "flops" not in tidy:
        tidy["flops"] = 6 * tidy["n_params"] * tidy["tokens"]
        notes.append("compute taken as C = 6 N D")
    if "run" not in tidy:
        tidy["run"] = [f"row {i}" for i in range(len(tidy))]
        notes.append("no run column: every row taken as a run of its own")
    tidy.attrs["notes"] = notes
    first = list(REQUIRED)
    return tidy[first + [c for c in tidy.columns if c not in first]]


def is_tidy(name: str) -> bool:
    """Raises UserError for a name that is no column of the tidy table."""
    from analysis.runs.columns import COLUMNS
    if name not in COLUMNS:
        raise UserError(f"{name}: the tidy table has no such column"
                        + meant([name], COLUMNS, f"; it has {', '.join(COLUMNS)}"))
    return True


def meant(missing: Iterable[str], columns: Iterable[str], otherwise: str = "") -> str:
    """'; did you mean n_layer?', for names that are no columns; otherwise: where none is near."""
    names = [str(c) for c in columns]
    near = [n for c in missing for n in difflib.get_close_matches(str(c), names, 1, 0.5)]
    return f"; did you mean {', '.join(near)}?" if near else otherwise


def read(source: str | Path | pd.DataFrame) -> pd.DataFrame:
    """The table of a file or a DataFrame (copied). Raises UserError."""
    if isinstance(source, pd.DataFrame):
        return source.copy()
    path = Path(source)
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix not in readers:
        raise UserError(f"{path}: a table is a .csv or .parquet file, or a DataFrame")
    try:
        frame = readers[path.suffix](path)
    except Exception as e:
        raise UserError(f"{path}: can't be read as {path.suffix} ({type(e).__name__}: {e})") from e
    if frame.empty:
        raise UserError(f"{path}: no rows")
    return frame


def described(source: str | Path | pd.DataFrame) -> str:
    return "the table" if isinstance(source, pd.DataFrame) else str(source)


def numeric(column: pd.Series, name: str, source: str | Path | pd.DataFrame) -> pd.Series:
    """The column as floats. Raises UserError with the first value that is no number."""
    values = pd.to_numeric(column, errors="coerce").astype(float)
    bad = np.flatnonzero(values.isna() & column.notna())
    if len(bad):
        raise UserError(f"{described(source)}: {name} is {column.iloc[bad[0]]!r} in "
                        f"{place(source, column.index, int(bad[0]))}; it should be a number")
    return values


def place(source: str | Path | pd.DataFrame, index: pd.Index, at: int) -> str:
    """Where row `at` of a source stands: its line of a .csv (blank lines and line breaks in quotes
    count), its number in a .parquet file, from 1, its label in a DataFrame."""
    if isinstance(source, pd.DataFrame):
        return f"row {index[at]}"
    if Path(source).suffix != ".csv":
        return f"row {at + 1}"
    with open(source, newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(file)
        return f"line {[rows.line_num for row in rows if row][at + 1]}"


def usable(runs: pd.DataFrame, needs: tuple[str, ...], allow_mixed: bool = False,
           same: tuple[str, ...] = SAME, decayed: bool = True) -> tuple[pd.DataFrame, list[str]]:
    """Rows that a law can be fitted to, and a line for each kind of row left out.

    needs: columns the form reads, besides run and loss; same: as in check_mixed; decayed: leave out
    runs that stopped short of their horizon (else: a line on them). Raises UserError for an empty
    table, a column that is not there, no row with a loss, and mixed corpora, tokenizers or
    validation sets."""
    if not isinstance(runs, pd.DataFrame):
        raise UserError(f"a table of runs is a DataFrame, not {type(runs).__name__}: make one with "
                        "load_runs(folder) or load_table(file)")
    if runs.empty:
        raise UserError("no runs: the table is empty")
    missing = [c for c in dict.fromkeys(("run", "loss", *needs)) if c not in runs]
    if missing:
        raise UserError(f"the table has no column {', '.join(missing)}; load_table(..., "
                        f"{missing[0]}=<its name>) maps one (here: "
                        f"{', '.join(map(str, runs.columns[:12]))})")
    values = pd.DataFrame({c: numeric(runs[c], c, runs) for c in ("loss", *needs)})
    reasons = pd.Series("", index=range(len(runs)), dtype=object)
    if "status" in runs:
        status = runs["status"].reset_index(drop=True)
        off = status.notna() & ~status.isin(FINISHED)
        reasons[off] = status[off].astype(str)
    values = values.reset_index(drop=True)
    reasons[(reasons == "") & ~np.isfinite(values["loss"])] = "without a finite validation loss"
    bad = ~(np.isfinite(values) & (values > 0)).all(axis=1)
    reasons[(reasons == "") & bad] = "with a value that is not a positive number"
    if not np.isfinite(values["loss"]).any():
        raise UserError(f"none of {len(runs)} rows has a validation loss")
    short = stopped_short(runs).reset_index(drop=True).where(reasons == "", "")
    if decayed:
        reasons = reasons.where(short == "", short)
    keep = (reasons == "").to_numpy()
    notes = [f"{n} of {len(runs)} rows left out: {why}" for why, n in
             reasons[~keep].value_counts().items()]
    if not keep.any():
        raise UserError("no usable run: " + "; ".join(notes))
    if not decayed:
        notes += [f"{n} of {len(runs)} rows {why}" for why, n in
                  short[short != ""].value_counts().items()]
    kept = runs.reset_index(drop=True)[keep].assign(**values[keep]).reset_index(drop=True)
    return kept, notes + check_mixed(kept, allow_mixed, same, "floor" in needs)


def stopped_short(runs: pd.DataFrame) -> pd.Series:
    """Why each row is of a run that ended before its learning rate had decayed ('' where not): its
    tokens, at its last row, fall short of its horizon by more than a step, with any schedule but
    the constant one. A table without horizons has none."""
    out = pd.Series("", index=runs.index, dtype=object)
    if not {"run", "tokens", "horizon_tokens"} <= set(runs):
        return out
    seen = runs.groupby("run", dropna=False)["tokens"].transform("max")
    horizon = runs["horizon_tokens"]
    step = runs["batch_tokens"] if "batch_tokens" in runs else pd.Series(np.nan, index=runs.index)
    short = horizon - seen > step.fillna(0.01 * horizon)
    if "schedule" in runs:
        short &= runs["schedule"] != "constant"
    why = runs["reason"] if "reason" in runs else out
    for at in np.flatnonzero(short):
        told = f" ({why.iloc[at]})" if isinstance(why.iloc[at], str) and why.iloc[at] else ""
        out.iloc[at] = "stopped short of their horizon, learning rate not decayed" + told
    return out


def check_mixed(runs: pd.DataFrame, allow_mixed: bool, same: tuple[str, ...] = SAME,
                known_floors: bool = False) -> list[str]:
    """Losses per token of two corpora, tokenizers or validation sets are two quantities.

    same: columns that should hold one value (bits per byte compare across tokenizers). Of one
    tokenizer the tokens counted should be the same ones: SET, and, unless each run's own floor is
    taken off its loss (known_floors), the floor, which is the entropy of those very tokens. Raises
    UserError unless allow_mixed; then a line for each. Windows of several block sizes are only
    told of: block size is the model's as much as the evaluation's."""
    lines = []
    for column in [c for c in same if c in runs]:
        kinds = runs[column].dropna()
        if kinds.nunique() > 1:
            lines.append((column, f"{kinds.nunique()} kinds of {column} in one fit "
                          f"({listed(kinds)}): losses per token are not comparable"))
    by = runs["tokenizer"].fillna("") if "tokenizer" in runs else pd.Series("", index=runs.index)
    for column in [c for c in (*SET, "floor") if c in runs]:
        kinds = runs[column].dropna().groupby(by)
        differ = kinds.nunique().max() > 1
        if column == "floor":
            differ = differ and not known_floors and (kinds.max() > kinds.min() * (1 + 1e-6)).any()
        if differ:
            lines.append((column, "several validation sets under one tokenizer "
                          f"({column} {listed(runs[column].dropna())}): their losses are not "
                          "comparable"))
    if lines and not allow_mixed:
        column, line = lines[0]
        most = runs[column].value_counts().index.tolist()[0]
        most = int(most) if isinstance(most, float) and most.is_integer() else most
        raise UserError(f"{line}; choose runs of one (runs[runs.{column} == {most!r}], --where "
                        f"\"{column} = {most}\") or say allow_mixed=True")
    told = [line for _, line in lines]
    windows = runs[runs["eval_mode"] == "windows"] if "eval_mode" in runs else runs.iloc[:0]
    if "block_size" in windows and windows["block_size"].nunique() > 1:
        told.append(f"evaluated on windows of several sizes (block_size "
                    f"{listed(windows['block_size'])}): a token sees less before it in a shorter "
                    "one, so that losses differ by the evaluation too (eval_mode stories does not)")
    return told


def listed(kinds: pd.Series) -> str:
    """The first few values of a column."""
    few = kinds.drop_duplicates().sort_values(key=lambda v: v.astype(str) if v.dtype == object
                                              else v).tolist()
    return ", ".join(f"{v:,.6g}" if isinstance(v, (int, float)) else str(v)[:16]
                     for v in few[:4]) + ", ..." * (len(few) > 4)


def best_settings(runs: pd.DataFrame, over: tuple[str, ...] = ("lr",)) -> pd.DataFrame:
    """Of runs that share N and D, those with the best setting of `over` (all their seeds kept).

    The best is by mean loss over seeds: picking the luckiest single run would bend the law."""
    over = tuple(c for c in over if c in runs)
    if not over:
        return runs
    cell = [runs["n_params"], runs["tokens"]]
    setting = runs.groupby(["n_params", "tokens", *over], dropna=False)["loss"].transform("mean")
    return runs[setting <= setting.groupby(cell).transform("min")].reset_index(drop=True)


def best_finished(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """For --best: of finished runs that share N and D those with the best learning rate, all others
    as they are (attrs too), and a line that says how many."""
    done = runs["status"].isin(FINISHED) if "status" in runs else runs["loss"].notna()
    best = best_settings(runs[done], ("lr", "muon_lr"))
    chosen = pd.concat([best, runs[~done]], ignore_index=True)
    chosen.attrs = runs.attrs
    return chosen, (f"{len(best)} of {done.sum()} finished runs fitted: of those that share N and "
                    "D the best learning rate")


def floor_of(text: str | None, runs: pd.DataFrame) -> float | str | None:
    """What --floor says: a number (nats/token) or a column of the runs. Raises UserError."""
    if text is None or text in runs:
        return text
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--floor={text}: is no number and no column of the runs") from None
