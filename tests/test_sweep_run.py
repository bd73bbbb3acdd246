"""The local launcher, against a run.py without torch: what is run, how often, and what survives
kills."""
import json
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweep_fakes import metrics, start, starts, statuses, sweep, workplace

from slm.sweep import machine, show
from slm.sweep.points import Sweep
from slm.sweep.search import Search, alone, remember
from slm.sweep.status import State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and at "
                                "signals that only Linux has")
GRID = {"optim.lr": {"values": [1.0e-3, 2.0e-3]}, "train.seed": {"values": [0, 1]}}


def wait_for(condition, seconds: float = 30) -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, "waited too long"
        time.sleep(0.02)


def running(folder: Path) -> list[int]:
    """Processes that run the fake of this folder (by their environment)."""
    mark, out = f"FAKE_STARTS={folder / 'starts.txt'}".encode(), []
    for proc in Path("/proc").iterdir():
        try:
            if proc.name.isdigit() and b"run.py" in (proc / "cmdline").read_bytes() \
                    and mark in (proc / "environ").read_bytes():
                out.append(int(proc.name))
        except OSError:
            continue
    return out


def test_a_sweep_runs_once_and_again_does_nothing(tmp_path):
    workplace(tmp_path, GRID)
    code, text = sweep(tmp_path, "run", "s.yaml", "--slots", "3")
    assert code == 0 and len(starts(tmp_path)) == 4
    assert set(statuses(tmp_path).values()) == {"finished"} and len(statuses(tmp_path)) == 4
    assert text.count("val/loss") == 5 and "best val/loss 1.2500: point 1" in text
    assert re.search(r"\n\[0/4\] done, 3 running, about .* left\n", text)
    assert all(re.search(rf"\n{n}/4  #\d lr=.* val/loss ", text) for n in (1, 2, 3, 4))
    planned = json.loads(sweep(tmp_path, "plan", "s.yaml", "--json")[1])
    assert planned["time_estimate"].startswith("from 4 finished runs here, with their ")
    logs = [log.read_text() for log in tmp_path.glob("runs/s/logs/*.txt")]
    took = [float(re.search(r"\[slm.sweep\] took (\S+) s\n$", log)[1]) for log in logs]
    assert sum(p["time_sec"] for p in planned["points"]) == pytest.approx(sum(took), rel=0.5)
    code, text = sweep(tmp_path, "run", "s.yaml")
    assert code == 0 and "4 done already" in text and len(starts(tmp_path)) == 4
    code, text = sweep(tmp_path, "status", "s.yaml")
    assert code == 0 and "4 finished" in text and "best so far: val/loss 1.2500 at point 1" in text
    workplace(tmp_path, GRID | {"train.seed": {"values": [0, 1, 2]}})  # more points, later
    code, text = sweep(tmp_path, "run", "s.yaml", "--slots", "2")
    assert code == 0 and "4 done already" in text and len(starts(tmp_path)) == 6
    listed = json.loads((tmp_path / "runs/s/sweep.json").read_text())["points"]
    assert {p["run"] for p in listed} == set(statuses(tmp_path))


def test_progress_says_how_long_by_what_was_expected_and_what_was_taken(tmp_path, monkeypatch,
                                                                       capsys):
    """Four points of 100 s each, on two slots, of which the first takes twice as long."""
    monkeypatch.chdir(tmp_path)
    s = Sweep(workplace(tmp_path, GRID))
    now = 1000.0
    monkeypatch.setattr(show.time, "monotonic", lambda: now)
    search = Search(s, s.points())
    screen = show.Screen(s, search, 2, SimpleNamespace(seconds=lambda point: 100.0))
    jobs = [SimpleNamespace(point=search.take(), started=now, first_step=0, took=0.0,
                            slot=machine.Slot(f"cpu {i}")) for i in (0, 1)]
    capsys.readouterr()
    for tick in range(50 * 20):                    # as the launcher polls, for 50 s
        now += 0.05
        screen.progress(jobs)
    assert capsys.readouterr().out == ("[0/4] done, 2 running, about 3.3 min left\n"
                                       "[0/4] done, 2 running, about 2.8 min left\n")
    now = 1200.0
    ended = jobs.pop(0)
    ended.took = 200.0
    screen.done(ended.point, State("finished"), 2.5, ended)
    jobs.append(SimpleNamespace(point=search.take(), started=now, first_step=1, took=0.0))
    screen.progress(jobs)
    said = capsys.readouterr().out
    # 200 s for the point to do, 3/4 of it for the one that goes on from step 1 of 4, 0 for the late
    assert said.startswith("1/4  #1 ") and "2.9 min left, best val/loss 2.5000 (point 1)" in said


