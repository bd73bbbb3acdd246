"""What a run will reach, said before it is trained.

    python -m analysis.predict runs/ --spec experiments/x.yaml --model.n_layer=6

Fits a law to the runs, reads N, D and C of the planned run off its spec, and appends the prediction
to predictions.jsonl in the folder of the runs. Predictions are only ever appended: of several for
one run the first one made before it was trained counts (`outcomes`). Exit codes: 0 done, 2 bad
input.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.predict.record import append, outcomes, read_predictions
from analysis.table import SAME, SET, listed
from slm.errors import UserError

__all__ = ["Forecast", "outcomes", "predict_spec", "read_predictions"]

FILE = "predictions.jsonl"
DATA = (*SAME, *SET)                                # losses compare only where they agree
AXES = {"n_params": "N", "tokens": "D", "flops": "C"}


@dataclass(repr=False)
class Forecast:
    """A prediction. value, low, high: nats/token, low..high holds a new run with probability
    `level`; outside: column -> planned value over the largest fitted (> 1) or over the smallest
    (< 1), for those outside of what was fitted; seen: status of this very run when the prediction
    was made ('' where it had not begun); outcome: its loss, if it has finished."""
    identity: str
    name: str
    spec: dict
    n_params: float
    tokens: float
    flops: float
    value: float
    low: float
    high: float
    level: float
    law: Any                         # analysis.scaling.Law
    floor: float | None = None
    seen: str = ""
    outcome: float | None = None
    outside: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """As a line of predictions.jsonl; without paths of this machine."""
        from slm.files import plain
        law, runs = self.law, self.law.runs
        fitted = runs["identity"].dropna().tolist() if "identity" in runs else []
        names = ("identity", "name", "n_params", "tokens", "flops", "value", "low", "high", "level",
                 "floor", "seen", "outside")
        spec = {k: v for k, v in self.spec.items() if k not in ("track", "device")}
        return plain({k: getattr(self, k) for k in names} | {
            "form": law.form.name, "law": law.params, "n_runs": int(runs["run"].nunique()),
            "fitted": sorted(set(fitted)), "spec": spec,
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds")})

    def __repr__(self) -> str:
        return (f"Forecast of {self.name}: {self.value:.4f} [{self.low:.4f}, {self.high:.4f}] "
                f"nats/token, {self.level:.0%} interval (print tells all)")

    def __str__(self) -> str:
        planned = ", ".join(f"{label} {getattr(self, c):.3g}" for c, label in AXES.items())
        far = [f"{AXES[c]} {x:.3g}x the largest" if x > 1 else f"{AXES[c]} {x:.3g}x the smallest"
               for c, x in self.outside.items()]
        n_runs = self.law.runs["run"].nunique()
        lines = [f"{self.name}: {planned}",
                 f"predicted loss {self.value:.4f} nats/token, {self.level:.0%} interval "
                 f"[{self.low:.4f}, {self.high:.4f}]",
                 f"by {self.law.form.equation}, fitted to {n_runs} runs: " +
                 ", ".join(f"{k} {v:.4g}" for k, v in self.law.params.items()),
                 "beside the fitted runs: " + (", ".join(far) or "inside their range")]
        return "\n".join(lines + self.notes + self.law.notes
                         + [f"warning: {w}" for w in self.law.warnings])


def predict_spec(runs: pd.DataFrame, spec_path: str | Path, overrides: Any = None, *,
                 form: str = "chinchilla", floor: float | str | None = None, level: float = 0.95,
                 allow_mixed: bool = False, bootstrap: int = 2000) -> Forecast:
    """What the run of a spec will reach, by a law fitted to the finished runs (this very run, if it
    is among them, left out).

    runs: the table of load_runs; overrides: dotted keys, or slm.spec's layer of the command line;
    form, floor, level, bootstrap: as in analysis.fit_law. The horizon is taken to be reached.
    Raises UserError: a spec that can't be trained, runs of other data (unless allow_mixed), a table
    that can't be fitted."""
    from analysis.scaling import fit_law
    from slm.plan import make_plan
    from slm.prepare import find_prepared
    from slm.spec import as_dict, identity, load_spec, run_folder
    from slm.tokenizer import nominal_vocab
    spec = load_spec([spec_path], overrides)
    meta = find_prepared(spec.data)
    vocab = meta["vocab_size"] if meta else nominal_vocab(spec.data.tokenizer)
    plan = make_plan(spec, vocab, meta["train"]["tokens"] if meta else None)
    key, folder = identity(spec), run_folder(spec)
    own = runs["identity"] == key if "identity" in runs else pd.Series(False, index=runs.index)
    others = runs[~own].reset_index(drop=True)
    others.attrs = runs.attrs
    finished = others[others["status"] == "finished"] if "status" in others else others
    notes = check_data(finished, data_of(spec, meta), allow_mixed)
    law = fit_law(others, form, floor=floor, level=level, allow_mixed=allow_mixed,
                  bootstrap=bootstrap)
    planned = {"n_params": float(plan.params["matmul"]), "tokens": float(plan.tokens),
               "flops": float(plan.flops)}
    at_floor = shared_floor(law)
    unique = meta["train"]["tokens"] if meta else shared(law.runs, "unique_tokens")
    found = law.predict(**planned, unique_tokens=unique, floor=at_floor, level=level)
    seen, outcome = state_of(runs[own], folder)
    return Forecast(key, folder.name, as_dict(spec), **planned, value=found.value, low=found.low,
                    high=found.high, level=level, law=law, floor=at_floor, seen=seen,
                    outcome=outcome, outside=outside(law, planned), notes=notes)


