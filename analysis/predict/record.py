"""The record of predictions, and what became of them."""
from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd

from slm.errors import UserError
from slm.files import read_rows

NUMBERS = ("n_params", "tokens", "flops", "value", "low", "high", "level", "n_runs", "floor")
COLUMNS = ("identity", "name", "n_params", "tokens", "flops", "value", "low", "high", "level",
           "form", "n_runs", "made", "seen", "fitted", "law", "floor", "outside", "spec")


def append(record: dict[str, Any], path: str | Path) -> bool:
    """Add a prediction to a file, in one write; nothing that is there is ever changed. False: the
    same prediction is there already. Raises UserError where the file can't be written."""
    path = Path(path)
    try:
        if any({**old, "made": None} == {**record, "made": None} for old in read_rows(path)):
            return False
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":  # a line cut short must not spoil this
                line = b"\n" + line
            os.write(fd, line)
        finally:
            os.close(fd)
    except OSError as e:
        raise UserError(f"{path}: can't be written ({e.strerror}); give --out FILE") from None
    return True


def read_predictions(path: str | Path) -> pd.DataFrame:
    """The predictions of a file, a row each, oldest first; seen: status of the predicted run when
    it was made; fitted: identities of the runs fitted. Raises UserError: no such file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; python -m analysis.predict writes one")
    rows = [row for row in read_rows(path) if {"identity", "value", "low", "high"} <= row.keys()]
    table = pd.DataFrame({c: pd.Series([row.get(c) for row in rows],
                                       dtype=float if c in NUMBERS else object) for c in COLUMNS})
    return table.sort_values("made", kind="stable", ignore_index=True)


def outcomes(predictions: pd.DataFrame | str | Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Predictions beside what the runs reached, matched by identity, a row per prediction.

    Further columns: status and loss of the run (NaN until it has finished); error = loss / value
    - 1; inside: whether low <= loss <= high (None: no loss yet); honest: made before the run was
    begun and without it; note: why not, or what else to know; counts: the first honest one of its
    run. Raises UserError where the runs have no identities."""
    table = predictions if isinstance(predictions, pd.DataFrame) else read_predictions(predictions)
    if "identity" not in runs:
        raise UserError("the runs have no column identity, by which predictions are matched; "
                        "load_runs gives it")
    table = table.sort_values("made", kind="stable", ignore_index=True)
    best_first = runs.sort_values("status", key=lambda s: s != "finished", kind="stable")
    reached = {row["identity"]: row for row in best_first[::-1].to_dict("records")}
    further: list[dict[str, Any]] = []
    taken = set()
    for row in table.to_dict("records"):
        run = reached.get(row["identity"], {})
        loss = run["loss"] if run.get("status") == "finished" else math.nan
        fitted = row["identity"] in (row["fitted"] or [])
        honest = not row["seen"] and not fitted
        further.append({
            "status": run.get("status"), "loss": loss, "error": loss / row["value"] - 1,
            "inside": None if math.isnan(loss) else row["low"] <= loss <= row["high"],
            "honest": honest, "note": note(row, run, fitted),
            "counts": honest and row["identity"] not in taken})
        taken |= {row["identity"]} if honest else set()
    kinds = {"status": object, "loss": float, "error": float, "inside": object, "honest": bool,
             "note": object, "counts": bool}
    more = pd.DataFrame({c: pd.Series([x[c] for x in further], dtype=kind)
                         for c, kind in kinds.items()})
    return pd.concat([table, more], axis=1)


def note(row: dict[str, Any], run: dict[str, Any], fitted: bool) -> str:
    if fitted:
        return "made with this run among those fitted"
    if row["seen"]:
        return f"made when the run had {'finished' if row['seen'] == 'finished' else 'begun'}"
    if run.get("status") == "finished" and run["tokens"] < 0.99 * row["tokens"]:
        return f"the run ended early, at {run['tokens'] / row['tokens']:.0%} of its tokens"
    return ""