def test_failures_are_retried_then_reported_and_the_sweep_goes_on(tmp_path):
    """Seed 13 always crashes, 14 the first time, 15 diverges (a result, not a failure)."""
    workplace(tmp_path, {"train.seed": {"values": [13, 14, 15, 0]}})
    code, text = sweep(tmp_path, "run", "s.yaml", "--slots", "2", "--retries", "2")
    assert code == 1 and "1 of 4 points failed" in text
    assert "killed by signal 9" in text and "RuntimeError: unlucky seed" in text
    names = [name.split("-")[0] for name in starts(tmp_path)]
    assert {n: names.count(n) for n in names} == {"seed13": 3, "seed14": 2, "seed15": 1, "seed0": 1}
    code, text = sweep(tmp_path, "status", "s.yaml", "--json")
    state = json.loads(text)
    assert state["counts"] == {"failed": 1, "finished": 2, "diverged": 1}
    assert state["points"][0]["error"] == "RuntimeError: unlucky seed"
    code, text = sweep(tmp_path, "run", "s.yaml", "--retries", "0")
    assert code == 1 and len(starts(tmp_path)) == 8, "again only what failed"


def test_a_killed_launcher_leaves_no_trainer_and_loses_nothing(tmp_path):
    workplace(tmp_path, GRID, base={"train": {"steps": 60}})
    first = start(tmp_path, "run", "s.yaml", "--slots", "2", FAKE_STEP_SEC=0.05)
    wait_for(lambda: len(list(tmp_path.glob("runs/s/*/metrics.jsonl"))) == 2)
    time.sleep(0.3)
    assert len(running(tmp_path)) == 2
    first.kill()
    first.wait()
    wait_for(lambda: not running(tmp_path), 10)
    assert set(statuses(tmp_path).values()) == {"preempted"}, "told by the kernel, saved"
    code, text = sweep(tmp_path, "run", "s.yaml", "--slots", "2", FAKE_STEP_SEC=0.001)
    assert code == 0 and set(statuses(tmp_path).values()) == {"finished"}
    for folder in tmp_path.glob("runs/s/lr*"):
        assert [row["step"] for row in metrics(folder)] == list(range(1, 61)), "no gap, no repeat"


def test_ctrl_c_lets_the_children_save_and_twice_stops_at_once(tmp_path):
    workplace(tmp_path, GRID, base={"train": {"steps": 400}})
    launcher = start(tmp_path, "run", "s.yaml", "--slots", "2", FAKE_STEP_SEC=0.05)
    wait_for(lambda: len(list(tmp_path.glob("runs/s/*/metrics.jsonl"))) == 2)
    launcher.send_signal(signal.SIGINT)
    text = launcher.communicate(timeout=20)[0]
    assert launcher.returncode == 130 and "save their state" in text
    assert set(statuses(tmp_path).values()) == {"preempted"} and not running(tmp_path)

    launcher = start(tmp_path, "run", "s.yaml", "--slots", "2", FAKE_STEP_SEC=5)
    wait_for(lambda: len(running(tmp_path)) == 2 and len(starts(tmp_path)) == 4)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=3) == 130
    wait_for(lambda: not running(tmp_path), 3)


def test_two_launchers_share_the_points_and_run_none_twice(tmp_path):
    workplace(tmp_path, {"train.seed": {"min": 20, "max": 26}})
    both = [start(tmp_path, "run", "s.yaml", "--slots", "2", FAKE_STEP_SEC=0.02) for _ in range(2)]
    texts = [launcher.communicate(timeout=90)[0] for launcher in both]
    assert [launcher.returncode for launcher in both] == [0, 0], texts
    assert len(starts(tmp_path)) == len(set(starts(tmp_path))) == 7
    assert all("best val/loss" in text for text in texts)


