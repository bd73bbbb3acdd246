"""What was found of runs, wherever it lay, as the one table of runs: the columns and their types.

Numbers are float64 (NaN where missing, also for whole numbers: a column's type must not depend on
what happens to be missing), everything else is object (None where missing)."""
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from slm.errors import UserError

UNREADABLE = "unreadable"

# Column -> its name among the results in summary.json (slm/record.py).
RESULTS = {
    "tokens": "tokens", "flops": "flops", "loss": "val_loss", "loss_se": "val_loss_se",
    "floor": "val_floor", "bits_per_byte": "val_bits_per_byte", "best_loss": "best_val_loss",
    "train_loss": "train_loss", "time_sec": "time_sec", "tokens_per_sec": "tokens_per_sec",
    "steps": "steps_done"}

# Column -> (its place among the facts (slm/facts.py), its key in the spec: for runs without facts).
FACTS = {
    "n_params": ("params.matmul", None),
    "horizon_tokens": ("horizon.tokens", "train.tokens"),
    "unique_tokens": ("horizon.unique_tokens", None),
    "n_layer": ("shape.n_layer", "model.n_layer"), "n_head": ("shape.n_head", "model.n_head"),
    "n_embd": ("shape.n_embd", "model.n_embd"), "head_size": ("shape.head_size", None),
    "d_ff": ("shape.d_ff", "model.d_ff"), "block_size": ("shape.block_size", "model.block_size"),
    "vocab_size": ("shape.vocab_size", None), "tied": ("shape.tied", "model.tied"),
    "preset": ("shape.preset", "model.preset"),
    **{name: (f"shape.{name}", f"model.{name}") for name in
       ("norm", "position", "activation", "qk_norm", "bias", "zero_init")},
    "parametrization": ("init.parametrization", "model.parametrization"),
    "dropout": ("shape.dropout", "model.dropout"),
    "optimizer": ("optim.name", "optim.name"), "lr": ("optim.lr", "optim.lr"),
    "muon_lr": ("optim.muon_lr", "optim.muon_lr"),
    "schedule": ("optim.schedule", "optim.schedule"),
    "warmup_tokens": ("optim.warmup_tokens", "optim.warmup_tokens"),
    "batch_tokens": ("batch.tokens", "train.batch_tokens"),
    "weight_decay": ("optim.weight_decay", "optim.weight_decay"),
    "corpus": ("data.corpus", "data.corpus"), "tokenizer": ("data.tokenizer", "data.tokenizer"),
    "eval_mode": ("data.eval_mode", "data.eval_mode"),
    "eval_tokens": ("data.eval_tokens", "data.eval_tokens"),
    "val_sha256": ("data.val.sha256", None),
    "seed": ("seeds.train", "train.seed"), "data_seed": ("seeds.data", "data.seed"),
    "params_total": ("params.total", None),
    "params_non_embedding": ("params.non_embedding", None),
    "params_blocks": ("params.blocks", None),
    "hardware": ("machine.hardware", None), "precision": ("machine.precision", None),
    "git_sha": ("versions.git_sha", None), "slm_version": ("versions.slm", None),
    "torch_version": ("versions.torch", None)}

OWN = ("run", "status", "reason", "identity", "group", "where")      # fields of Found
COLUMNS = tuple("""
    run n_params tokens flops loss loss_se floor status reason
    bits_per_byte best_loss train_loss time_sec tokens_per_sec steps
    horizon_tokens unique_tokens epochs
    n_layer n_head n_embd head_size d_ff block_size vocab_size tied preset parametrization dropout
    norm position activation qk_norm bias zero_init
    optimizer lr muon_lr schedule warmup_tokens batch_tokens weight_decay
    corpus tokenizer eval_mode eval_tokens val_sha256 seed data_seed
    params_total params_non_embedding params_blocks
    identity group hardware precision git_sha slm_version torch_version where""".split())
WORDS = {*OWN, "tied", "preset", "norm", "position", "activation", "qk_norm", "bias", "zero_init",
         "parametrization", "optimizer", "schedule", "corpus", "tokenizer",
         "eval_mode", "val_sha256", "hardware", "precision", "git_sha", "slm_version",
         "torch_version"}


@dataclass
class Found:
    """A run as it was found. run: its name; where: what load_history reads it from; facts: the
    sections of slm/facts.py; results: by their names in summary.json; spec: gives the resolved
    spec as nested dicts, {} where it can't be read."""
    run: str
    where: str
    status: str
    reason: str
    facts: dict[str, Any]
    results: dict[str, Any]
    spec: Callable[[], dict]
    identity: str | None = None
    group: str | None = None
    wandb_id: str | None = None


def get(values: Any, key: str) -> Any:
    """The value at a dotted key of nested dicts, or None."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def number(value: Any) -> float:
    """NaN for what is no finite number. (W&B writes NaN as text.)"""
    if isinstance(value, bool):
        return math.nan
    try:
        value = float(value)
    except (TypeError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def word(value: Any) -> str | bool | None:
    return value if value is None or isinstance(value, (str, bool)) else str(value)


def identity_in(name: str) -> str | None:
    """The identity at the end of a run folder's name."""
    match = re.search(r"-([0-9a-f]{8})$", name)
    return match.group(1) if match else None


