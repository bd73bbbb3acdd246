"""The runs of a W&B project: the table in one request for each hundred runs; histories (all of
their rows: scan_history, not W&B's sampled history) and samples run by run, kept on disk.

The table is asked for anew each time, since a run may have gone on or been deleted. What is kept of
a run is used for as long as the table shows the same status and number of steps, so that a finished
run is read once; each file is written whole or not at all, and a damaged one is read again.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from analysis.runs.columns import UNREADABLE, Found, identity_in
from slm.errors import UserError
from slm.files import private, write_whole
from slm.record import RESULTS, STATUSES

PREFIX = "wandb:"
PER_PAGE = 100
READERS = 8                   # histories read at a time
ENDED = ("finished", "diverged", "skipped")     # such a run is never gone on with
ALIVE = ("running", "pending")
SPECS: dict[str, dict] = {}   # where -> spec, of runs listed by this process: they came with it
WAIT_SEC, RETRIES = 20.0, 2   # of each request; W&B's own defaults would try for many minutes


# -- asking ------------------------------------------------------------------------------------

def connect() -> Any:
    """A wandb.Api of limited patience. Raises UserError where there is no key or no server."""
    from slm import mirror
    from slm.mirror_child import unreachable
    if not mirror.has_key(mirror.settings()):
        raise UserError("no API key for W&B: run `wandb login`, or set WANDB_API_KEY")
    try:
        import wandb
    except ImportError:
        raise UserError("wandb is not installed: pip install wandb") from None
    settings = wandb.setup().settings
    problem = unreachable(settings.base_url, 5.0)
    if problem:
        raise UserError(f"W&B can't be reached at {settings.base_url} ({private(problem)}; tried "
                        "for 5 s): look at the network and WANDB_BASE_URL, or use local folders")
    wait = settings.x_graphql_timeout_seconds or WAIT_SEC     # WANDB_HTTP_TIMEOUT is the former
    patience = {"x_graphql_retry_max": RETRIES, "x_graphql_timeout_seconds": wait,
                "x_graphql_retry_wait_min_seconds": 1.0, "x_graphql_retry_wait_max_seconds": 4.0,
                "x_file_transfer_retry_max": RETRIES, "x_file_transfer_timeout_seconds": wait}
    before = {name: getattr(settings, name) for name in patience}
    try:
        for name, value in patience.items():
            setattr(settings, name, value if before[name] is None else before[name])
        with errors(f"W&B at {settings.base_url}"):
            return wandb.Api(timeout=round((RETRIES + 1) * wait) + 5)     # it copies the settings
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


@contextlib.contextmanager
def errors(what: str) -> Iterator[None]:
    """Whatever W&B raises (a dozen kinds) as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        text = " ".join(str(e).split()) or type(e).__name__
        if re.search(r"\b40[13]\b|relogin", text):
            text = f"the API key is refused; run `wandb login --relogin` ({text})"
        elif re.search(r"Could not find project|\b404\b", text):
            text = "there is no such project, or the API key's account may not see it"
        elif isinstance(e, TimeoutError) or re.search("[Tt]imeout|timed out|giving up", text):
            text = (f"{RETRIES + 1} tries failed; WANDB_HTTP_TIMEOUT gives each more than "
                    f"{WAIT_SEC:g} s ({text})")
        raise UserError(f"{what}: {private(text)[:300]}") from None


def split(source: str) -> tuple[str, str | None]:
    """'wandb:entity/project' -> ('entity/project', None); with a run's id behind it, that too."""
    parts = source[len(PREFIX):].strip("/").split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise UserError(f"{source}: should be wandb:entity/project")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def listed(api: Any, project: str, ids: list[str] | None = None) -> list[Any]:
    """wandb's Run objects of a project, whole: one request for each PER_PAGE runs."""
    out: list[Any] = []
    with errors(f"wandb:{project}"):
        for some in [None] if ids is None else chunks(ids, PER_PAGE):
            filters = {} if some is None else {"name": {"$in": some}}
            out += api.runs(project, filters=filters, per_page=PER_PAGE, lazy=False)
    return out


def chunks(items: list, size: int) -> list[list]:
    return [items[i:i + size] for i in range(0, len(items), size)]


# -- the table ---------------------------------------------------------------------------------

def find_runs(source: str) -> list[Found]:
    """The runs of 'wandb:entity/project', oldest first. Raises UserError: no key, no network, no
    such project, none in it."""
    project, run_id = split(source)
    runs = listed(connect(), project, None if run_id is None else [run_id])
    if not runs:
        raise UserError(f"{source}: no run in it")
    return [read_run(run) for run in runs]


def read_run(run: Any) -> Found:
    """One run as slm/mirror_child.py sends it; others are kept as unreadable."""
    config, summary, state = dict(run.config), dict(run.summary_metrics), run.state
    facts = config.get("facts") if isinstance(config.get("facts"), dict) else {}
    said = summary.get("status")
    over = state not in ALIVE
    reason = str(summary.get("reason") or "") if over else ""
    if said not in STATUSES and not facts:
        status = UNREADABLE
        reason = (f"not of slm, or ended before it began: W&B calls it {state}, and its config "
                  "holds no facts")
    elif not over:
        status = "running"
    elif said in ENDED or (said in STATUSES and said != "running" and state != "crashed"):
        status = said
    else:                                      # the trainer was killed, or its machine died
        status, reason = "crashed", ""
    last = {name: summary[key] for key, name in RESULTS.items() if key in summary}
    last["steps_done"] = summary.get("_step")
    where = f"{PREFIX}{run.entity}/{run.project}/{run.id}"
    SPECS[where] = spec_of(config)
    recorded = summary if status not in ("running", "crashed") else {}    # else of an earlier life
    return Found(
        run=run.name, where=where, status=status, reason=reason, facts=facts,
        results=last | recorded, spec=lambda: SPECS[where],
        identity=summary.get("identity") or identity_in(run.name),
        group=getattr(run, "group", None), wandb_id=run.id)