def test_many_tasks_may_start_in_one_moment(tmp_path, monkeypatch):
    """As the tasks of an array do: each writes the list of points."""
    monkeypatch.chdir(tmp_path)
    path = workplace(tmp_path, GRID)

    def task(_):
        mine = Sweep(path)
        points = mine.points()
        for _ in range(10):
            with alone(mine):
                remember(mine, points)
        return len(mine.stored()["points"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(task, range(8))) == [4] * 8


def test_a_run_that_someone_else_stops_goes_on(tmp_path):
    workplace(tmp_path, {"train.seed": {"value": 0}}, base={"train": {"steps": 60}})
    launcher = start(tmp_path, "run", "s.yaml", "--retries", "0", FAKE_STEP_SEC=0.05)
    wait_for(lambda: list(tmp_path.glob("runs/s/*/metrics.jsonl")))
    time.sleep(0.5)
    os.kill(running(tmp_path)[0], signal.SIGTERM)
    text = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 0 and len(starts(tmp_path)) == 2, text
    folder, = tmp_path.glob("runs/s/s-*")
    assert [row["step"] for row in metrics(folder)] == list(range(1, 61))


def test_each_child_sees_its_slot_and_no_other_runs_names(tmp_path):
    workplace(tmp_path, {"train.seed": {"value": 0}})
    (tmp_path / "run.py").write_text(
        "import os, json; print(json.dumps(dict(os.environ))); raise SystemExit(2)")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-aa, T4, 15000'\necho '1, GPU-bb, T4, 15000'\n")
    tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    sweep(tmp_path, "run", "s.yaml", PATH=path, CUDA_VISIBLE_DEVICES="1", WANDB_RUN_ID="mine",
          WANDB_SWEEP_ID="s1")
    log, = tmp_path.glob("runs/s/logs/*.txt")
    env = json.loads(log.read_text().splitlines()[0])
    assert env["CUDA_VISIBLE_DEVICES"] == "1" and "TORCHINDUCTOR_CACHE_DIR" in env
    assert env["TORCHINDUCTOR_COMPILE_THREADS"] == str(machine.cores()), "one slot has them all"
    assert "WANDB_RUN_ID" not in env and "WANDB_SWEEP_ID" not in env
    log.unlink()
    sweep(tmp_path, "run", "s.yaml", "--slots", "1", PATH=path, CUDA_VISIBLE_DEVICES="1")
    env = json.loads(log.read_text().splitlines()[0])
    assert env["CUDA_VISIBLE_DEVICES"] == "" and env["OMP_NUM_THREADS"] == "1"


def test_one_point_alone_and_its_warning(tmp_path):
    """As a Slurm task runs it: SIGUSR1 reaches the trainer, the exit code says so."""
    workplace(tmp_path, GRID, base={"train": {"steps": 40}})
    task = start(tmp_path, "run", "s.yaml", "--point", "3", FAKE_STEP_SEC=0.05)
    wait_for(lambda: list(tmp_path.glob("runs/s/*/metrics.jsonl")))
    task.send_signal(signal.SIGUSR1)
    assert task.wait(timeout=20) == 128 + signal.SIGUSR1
    assert set(statuses(tmp_path).values()) == {"preempted"}
    assert sweep(tmp_path, "run", "s.yaml", "--point", "3")[0] == 0
    assert [s for s in statuses(tmp_path).values()] == ["finished"]
    assert all(name.startswith("lr0.002-seed0-") for name in starts(tmp_path))


def test_hyperband_ends_what_falls_behind_and_counts_it_as_done(tmp_path):
    """Loss falls with lr: when the worst is as far as the better ones were, it is stopped."""
    workplace(tmp_path, {"optim.lr": {"values": [1.0e-3, 2.0e-3, 3.0e-3, 9.0e-3]}},
              metric={"name": "val/loss", "goal": "minimize"}, base={"train": {"steps": 100}},
              early_terminate={"type": "hyperband", "min_iter": 10, "eta": 2})
    code, text = sweep(tmp_path, "run", "s.yaml", "--slots", "4", FAKE_STEP_SEC=0.06)
    assert code == 0 and "stopped" in text
    states = json.loads(sweep(tmp_path, "status", "s.yaml", "--json")[1])
    by_lr = {p["values"]["optim.lr"]: p for p in states["points"]}
    assert by_lr[0.001]["status"] == "finished" and by_lr[0.009]["status"] == "stopped"
    assert by_lr[0.009]["step"] < 100 and states["best"]["point"] == 1
    again = sweep(tmp_path, "run", "s.yaml")[1]
    assert "4 done already" in again and len(starts(tmp_path)) == 4


def test_a_target_ends_the_sweep(tmp_path):
    workplace(tmp_path, {"optim.lr": {"values": [1.0e-3, 2.0e-3, 3.0e-3]}},
              metric={"name": "val/loss", "goal": "minimize", "target": 1.3})
    code, text = sweep(tmp_path, "run", "s.yaml", "--slots", "1")
    assert code == 0 and "reached its target" in text and len(starts(tmp_path)) == 1


def test_bayes_finds_the_valley_and_goes_on_after_a_kill(tmp_path):
    pytest.importorskip("optuna")
    workplace(tmp_path, {"optim.lr": {"distribution": "log_uniform_values", "min": 1e-5,
                                      "max": 1.0}, "train.seed": {"values": [1, 2]}},
              method="bayes", run_cap=6, metric={"name": "val/loss", "goal": "minimize"})
    launcher = start(tmp_path, "run", "s.yaml", "--slots", "2")
    wait_for(lambda: len([s for s in statuses(tmp_path).values() if s == "finished"]) >= 2, 60)
    launcher.kill()
    launcher.wait()
    before = json.loads((tmp_path / "runs/s/sweep.json").read_text())["points"]
    code, text = sweep(tmp_path, "run", "s.yaml", "--slots", "2")
    after = json.loads((tmp_path / "runs/s/sweep.json").read_text())["points"]
    assert code == 0 and after[:len(before)] == before and len(after) == 6
    state = json.loads(sweep(tmp_path, "status", "s.yaml", "--json")[1])
    assert sum(state["counts"].values()) + state["dropped"] == 6
    assert state["best"]["val/loss"] == min(p["val/loss"] for p in state["points"])
