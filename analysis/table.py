"""The one tidy table: a row per run (or per run and evaluation), the same columns from anywhere.

run           id; rows that share it are checkpoints of one run
n_params      N: parameters that do matrix work (blocks and head); the default of every fit
tokens        D: training tokens seen
flops         C: training FLOPs, exact count of matrix products, head included
loss          validation loss, nats per token
optional      loss_se floor unique_tokens epochs seed lr warmup_tokens status corpus tokenizer
              n_layer n_head n_embd vocab_size block_size d_ff tied parametrization, ...
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from slm.errors import UserError

REQUIRED = ("run", "n_params", "tokens", "flops", "loss")
SAME = ("corpus", "tokenizer", "eval_mode")        # losses per token compare only within one
FINISHED = ("finished",)


def load_table(source: str | Path | pd.DataFrame, *, n_params: str = "N", tokens: str | None = "D",
               flops: str | None = "C", loss: str = "loss", run: str | None = "run",
               **more: str) -> pd.DataFrame:
    """Any table of runs as the tidy table.

    source: a .csv or .parquet file, or a DataFrame. The other arguments name *its* columns; `more`
    maps further tidy columns (unique_tokens="U", ...); columns not named are kept as they are.
    Where tokens or flops is None or the default name is not there, C = 6 N D gives it; without a
    run column every row is a run of its own. `.attrs["notes"]` says what was filled in.
    Raises UserError for a file that can't be read or a column that is not there.
    """
    frame = read(source)
    asked = {"n_params": n_params, "tokens": tokens, "flops": flops, "loss": loss, "run": run}
    asked |= more
    defaults = {"tokens": "D", "flops": "C", "run": "run"}
    notes, rename = [], {}
    for name, column in asked.items():
        if column is None or (column == defaults.get(name) and column not in frame):
            continue
        if column not in frame:
            raise UserError(f"{described(source)}: no column {column!r} for {name}; its columns "
                            f"are {', '.join(map(str, frame.columns))}. Say {name}=<column>")
        rename[column] = name
    clash = [c for c in frame.columns if c in rename.values() and c not in rename]
    tidy = frame.drop(columns=clash).rename(columns=rename)
    for name in ("n_params", "tokens", "flops", "loss"):
        if name in tidy:
            tidy[name] = numeric(tidy[name], name, described(source))
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


def numeric(column: pd.Series, name: str, where: str) -> pd.Series:
    """The column as floats. Raises UserError with the first value that is no number."""
    values = pd.to_numeric(column, errors="coerce").astype(float)
    bad = values.isna() & column.notna()
    if bad.any():
        raise UserError(f"{where}: {name} is {column[bad].iloc[0]!r} in row "
                        f"{column[bad].index[0]}; it should be a number")
    return values


def usable(runs: pd.DataFrame, needs: tuple[str, ...], allow_mixed: bool = False,
           same: tuple[str, ...] = SAME) -> tuple[pd.DataFrame, list[str]]:
    """Rows that a law can be fitted to, and a line for each kind of row left out.

    needs: columns the form reads, besides run and loss; same: as in check_mixed. Raises UserError
    for an empty table, a column that is not there, no row with a loss, and mixed corpora,
    tokenizers or validation sets."""
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
    values = pd.DataFrame({c: numeric(runs[c], c, "the table") for c in ("loss", *needs)})
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
    keep = (reasons == "").to_numpy()
    counts = reasons[~keep].value_counts()
    notes = [f"{n} of {len(runs)} rows left out: {why}" for why, n in counts.items()]
    if not keep.any():
        raise UserError("no usable run: " + "; ".join(notes))
    kept = runs.reset_index(drop=True)[keep].assign(**values[keep]).reset_index(drop=True)
    return kept, notes + check_mixed(kept, allow_mixed, same)


def check_mixed(runs: pd.DataFrame, allow_mixed: bool, same: tuple[str, ...] = SAME) -> list[str]:
    """Losses per token of two corpora, tokenizers or validation sets are two quantities. same:
    columns that should hold one value (bits per byte compare across tokenizers). Raises UserError
    unless allow_mixed; then a warning."""
    lines = []
    for column in same:
        kinds = runs[column].dropna().astype(str).unique() if column in runs else []
        if len(kinds) > 1:
            lines.append((f"{len(kinds)} kinds of {column} in one fit "
                          f"({', '.join(sorted(kinds)[:4])}): losses per token are not comparable",
                          f"fit one at a time (runs[runs.{column} == ...])"))
    if "val_sha256" in runs:
        by = "tokenizer" if "tokenizer" in runs else (lambda _: 0)
        if runs.groupby(by, dropna=False)["val_sha256"].nunique().max() > 1:
            lines.append(("several validation sets (val_sha256) under one tokenizer: their losses "
                          "do not compare", "take one"))
    if lines and not allow_mixed:
        raise UserError(f"{lines[0][0]}; {lines[0][1]} or say allow_mixed=True")
    return [line for line, _ in lines]


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