def spec_of(config: dict[str, Any]) -> dict[str, Any]:
    """The resolved spec in a W&B config: without the facts, and without the dotted copies of swept
    keys that a sweep's agent adds."""
    return {k: v for k, v in config.items() if k != "facts" and isinstance(v, dict)}


# -- what is read run by run -------------------------------------------------------------------

def read_history(run: Any) -> list[dict[str, Any]]:
    rows = []
    for raw in run.scan_history():
        row = {k: None if v == "NaN" else v for k, v in raw.items()
               if not k.startswith("_") and not isinstance(v, (dict, list))}   # no media
        rows.append({"step": raw["_step"], **row})
    return rows


def read_samples(run: Any) -> list[dict[str, Any]]:
    """The newest table of samples: each holds all texts up to its step."""
    table = run.summary_metrics.get("samples")
    if not isinstance(table, dict) or "path" not in table:
        return []
    with tempfile.TemporaryDirectory(prefix="slm-wandb-") as folder:
        with run.file(table["path"]).download(folder, replace=True) as f:
            content = json.load(f)
    return [dict(zip(content["columns"], row)) for row in content["data"]]


def read_spec(run: Any) -> list[dict[str, Any]]:
    return [spec_of(dict(run.config))]


READ = {"history": read_history, "samples": read_samples, "spec": read_spec}


def read_runs(rows: pd.DataFrame, what: str, cache: str | Path | None = None,
              notes: list[str] | None = None) -> dict[str, list[dict]]:
    """What READ names, of each row of the table of runs: where -> rows. notes: gets a line where
    W&B lacks the end of a run.

    Raises UserError; what was read until then is kept, and the same call goes on from there."""
    found: dict[str, list[dict]] = {}
    missing: dict[str, Any] = {}
    for row in rows.itertuples():
        value = [SPECS[row.where]] if what == "spec" and row.where in SPECS else \
            kept(cache_file(row.where, what, cache), stamp(row))
        if value is None:
            missing[row.where] = row
        else:
            found[row.where] = value
    if not missing:
        return found
    api = connect()
    jobs = []
    for project, wheres in by_project(list(missing)).items():
        runs = {run.id: run for run in listed(api, project, list(wheres))}
        gone = [where for run_id, where in wheres.items() if run_id not in runs]
        if gone:
            raise UserError(f"{gone[0]}: there is no such run any more: load_runs again")
        jobs += [(where, runs[run_id]) for run_id, where in wheres.items()]

    def work(where: str, run: Any) -> None:
        value = READ[what](run)
        found[where] = value
        row = missing[where]
        if what == "history" and row.steps > max((r["step"] for r in value), default=-1):
            if notes is not None:
                notes.append(f"{row.run}: W&B lacks the end of its history (python -m slm.mirror "
                             "sends it)")
        elif row.status != "running":
            keep(cache_file(where, what, cache), stamp(row), value)

    in_parallel(work, jobs, f"{what} of {len(jobs)} runs in W&B")
    return found


def in_parallel(work: Callable, jobs: list[tuple], what: str) -> None:
    """work(*job) for each job, READERS at a time; the first failure ends it."""
    pool = ThreadPoolExecutor(READERS)
    futures = [pool.submit(work, *job) for job in jobs]
    try:
        for done, future in enumerate(futures):
            with errors(f"{what} ({done} read; the same command goes on from there)"):
                future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def by_project(wheres: list[str]) -> dict[str, dict[str, str]]:
    """{'entity/project': {run id: where}}"""
    out: dict[str, dict[str, str]] = {}
    for where in wheres:
        project, run_id = split(where)
        out.setdefault(project, {})[run_id] = where
    return out


# -- kept on disk ------------------------------------------------------------------------------

def cache_file(where: str, what: str, cache: str | Path | None) -> Path:
    """<cache>/<server>/<entity>/<project>/<run id>/<what>.json; cache: default the user's own
    cache folder."""
    from slm import mirror
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(root, "slm", "wandb") if cache is None else Path(cache)
    server = urlsplit(mirror.settings().get("base_url", "")).netloc.replace(":", "_") or "wandb"
    return folder.joinpath(server, *where[len(PREFIX):].split("/"), f"{what}.json")


def stamp(row: Any) -> list:
    """What a kept file belongs to: it is out of date when this has changed."""
    return [row.status, None if row.steps != row.steps else int(row.steps)]


def kept(file: Path, wanted: list) -> list | None:
    """What is kept in a file, or None: nothing, damaged, or of an earlier state of the run."""
    try:
        content = json.loads(file.read_bytes())
        good = content["stamp"] == wanted and wanted[0] != "running"
        return content["rows"] if good and isinstance(content["rows"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(file: Path, state: list, rows: list) -> None:
    """Write a file of the cache. A cache that can't be written costs time, not results."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"stamp": state, "rows": rows}))
