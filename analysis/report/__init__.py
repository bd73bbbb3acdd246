"""One page about a set of runs: table, curves, law, frontier, predictions, samples.

    python -m analysis.report runs/ --out report.html
    python -m analysis.report wandb:entity/project --where "n_layer >= 2 and lr < 0.01"
    python -m analysis.report points.csv --column n_params="Model Size" --column flops="FLOP"

A source is a folder of runs, wandb:entity/project, or a table (.csv, .parquet; columns N, D, C,
loss, run, or as --column says). Exit codes: 0 done, 2 bad input.
"""
from __future__ import annotations

import argparse
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from slm.errors import UserError

PREDICTIONS = "predictions.jsonl"
SHORT = 12              # letters of a commit
LARGEST = 0.2           # share of the runs that is predicted from the rest where nothing else is
OF_RUNS = {"slm": "slm_version", "commit": "git_sha", "torch": "torch_version", "hardware":
           "hardware", "precision": "precision", "validation tokens, sha256": "val_sha256"}
PACKAGES = ("numpy", "scipy", "pandas", "matplotlib", "wandb", "torch")


@dataclass
class Study:
    """The runs of a report and what is made of them, each thing once and on demand; what these runs
    can't give raises UserError. hold_out: "predicted" (in advance; not fitted), "none", or a
    condition as in --where; predictions: a file, or None."""
    runs: pd.DataFrame
    form: str = "chinchilla"
    floor: float | str | None = None
    best: bool = False
    hold_out: str = "predicted"
    predictions: Path | None = None
    bootstrap: int = 2000
    laws: dict = field(default_factory=dict)

    @cached_property
    def compared_by(self) -> str:
        """loss, or bits_per_byte where tokenizers differ."""
        from analysis.comparison import choose_column
        return choose_column(self.runs)[0]

    @cached_property
    def history(self) -> pd.DataFrame:
        from analysis.runs import load_history
        return load_history(self.runs)

    @cached_property
    def samples(self) -> pd.DataFrame:
        from analysis.runs import load_samples
        found = load_samples(self.runs)
        if found.empty:
            raise UserError("no samples: these runs wrote none (sample.prompts in their spec)")
        return found

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        from analysis.predict import outcomes, read_predictions
        if self.predictions is None:
            raise UserError("no predictions: python -m analysis.predict makes one before a run is "
                            "trained; --predictions says where they are")
        return outcomes(read_predictions(self.predictions), self.runs)

    @cached_property
    def held(self) -> pd.DataFrame:
        """Runs that are shown and not fitted."""
        if self.hold_out == "none":
            return self.runs.iloc[:0]
        if self.hold_out != "predicted":
            from analysis.where import select
            return select(self.runs, self.hold_out)
        try:
            told = self.outcomes
        except UserError:
            return self.runs.iloc[:0]
        return self.runs[self.runs["identity"].isin(told[told["counts"].astype(bool)]["identity"])]

    @cached_property
    def extrapolated(self) -> tuple[pd.DataFrame, str]:
        """Runs to compare with a law that has not seen them, and which they are, in words."""
        if self.held["loss"].notna().any():
            how = "predicted in advance" if self.hold_out == "predicted" else self.hold_out
            return self.held, f"Runs held out of the law ({how}) against the law of the others."
        from analysis.table import usable
        kept, _ = usable(self.runs, ("flops",))
        if kept["run"].nunique() < 3:
            raise UserError("too few runs to leave the largest out and predict it from the others")
        largest = kept.drop_duplicates("run").nlargest(max(1, round(LARGEST * kept["run"].nunique(
            ))), "flops")["run"]
        return self.runs[self.runs["run"].isin(largest)], (
            "No run was held out; as a check in hindsight, the runs with most compute "
            f"({len(largest)}) are left out here and predicted from the others.")

    def law_without(self, held: pd.DataFrame):
        """The law of all runs but these."""
        from analysis.scaling import fit_law
        from analysis.table import best_finished
        key = tuple(held["run"])
        if key not in self.laws:
            rest = self.runs[~self.runs["run"].isin(held["run"])]
            notes = list(self.runs.attrs.get("notes", []))
            if len(held):
                notes.append(f"{held['run'].nunique()} runs held out of the fit ({self.hold_out})"
                             if held is self.held else
                             f"{held['run'].nunique()} runs with most compute left out of this fit")
            if self.best:
                rest, line = best_finished(rest)
                notes.append(line)
            rest = rest.reset_index(drop=True)
            rest.attrs = {**self.runs.attrs, "notes": notes}
            self.laws[key] = fit_law(rest, self.form, floor=self.floor, bootstrap=self.bootstrap)
        return self.laws[key]

    @property
    def law(self):
        return self.law_without(self.held)

    @cached_property
    def frontier(self):
        from analysis.scaling.optimal import compute_optimal
        return compute_optimal(self.law, draws=self.resamples[1])

    @property
    def resamples(self) -> tuple[int, int]:
        """How many the conventions' intervals come from, and how many the optimum's."""
        return min(self.bootstrap, 500), min(self.bootstrap, 1000)

    @cached_property
    def conventions(self) -> pd.DataFrame:
        from analysis.scaling.conventions import by_convention
        law = self.law
        table = by_convention(law.runs, floor=self.floor, bootstrap=self.resamples[0])
        table.attrs["n_runs"] = int(law.runs["run"].nunique())
        return table

    @cached_property
    def comparison(self):
        """Settings at equal tokens, or all of them where no two share their tokens."""
        from analysis.comparison import compare
        runs = self.runs
        shapes = runs.groupby("tokens")["n_params"].nunique()
        return compare(runs, within=("tokens",) if (shapes > 1).any() else ())