def data_of(spec: Any, meta: dict | None) -> dict[str, str | float | None]:
    """What of a planned run's data must agree with that of the runs; None: not known yet."""
    known: dict[str, Any] = {"eval_mode": spec.data.eval_mode}
    if meta:
        return known | {"corpus": meta["corpus"], "tokenizer": meta["tokenizer"],
                        "val_sha256": meta["val"]["sha256"],
                        "eval_tokens": float(min(spec.data.eval_tokens, meta["val"]["tokens"]))}
    from slm.corpora import open_corpus
    kind, _, rest = spec.data.tokenizer.partition(":")
    name = f"{kind}:{Path(rest).name}" if rest else kind           # sentencepiece's is a path
    return known | {"corpus": open_corpus(spec.data).name, "tokenizer": name, **dict.fromkeys(SET)}


def check_data(runs: pd.DataFrame, data: dict[str, str | float | None],
               allow_mixed: bool) -> list[str]:
    """Raises UserError where the runs' losses are of other data than the planned run's; with
    allow_mixed, and where it can't be told, a note."""
    notes = []
    for column in [c for c in DATA if c in runs]:
        kinds = runs[column].dropna()
        if kinds.empty:
            continue
        if data[column] is None:
            notes.append("the spec's data are not prepared yet: not checked that its validation "
                         "text is that of the runs (python -m slm.prepare)")
        elif set(kinds) != {data[column]}:
            line = (f"{column}: {listed(pd.Series([data[column]]))} in the spec, {listed(kinds)} "
                    "in the runs: losses per token are not comparable")
            if not allow_mixed:
                raise UserError(line + "; choose runs with --where, or say --allow-mixed")
            notes.append(f"warning: {line}")
    return list(dict.fromkeys(notes))


def shared(runs: pd.DataFrame, column: str) -> float | None:
    """The one value of a column, or None where there are several or none."""
    values = runs[column].dropna().unique() if column in runs else []
    return float(values[0]) if len(values) == 1 else None


def shared_floor(law: Any) -> float | None:
    """The known floor that all fitted runs share (up to rounding): the planned run's too."""
    known = law.floor
    if known is None or known.max() - known.min() > 1e-6 * known.max():
        return None
    return float(known.mean())


def outside(law: Any, planned: dict[str, float]) -> dict[str, float]:
    """How far a planned run lies outside of the fitted ones, by column; see Forecast."""
    out = {}
    for column, value in planned.items():
        seen = law.runs[column]
        if value > seen.max() * (1 + 1e-9):
            out[column] = float(value / seen.max())
        elif value < seen.min() * (1 - 1e-9):
            out[column] = float(value / seen.min())
    return out


def state_of(own: pd.DataFrame, folder: Path) -> tuple[str, float | None]:
    """(status, loss if finished) of the planned run itself, among the runs or in the folder that
    its spec names; '' where it has not begun."""
    from slm.record import Record
    rows = own.sort_values("status", key=lambda s: s != "finished").to_dict("records")
    state = rows[0] if rows else {}
    if not state and (found := Record.peek(folder)):
        state = {"status": found["status"], "loss": found.get("val_loss")}
    status = state.get("status") or ""
    loss = state.get("loss")
    return status, float(loss) if status == "finished" and loss == loss and loss else None