def without_rules(spec: dict) -> dict:
    """A resolved spec without the values that only start a rule (slm/rules.py): what a run without
    facts would have been trained with is not known from them."""
    train, optim = dict(spec.get("train") or {}), dict(spec.get("optim") or {})
    if train.get("batch_rule"):
        train.pop("batch_tokens", None)
    for rule, keys in {"lr_rule": ("lr", "muon_lr"), "decay_rule": ("weight_decay",)}.items():
        if optim.get(rule):
            optim = {k: v for k, v in optim.items() if k not in keys}
    return {**spec, "train": train, "optim": optim}


def row_of(found: Found) -> dict[str, Any]:
    """One row of the table, without keys of the spec."""
    row: dict[str, Any] = {name: getattr(found, name) for name in OWN}
    row |= {column: found.results.get(name) for column, name in RESULTS.items()}
    spec = {} if found.facts else without_rules(found.spec())
    for column, (place, key) in FACTS.items():
        row[column] = get(spec, key) if spec and key else get(found.facts, place)
    row = {c: word(v) if c in WORDS else number(v) for c, v in row.items()}
    # no more can be counted than there are
    row["eval_tokens"] = min(row["eval_tokens"], number(get(found.facts, "data.val.tokens")),
                             key=lambda v: (math.isnan(v), v))
    row["epochs"] = row["tokens"] / row["unique_tokens"] if row["unique_tokens"] else math.nan
    if row["status"] == "crashed" and not row["reason"]:
        row["reason"] = "its process is gone" + (
            f", last seen at step {row['steps']:.0f}" if row["steps"] >= 0 else "")
    return row


def make_table(found: list[Found], spec_keys: Sequence[str] = ()) -> pd.DataFrame:
    """The table of runs, with further columns for dotted keys of the spec. Raises UserError for a
    key that no spec has."""
    rows = [row_of(f) for f in found]
    columns = {c: pd.Series([row[c] for row in rows], dtype=object if c in WORDS else float)
               for c in COLUMNS}
    if spec_keys:
        specs = [f.spec() for f in found]
        columns |= {key: spec_column([get(spec, key) for spec in specs], key) for key in spec_keys}
    return pd.DataFrame(columns)


def spec_column(values: list, key: str) -> pd.Series:
    """Numbers where all values are numbers; lists become tuples, which can be grouped by."""
    given = [v for v in values if v is not None]
    if not given:
        from slm.keys import fields, nearest
        if key not in fields():
            raise UserError(f"spec_keys: no run has a key {key!r}{nearest(key, list(fields()))}")
    if given and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in given):
        return pd.Series([number(v) for v in values], dtype=float)
    return pd.Series([tuple(v) if isinstance(v, list) else v for v in values], dtype=object)


def without_copies(found: list[Found]) -> tuple[list[Found], list[str]]:
    """The same runs without the copies in W&B of those that lie in folders, and notes on them."""
    local = [f for f in found if not f.where.startswith("wandb:")]
    ids = {f.wandb_id for f in local} - {None}
    names = {(f.run, f.identity) for f in local if f.identity}
    kept = [f for f in found if not f.where.startswith("wandb:")
            or not (f.wandb_id in ids or (f.run, f.identity) in names)]
    n = len(found) - len(kept)
    notes = [f"{n} run{'s are' if n > 1 else ' is'} both in a folder and in W&B: taken from the "
             "folder"] if n else []
    return kept, notes


def make_names_unique(found: list[Found]) -> None:
    """A name that repeats gets the W&B run's id, or the folder that it lies in."""
    for more in (lambda f: f"{f.run}-{f.wandb_id}" if f.where.startswith("wandb:") else
                 f"{f.where.rstrip('/').rpartition('/')[0].rpartition('/')[2]}/{f.run}",
                 lambda f: f.where):
        times = Counter(f.run for f in found)
        for f in found:
            if times[f.run] > 1:
                f.run = more(f)


def history_table(rows: list[dict], keys: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows {run, step, metric: value ...} as a table: run, step, tokens, flops, time_sec, then the
    metrics asked for (default: every one that there is). A row with none of them is left out.
    Raises UserError for a metric that is in no row."""
    first = ["run", "step", "tokens", "flops", "time_sec"]
    losses = ["train/loss", "val/loss"]
    if keys is None:
        seen = {name for row in rows for name in row}
        keys = losses + sorted(seen - {*first, *losses})
    keys = list(dict.fromkeys(keys))
    missing = [k for k in keys if k not in losses and not any(k in row for row in rows)]
    if rows and missing:
        there = sorted({name for row in rows for name in row} - {"run", "step"})
        raise UserError(f"no run has a metric {missing[0]!r}; there are {', '.join(there)}")
    rows = [row for row in rows if any(row.get(k) is not None for k in keys)]
    columns = {"run": pd.Series([row["run"] for row in rows], dtype=object),
               "step": pd.Series([row["step"] for row in rows], dtype="int64")}
    for name in [*first[2:], *keys]:
        if name not in columns:
            values = pd.Series([row.get(name) for row in rows], dtype=object)
            values = pd.to_numeric(values, errors="coerce").astype(float)
            columns[name] = values.where(values.abs() < math.inf)
    return pd.DataFrame(columns)