def build_report(study: Study, title: str = "Scaling report", command: str = "",
                 say=lambda line: None) -> str:
    """The page as HTML; sections that these runs can't give say why in one line. command: what
    made the page, shown at its end; say: gets a line for each section begun."""
    from analysis.report import parts
    from analysis.report.page import absent, page, tag
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    sources = ", ".join(study.runs.attrs.get("sources", []))
    wanted = [("summary", "Summary", parts.summary), ("runs", "Runs", parts.run_table),
              ("curves", "Loss curves", parts.curves),
              ("losses", "Loss against size, tokens, compute and time", parts.losses),
              ("law", "The law", parts.law), ("optimum", "Compute-optimal", parts.optimum),
              ("conventions", "The same runs, counted otherwise", parts.conventions),
              ("settings", "Settings", parts.settings),
              ("predictions", "Predictions and outcomes", parts.predictions),
              ("samples", "Samples", parts.samples)]
    sections = []
    for anchor, name, make in wanted:
        say(name)
        try:
            sections.append((anchor, name, make(study)))
        except UserError as e:
            sections.append((anchor, name, absent(e)))
    sections.append(("made", "How this page was made", provenance(study, command, made)))
    return page(title, sections, tag("p", f"{made}; {sources}" if sources else made))


def provenance(study: Study, command: str, made: str):
    """The command, the filter, the notes on the data, the versions here and of the runs."""
    from analysis.report.page import bullets, join, table, tag
    import slm
    from slm.facts import git_commit
    runs = study.runs
    commit, dirty = git_commit(Path(__file__).resolve().parent.parent.parent)
    here = {"slm": slm.__version__, "commit": f"{commit[:SHORT]}{' with changes' if dirty else ''}"
            if commit else "", "python": platform.python_version(),
            **{name: package(name) for name in PACKAGES}}
    theirs = {}
    for label, column in OF_RUNS.items():
        width = SHORT if label == "commit" else 40
        kinds = list(dict.fromkeys(str(v)[:width] for v in runs[column].dropna())) \
            if column in runs else []
        theirs[label] = ", ".join(kinds[:5]) + (" …" if len(kinds) > 5 else "")
    rows = [[k, here.get(k, ""), theirs.get(k, "")] for k in {**here, **theirs}
            if here.get(k) or theirs.get(k)]
    filters = [f"where: {runs.attrs.get('filter') or 'all runs'}", f"held out of fits: "
               f"{study.hold_out} ({study.held['run'].nunique()} runs)",
               "fitted: finished runs with a finite loss" + (", best learning rate of each (N, D)"
                                                             if study.best else ""),
               f"form {study.form}, floor {study.floor if study.floor is not None else 'fitted'}, "
               f"{study.bootstrap:,} resamples over runs, seed 0"]
    return join([tag("pre", command) if command else "", bullets(filters),
                 table(["", "this page", "the runs"], rows), tag("p", made, class_="soft")])


def package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


# -- the command -------------------------------------------------------------------------------