def verdict(forecast: Forecast, path: Path) -> str:
    """What was said in advance of a finished run, and how it came."""
    lines = [f"{forecast.name} is done: loss {forecast.outcome:.4f} nats/token"]
    own = pd.DataFrame([{"identity": forecast.identity, "status": "finished",
                         "loss": forecast.outcome, "tokens": forecast.tokens}])
    told = outcomes(path, own).to_dict("records") if path.is_file() else []
    first = [row for row in told if row["counts"] and row["identity"] == forecast.identity]
    for row in first:
        lines += [f"predicted {row['made']}, before it was trained: {row['value']:.4f} "
                  f"[{row['low']:.4f}, {row['high']:.4f}]: "
                  f"{'inside' if row['inside'] else 'outside'}, off by {row['error']:+.2%}",
                  "what the other runs now say of it (hindsight, not recorded):"]
    if not first:
        lines.append(f"nothing was predicted in advance ({path}); what follows is hindsight, and is"
                     " not recorded")
    return "\n".join(lines)


# -- the command -------------------------------------------------------------------------------

def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m analysis.predict", description=__doc__,
                                allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", help="folders of runs, or wandb:entity/project")
    p.add_argument("--spec", required=True, help="of the planned run; any --section.key=value is "
                   "given to it")
    p.add_argument("--form", default="chinchilla", help="of the law (default chinchilla)")
    p.add_argument("--floor", help="a known floor in nats/token, or the column that holds it")
    p.add_argument("--level", type=float, default=0.95, help="of the interval (default 0.95)")
    p.add_argument("--where", help="fit only these runs, as in \"lr < 0.01 and seed == 0\"")
    p.add_argument("--best", action="store_true",
                   help="of runs that share N and D fit those with the best learning rate")
    p.add_argument("--allow-mixed", action="store_true", help="fit runs of other data too")
    p.add_argument("--bootstrap", type=int, default=2000, help="resamples (default 2000)")
    p.add_argument("--cache", help="folder for what is read from W&B")
    p.add_argument("--out", help=f"default: {FILE} in the folder of the runs")
    return p


def output(sources: Sequence[str], runs: pd.DataFrame) -> Path:
    """predictions.jsonl in the first folder of runs, here where all of them are in W&B."""
    local = [Path(s).expanduser() for s in sources if not s.startswith("wandb:")]
    if not local:
        return Path(FILE)
    single = local[0].resolve() in {Path(w).expanduser().resolve() for w in runs["where"]}
    return (local[0].resolve().parent if single else local[0]) / FILE


def main(args: list[str]) -> int:
    """The command; see the module's docstring."""
    options, rest = parser().parse_known_args(args)
    try:
        forecast, path = run(options, rest)
        told = verdict(forecast, path) if forecast.outcome is not None else ""
        if forecast.outcome is None:      # before anything is printed: a closed pipe loses nothing
            new = append(forecast.to_record(), path)
            told = f"recorded in {path}" if new else f"the same is recorded in {path} already"
            if forecast.seen:
                told += f"; {forecast.name} had begun by then ({forecast.seen})"
        print(forecast)
        print(told)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace, rest: list[str]) -> tuple[Forecast, Path]:
    from analysis.runs import load_runs
    from analysis.table import best_finished, floor_of
    from analysis.where import select
    from slm.spec import parse_arguments
    files, overrides = parse_arguments(rest)
    if files:
        raise UserError(f"{files[0]}: what is this? the planned run's keys are given as "
                        "--section.key=value")
    if options.bootstrap < 20:
        raise UserError(f"--bootstrap={options.bootstrap}: should be 20 or more")
    runs = load_runs(*options.runs, cache=options.cache)
    path = Path(options.out) if options.out else output(options.runs, runs)
    runs = select(runs, options.where)
    if options.best:
        runs, line = best_finished(runs)
        runs.attrs = {**runs.attrs, "notes": [*runs.attrs["notes"], line]}
    return predict_spec(runs, options.spec, overrides, form=options.form, level=options.level,
                        floor=floor_of(options.floor, runs), allow_mixed=options.allow_mixed,
                        bootstrap=options.bootstrap), path

