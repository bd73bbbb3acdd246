"""Runs pulled back: the same table from folders and from W&B, whatever state the runs are in."""
import copy
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from run_folders import edit_summary, spec_of, write_run
from wandb_server import API_KEY, Run, wandb_server  # noqa: F401  (a fixture)

from analysis.runs import hosted
from analysis.runs import load_history, load_runs, load_samples, load_spec_of
from analysis.runs.columns import COLUMNS, WORDS
from slm.errors import UserError
from slm.files import Lock
from slm.mirror import send
from slm.spec import as_dict

PROJECT = "wandb:tester/slm"


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """A machine with nothing configured."""
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    for name in ("WANDB_INIT_TIMEOUT", "WANDB_FINISH_TIMEOUT"):     # a busy machine is no fault
        monkeypatch.setenv(name, "60")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "kept"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(wandb_server, monkeypatch):  # noqa: F811
    """The stand-in server; .asked: the names of its requests, in order."""
    import wandb
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    wandb_server.asked = []

    def spy(request):
        name = re.search(r"\b(?:query|mutation)\s+(\w+)", request)
        if not request.startswith("/sdk/"):     # the client's own telemetry
            wandb_server.asked.append(name.group(1) if name else request)
    wandb_server.spy = wandb_server.fail = spy
    wandb.teardown()            # forget another test's server
    yield wandb_server
    wandb_server.fail = None
    wandb.teardown()
    assert wandb_server.unknown == []


def asked(server, name):
    return sum(n == name for n in server.asked)


# -- local folders -----------------------------------------------------------------------------

def test_every_folder_is_kept_with_status_and_reason(tmp_path):
    top = tmp_path / "runs"
    done = write_run(top, 3.0, track__group="a: b")
    nested = write_run(top / "sweep", 2.5, train__seed=1)
    stopped = write_run(top, 3.5, "preempted", "signal 15", train__seed=2)
    nan = write_run(top, None, "diverged", "validation loss nan at step 10", train__seed=3)
    dead = write_run(top, 3.7, None, train__seed=4)
    alive = write_run(top, 3.8, None, train__seed=5)
    half = write_run(top, 3.9, train__seed=6)
    (half / "summary.json").write_text((half / "summary.json").read_text()[:700])
    foreign = write_run(top, 3.9, train__seed=7)
    edit_summary(foreign, status="ok", facts=1)
    bare = write_run(top, 3.9, None, train__seed=8)
    (bare / "summary.json").unlink()
    for name in ("plots", "logs", ".hidden"):
        (top / name).mkdir()
    lock = Lock(alive)
    try:
        runs = load_runs(str(top), spec_keys=["data.fables.facts", "sample.prompts"])
    finally:
        lock.release()
    assert list(runs.columns) == [*COLUMNS, "data.fables.facts", "sample.prompts"]
    assert all(runs[c].dtype == (object if c in WORDS else float) for c in COLUMNS)
    assert list(runs.index) == list(range(9)) and runs["run"].is_unique
    row = {r["run"]: r for r in runs.to_dict("records")}
    said = {f: (row[f.name]["status"], row[f.name]["reason"]) for f in
            (done, stopped, nan, alive, dead, half, foreign, bare)}
    assert said[done] == ("finished", "") and said[stopped] == ("preempted", "signal 15")
    assert said[nan] == ("diverged", "validation loss nan at step 10")
    assert said[alive] == ("running", "")
    assert said[dead] == ("crashed", "its process is gone, last seen at step 10")
    assert said[half][0] == "unreadable" and "half-written" in said[half][1]
    assert said[foreign][0] == "unreadable" and "'ok'" in said[foreign][1]
    assert said[bare] == ("crashed", "it ended before it wrote summary.json")
    assert runs.attrs["notes"] == [f"{top}: 1 folder among the runs without a run: plots"]
    # values of a finished run, of one without results and of one known by its spec alone
    r, spec = row[done.name], spec_of(top)
    assert (r["loss"], r["floor"], r["tokens"], r["steps"], r["n_embd"], r["val_sha256"]) == \
        (3.0, 1.5, 20_480, 20, 16, "bb")
    assert r["eval_tokens"] == 40_000                           # all there are, of 200,000 asked
    assert row[half.name]["eval_tokens"] == 200_000
    assert r["group"] == "a: b" and r["identity"] == done.name[-8:] and r["tied"] is True
    assert r["n_params"] == 12 * 16**2 + 16 * 512 and math.isclose(r["epochs"], 0.02048)
    assert row[dead.name]["loss"] == 3.7 and math.isnan(row[dead.name]["best_loss"])
    assert math.isnan(row[nan.name]["loss"])
    assert (row[half.name]["lr"], row[half.name]["corpus"], row[half.name]["loss"]) == \
        (0.003, "fables", 3.9)
    assert math.isnan(row[half.name]["n_params"])
    assert set(runs["data.fables.facts"]) == {spec.data.fables.facts}
    assert set(runs["sample.prompts"]) == {("Once upon a time",)}
    assert load_spec_of(runs.iloc[list(runs["run"]).index(nested.name)])["train"]["seed"] == 1