def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m analysis.report", description=__doc__,
                                allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sources", nargs="+", metavar="SOURCE", help="folders of runs, "
                   "wandb:entity/project, or one table")
    p.add_argument("--out", default="report.html", help="default: report.html")
    p.add_argument("--title", default="Scaling report")
    p.add_argument("--form", default="chinchilla", help="of the law (default chinchilla)")
    p.add_argument("--floor", help="a known floor in nats/token, or the column that holds it")
    p.add_argument("--where", help="only these runs, as in \"n_layer >= 2 and lr < 0.01\"")
    p.add_argument("--hold-out", default="predicted", metavar="CONDITION", help="runs that are "
                   "shown and not fitted: a condition, none, or (default) those predicted in "
                   "advance")
    p.add_argument("--best", action="store_true",
                   help="of runs that share N and D fit those with the best learning rate")
    p.add_argument("--predictions", help=f"default: {PREDICTIONS} in a folder of runs, if it is "
                   "there")
    p.add_argument("--column", action="append", default=[], metavar="NAME=COLUMN",
                   help="of a table: its name for n_params, tokens, flops, loss, run, ...")
    p.add_argument("--bootstrap", type=int, default=2000, help="resamples (default 2000)")
    p.add_argument("--cache", help="folder for what is read from W&B")
    p.add_argument("--wandb", metavar="ENTITY/PROJECT", help="log the page there as an artifact")
    return p


def load(options: argparse.Namespace) -> pd.DataFrame:
    """The runs of the sources, filtered. Raises UserError."""
    from analysis.where import select
    tables = [s for s in options.sources if s.endswith((".csv", ".parquet"))]
    if tables and len(options.sources) > 1:
        raise UserError(f"{tables[0]}: a table is a source of its own: give it alone")
    if options.column and not tables:
        raise UserError("--column: only for a table; runs have the columns of load_runs")
    if tables:
        from analysis.table import REQUIRED, load_table, read
        named = dict(c.partition("=")[::2] for c in options.column)
        if not all(named.values()):
            raise UserError("--column: should be NAME=COLUMN, as in n_params=\"Model Size\"")
        own = {c: c for c in REQUIRED if c in read(tables[0])}     # it has our names already
        runs = load_table(tables[0], **{**own, **named})
        runs.attrs["sources"] = tables
    else:
        from analysis.runs import load_runs
        runs = load_runs(*options.sources, cache=options.cache)
    return select(runs, options.where)


def writable(out: Path) -> Path:
    """The path, known before the work begins to take a file. Raises UserError."""
    if not out.parent.is_dir():
        raise UserError(f"{out}: no such folder {out.parent}")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; should be a file, as in {out / 'report.html'}")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as e:
        raise UserError(f"{out}: can't be written ({e.strerror})") from None
    return out


def find_predictions(options: argparse.Namespace) -> Path | None:
    if options.predictions:
        path = Path(options.predictions)
        if not path.is_file():
            raise UserError(f"{path}: no such file; python -m analysis.predict writes one")
        return path
    paths = [Path(s).expanduser() / PREDICTIONS for s in options.sources]
    return next((p for p in paths if p.is_file()), None)


def main(args: Sequence[str]) -> int:
    """The command; see the module's docstring."""
    from analysis.scaling.forms import get_form
    from analysis.table import floor_of
    from slm.files import private, shown, write_whole
    from slm.screen import say
    options = parser().parse_args(list(args))
    try:
        if options.bootstrap < 20:
            raise UserError(f"--bootstrap={options.bootstrap}: should be 20 or more")
        out = writable(Path(options.out))
        get_form(options.form)
        runs = load(options)
        study = Study(runs, options.form, floor_of(options.floor, runs), options.best,
                      options.hold_out, find_predictions(options), options.bootstrap)
        study.held      # a faulty condition is an error now, not a line in every section
        say(f"{runs['run'].nunique()} runs")
        command = private("python -m analysis.report " + shlex.join(args))
        text = build_report(study, options.title, command, lambda name: say(f"  {name}"))
        try:
            write_whole(out, text)
        except OSError as e:
            raise UserError(f"{out}: can't be written ({e.strerror})") from None
        say(f"{shown(out)}: {len(text.encode()) / 1e6:.1f} MB")
        if options.wandb:
            say(log_to_wandb(out, options.wandb, options.title))
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


def log_to_wandb(path: Path, place: str, title: str) -> str:
    """Log the page as an artifact of type "report"; returns a line that says where. Raises
    UserError: no key, no server, no such entity."""
    from analysis.runs.hosted import connect, errors
    entity, _, project = place.partition("/")
    if not entity or not project or "/" in project:
        raise UserError(f"--wandb {place}: should be ENTITY/PROJECT")
    connect()
    import wandb
    with errors(f"W&B, {place}"):
        settings = wandb.Settings(silent=True, init_timeout=20, x_disable_stats=True,
                                  x_save_requirements=False, disable_git=True, console="off")
        with wandb.init(entity=entity, project=project, job_type="report", name=title,
                        settings=settings) as run:
            artifact = wandb.Artifact("report", type="report", metadata={"title": title})
            artifact.add_file(str(path), name=path.name)
            run.log_artifact(artifact)          # leaving the run waits until it is sent
    return f"logged to {place} as artifact report"

