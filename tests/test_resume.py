"""Killed at any moment and started again, a run ends as one never killed: bitwise the same weights
and the same record."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import run
import torch
from tiny import (ROOT, command, environment, equal_weights, final_weights, metrics, only_run,
                  start, without_times, write_spec)

from slm import checkpoint
from slm.errors import UserError
from slm.record import Record
from slm.signals import Signals, ctrl_c_ends


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 60 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    done = command(write_spec(folder, train__steps=60))
    assert done.returncode == 0, done.stderr
    return only_run(folder)


def wait_for_step(run_dir, step, process, seconds=60):
    deadline = time.time() + seconds
    while time.time() < deadline and process.poll() is None:
        files = list(run_dir.glob("*/metrics.jsonl"))
        rows = files[0].read_text().splitlines(keepends=True) if files else []
        whole = [json.loads(r) for r in rows if r.endswith("\n")]
        if whole and whole[-1]["step"] >= step:
            return
        time.sleep(0.005)


def test_sigkill_at_several_moments_changes_no_bit(straight, tmp_path):
    spec = write_spec(tmp_path, train__steps=60, data__cache=str(straight.parent.parent / "data"))
    for step in (0, 17, 18, 41):
        process = start(spec)
        wait_for_step(tmp_path / "runs", step, process)
        process.kill()
        process.wait()
    done = command(spec)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert run.name == straight.name  # identity is free of folders
    assert equal_weights(final_weights(run), final_weights(straight))
    assert without_times(metrics(run)) == without_times(metrics(straight))
    assert (run / "samples.jsonl").read_text() == (straight / "samples.jsonl").read_text()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130),
                                          (signal.SIGUSR1, 138)])
def test_a_signal_saves_and_the_same_command_continues(straight, tmp_path, number, code):
    cache = straight.parent.parent / "data"
    spec = write_spec(tmp_path, train__steps=60, data__cache=str(cache),
                      track__checkpoint_interval=0)
    process = start(spec)
    wait_for_step(tmp_path / "runs", 8, process)
    process.send_signal(number)
    assert process.wait(30) == code
    run = only_run(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "preempted"
    saved = sorted((run / "checkpoints").glob("step-*.pt"))
    assert saved and 0 < torch.load(saved[-1], weights_only=True)["step"] < 60
    assert command(spec).returncode == 0
    assert equal_weights(final_weights(run), final_weights(straight))


INTERRUPTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    raise AttributeError("half imported")
"""


@pytest.mark.parametrize("module", ["pydantic", "einops"])
def test_ctrl_c_within_an_import_ends_the_run_with_one_line(straight, tmp_path, module):
    """pydantic is imported at the very start, einops when the run's folder is there already."""
    spec = write_spec(tmp_path, data__cache=str(straight.parent.parent / "data"))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / f"{module}.py").write_text(INTERRUPTED)
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), str(spec)], cwd=tmp_path,
                          capture_output=True, text=True,
                          env={**environment(), "PYTHONPATH": str(tmp_path / "first")})
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("stopped at once") and done.stderr.count("\n") == 1
    runs = list(tmp_path.glob("runs/*"))
    assert [Record.peek(run)["status"] for run in runs] == ["crashed"] * (module == "einops")


def test_a_second_ctrl_c_ends_at_once(straight, tmp_path):
    process = start(write_spec(tmp_path, train__steps=100_000, track__checkpoint_interval=0,
                               data__cache=str(straight.parent.parent / "data")))
    wait_for_step(tmp_path / "runs", 8, process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    out = process.communicate(timeout=30)[0]
    assert process.returncode == 130 and "Traceback" not in out, out


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ctrl_c_ends("never said")
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == 0 and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_that_leaves_ends_a_run_without_a_traceback(straight, tmp_path):
    spec = write_spec(tmp_path, data__cache=str(straight.parent.parent / "data"))
    for args in (["--help"], ["--plan"], []):
        process = subprocess.Popen([sys.executable, str(ROOT / "run.py"), str(spec), *args],
                                   cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=environment())
        while not args and not process.stdout.readline().startswith("step"):
            pass
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 128 + 13)
    assert Record.peek(only_run(tmp_path))["status"] == "crashed"


def test_a_finished_run_does_nothing_again(straight):
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*") if p.is_file()}
    done = command(straight.parent.parent / "tiny.yaml")
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in straight.rglob("*") if p.is_file()}