def test_one_folder_by_two_names_and_two_of_one_name(tmp_path):
    a, b = write_run(tmp_path / "a", 3.0), write_run(tmp_path / "b", 3.0)
    assert len(load_runs(a, tmp_path / "a", str(tmp_path / "a" / ".." / "a"))) == 1
    runs = load_runs(tmp_path)
    assert list(runs["run"]) == [f"a/{a.name}", f"b/{b.name}"]
    assert list(load_history(runs, ["val/loss"]).groupby("run").size()) == [3, 3]
    assert list(runs["where"]) == [str(a), str(b)]


def test_what_is_no_source_of_runs_is_said_in_a_line(tmp_path):
    write_run(tmp_path / "runs", 3.0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("N\n")
    runs = load_runs("runs")
    for what, match in [
            (lambda: load_runs(), "give a folder"),
            (lambda: load_runs("none"), "none: no such folder"),
            (lambda: load_runs("runs", "empty"), "empty: no run in it"),
            (lambda: load_runs("t.csv"), "is a file"),
            (lambda: load_runs(3), "not int"),
            (lambda: load_runs("wandb:a/b/c/d"), "wandb:entity/project"),
            (lambda: load_runs(PROJECT), "no API key for W&B"),
            (lambda: load_runs("runs", spec_keys=["n_layer"]), "did you mean model.n_layer"),
            (lambda: load_history(runs, ["val_loss"]), "no run has a metric 'val_loss'; there are"),
            (lambda: load_history(runs[["run"]]), "no column where")]:
        with pytest.raises(UserError, match=match) as error:
            what()
        assert "\n" not in str(error.value)


# -- W&B ---------------------------------------------------------------------------------------

def test_folders_and_their_mirror_give_the_same_tables(tmp_path, server):
    top = tmp_path / "runs"
    folders = [write_run(top, 3.0, texts=("upon <b> a", "é"), track__group="g"),
               write_run(top, 3.5, "preempted", "signal 15", train__seed=1),
               write_run(top, None, "diverged", "not finite", train__seed=2)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(send, folders))
    other = Run("tester", "slm", "other", state="finished", summary={"loss": 1.0})
    server.runs["tester", "slm", "other"] = other
    local, remote = load_runs(top), load_runs(PROJECT)
    assert list(remote["status"]).count("unreadable") == 1
    assert "not of slm" in remote.set_index("run")["reason"]["other"]

    def tidy(table):
        by = [c for c in ("run", "step", "text") if c in table]
        return table[table["run"] != "other"].sort_values(by, ignore_index=True).drop(
            columns="where", errors="ignore")
    assert_frame_equal(tidy(remote), tidy(local))
    assert_frame_equal(tidy(load_history(remote)), tidy(load_history(local)))
    assert_frame_equal(tidy(load_samples(remote)), tidy(load_samples(local)))
    assert len(load_samples(remote)) == 2 and len(load_history(local)) == 5 + 3 + 3
    first = remote[remote["run"] == folders[0].name].iloc[0]
    spec = load_spec_of(local[local["run"] == folders[0].name].iloc[0])
    hosted.SPECS.clear()                                # as in another process
    assert load_spec_of(first) == spec == as_dict(spec_of(top, track__group="g"))
    # all of this was kept: nothing is asked a second time
    server.asked.clear()
    load_history(remote), load_samples(remote), load_spec_of(first)
    assert server.asked == []
    both = load_runs(PROJECT, top)
    assert len(both) == 4 and (both["where"].str.startswith("wandb:")).sum() == 1
    assert both.attrs["notes"] == ["3 runs are both in a folder and in W&B: taken from the folder"]


def copies(server, n, steps=7):
    """n finished runs in the project many, as the mirror sends them (config, summary, history)."""
    server.runs.clear()
    lines = {i: json.dumps({"_step": i, "tokens": i * 8.0, "val/loss": 5 - i / 10,
                            "train/loss": "NaN", "samples": {"_type": "table-file"}})
             for i in range(steps)}
    template = Run("tester", "many", "x", state="finished", streamed=True, config={
        "facts": {"value": {"params": {"matmul": 5}, "shape": {"n_layer": 2}}}},
        summary={"status": "finished", "steps_done": steps - 1, "val_loss": 4.4, "tokens": 48.0})
    for i in range(n):
        run = copy.deepcopy(template)
        run.update(name=f"id{i}", displayName=f"run-{i:08x}")
        run["lines"]["wandb-history.jsonl"] = lines
        server.runs["tester", "many", f"id{i}"] = run


def test_300_runs_take_a_handful_of_requests_and_are_kept(tmp_path, server):
    copies(server, 300)
    runs = load_runs("wandb:tester/many", cache=tmp_path / "cache")
    assert len(runs) == 300 and set(runs["loss"]) == {4.4} and runs["run"].is_unique
    assert asked(server, "Runs") == 3 and len(server.asked) <= 7, server.asked
    some = runs[:12]
    server.asked.clear()
    history = load_history(some)
    assert len(history) == 12 * 7 and asked(server, "HistoryPage") == 12
    assert asked(server, "Runs") == 1 and len(server.asked) <= 12 * 3 + 6
    assert history["train/loss"].isna().all() and "samples" not in history
    files = sorted((tmp_path / "cache").rglob("history.json"))
    assert len(files) == 12 and not list((tmp_path / "home").glob("kept/slm"))
    files[0].write_text(files[0].read_text()[:50])          # damaged: read again
    server.asked.clear()
    assert_frame_equal(load_history(some), history)
    assert asked(server, "HistoryPage") == 1
    server.asked.clear()
    assert_frame_equal(load_history(some), history)
    assert server.asked == []
    gone_on = some.assign(steps=some["steps"].mask(some.index == 3, 9.0))   # W&B has 7 steps
    more = load_history(gone_on)
    assert asked(server, "HistoryPage") == 1 and len(more) == len(history)
    assert "lacks the end" in more.attrs["notes"][0] and len(more.attrs["notes"]) == 1


def test_reading_that_breaks_off_goes_on_where_it_stopped(server, monkeypatch):
    copies(server, 5)
    monkeypatch.setattr(hosted, "READERS", 1)
    monkeypatch.setattr(hosted, "RETRIES", 1)
    runs = load_runs("wandb:tester/many")

    def outage(request):
        server.spy(request)
        return 503 if "HistoryPage" in request and asked(server, "HistoryPage") > 4 else None
    server.fail = outage
    with pytest.raises(UserError, match=r"\(4 read; the same command goes on.*2 tries failed"):
        load_history(runs)
    server.fail = server.spy
    server.asked.clear()
    assert len(load_history(runs)) == 5 * 7 and asked(server, "HistoryPage") == 1


def test_states_of_wandb_and_what_it_refuses(server, monkeypatch):
    copies(server, 6)
    rows = list(server.runs.values())
    for run, (state, said) in zip(rows, [("running", "preempted"), ("crashed", "preempted"),
                                         ("failed", "running"), ("failed", "failed"),
                                         ("crashed", "finished"), ("finished", None)]):
        run["state"] = state
        run["summary"] = {"_step": 3, "tokens": 24, "val/loss": 4.7} | (
            {"status": said, "val_loss": 4.9, "reason": "old"} if said else {})
    rows[5].update(config={}, displayName="run-00000000")
    runs = load_runs("wandb:tester/many")
    assert list(runs["status"]) == ["running", "crashed", "crashed", "failed", "finished",
                                    "unreadable"]
    # of a run that went on after its preemption, what it said then no longer holds
    assert list(runs["loss"]) == [4.7, 4.7, 4.7, 4.9, 4.9, 4.7]
    assert runs["reason"][0] == "" and "last seen at step 3" in runs["reason"][1]
    assert list(runs["run"])[::5] == ["run-00000000-id0", "run-00000000-id5"]
    with pytest.raises(UserError, match="wandb:tester/none: there is no such project"):
        load_runs("wandb:tester/none")
    server.fail = lambda request: 401
    with pytest.raises(UserError, match="the API key is refused"):
        load_runs("wandb:tester/many")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")      # the discard port: refused
    import wandb
    wandb.teardown()
    with pytest.raises(UserError, match="can't be reached at http://127.0.0.1:9.*WANDB_BASE_URL"):
        load_runs("wandb:tester/many")
    assert isinstance(runs, pd.DataFrame)