def test_two_processes_under_torchrun_train_the_same_losses(straight, tmp_path):
    """gloo, 2 ranks; no dropout, whose masks differ between ranks by design."""
    specs = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        specs[name] = write_spec(tmp_path / name, model__dropout=0.0,
                                 data__cache=str(straight.parent.parent / "data"))
    assert command(specs["one"]).returncode == 0
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc_per_node=2", str(ROOT / "run.py"), str(specs["two"])],
                          cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (metrics(only_run(tmp_path / name)) for name in specs)
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in {"train/loss", "val/loss", "val/loss_se", "grad_norm"} & a.keys():
            assert a[key] == pytest.approx(b[key], rel=2e-5), (key, a, b)


def test_a_second_process_on_the_same_folder_is_refused(straight, tmp_path):
    spec = write_spec(tmp_path, train__steps=3000,
                      data__cache=str(straight.parent.parent / "data"))
    first = start(spec)
    try:
        wait_for_step(tmp_path / "runs", 4, first)
        second = command(spec)
        assert second.returncode == 2 and len(second.stderr.splitlines()) == 1
        assert only_run(tmp_path).name in second.stderr
    finally:
        first.kill()
        first.wait()


def test_broken_and_foreign_checkpoints_are_refused_in_one_line(straight, tmp_path, capsys):
    cache = str(straight.parent.parent / "data")
    spec = write_spec(tmp_path, data__cache=cache)
    assert run.main([str(spec)]) == 0
    folder = only_run(tmp_path)
    os.remove(folder / "summary.json")  # not finished any more
    last = sorted((folder / "checkpoints").glob("step-*.pt"))[-1]
    whole = last.read_bytes()
    foreign = sorted((straight / "checkpoints").glob("step-*.pt"))[-1].read_bytes()
    for content, says in [(whole[:len(whole) // 2], "truncated"), (b"", "truncated"),
                          (b"hello" * 100, "truncated"), (foreign, "another spec")]:
        last.write_bytes(content)
        assert run.main([str(spec)]) == 2
        said = capsys.readouterr().err
        assert says in said and last.name in said and len(said.splitlines()) == 1, said
    last.unlink()  # what the line advises: it goes on from the one before
    assert run.main([str(spec)]) == 0
    assert last.read_bytes()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_is_said_plainly(tmp_path, monkeypatch):
    """torch.save on /dev/full, where every write fails as on a full disk."""
    monkeypatch.setattr("builtins.open", lambda path, mode: os.fdopen(
        os.open("/dev/full", os.O_WRONLY), mode) if mode == "wb" else None)
    for before, says in ((False, "goes on"), (True, "earlier checkpoints are whole")):
        if before:
            (tmp_path / "best.pt").touch()
        with pytest.raises(UserError, match="no space left on the disk.*goes on") as e:
            checkpoint.save(tmp_path / "step-00000001.pt", {"a": torch.zeros(100_000)})
        assert str(e.value).endswith(says) and "\n" not in str(e.value)


def test_branches_equal_runs_trained_straight_to_their_horizon(straight, tmp_path):
    common = dict(optim__schedule="wsd", optim__warmup_tokens=256, optim__decay=0.25,
                  data__cache=str(straight.parent.parent / "data"))
    steps = {"short": 24, "middle": 40, "long": 60}
    tokens = {k: v * 128 for k, v in steps.items()}
    folders = {}
    for name in ("short", "middle", "trunk"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
    base = {"train__steps": None, **common}
    for name in ("short", "middle"):
        assert command(write_spec(folders[name], train__tokens=tokens[name],
                                  **base)).returncode == 0
    done = command(write_spec(folders["trunk"], train__tokens=tokens["long"],
                              train__branches=[tokens["short"], tokens["middle"]], **base))
    assert done.returncode == 0, done.stderr
    runs = {p.name: p for p in (folders["trunk"] / "runs").iterdir()}
    assert len(runs) == 3
    for name in ("short", "middle"):
        alone = only_run(folders[name])
        branch = runs[alone.name]  # the same spec, hence the same run
        assert equal_weights(final_weights(branch), final_weights(alone))
        last = [m[-1] for m in (metrics(branch), metrics(alone))]
        assert last[0]["val/loss"] == last[1]["val/loss"]
        assert metrics(branch)[0]["step"] == 0  # with the trunk's history before it
