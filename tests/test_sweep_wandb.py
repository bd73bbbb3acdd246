"""The same sweep file through the real `wandb sweep`, `wandb agent` and `wandb.Api`, against a
stand-in server: nothing is run twice, nothing is lost, nothing is left behind."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from sweep_fakes import RUN as FAKE
from tiny import ROOT, metrics, write_spec
from slm.sweep.machine import cores
from wandb_server import API_KEY, wandb_server  # noqa: F401  (a fixture)

pytest.importorskip("wandb")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and at "
                                "signals that only Linux has")
SHORT_POLLS = '''
import sys
if "agent" in sys.orig_argv:  # W&B's agent looks every 5 seconds; a test has no time for that
    import wandb.wandb_agent
    wandb.wandb_agent.Agent.POLL_INTERVAL = 0.2
'''


@pytest.fixture
def place(tmp_path, wandb_server, monkeypatch):  # noqa: F811
    """A folder to sweep in, with W&B pointed at the stand-in."""
    wandb_server.runs.clear()
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SHORT_POLLS)
    for name, value in {
            "WANDB_BASE_URL": wandb_server.url, "WANDB_API_KEY": API_KEY, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}:{tmp_path / 'site'}", "HOME": str(tmp_path),
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.5",
            "CUDA_VISIBLE_DEVICES": "", "FAKE_STARTS": str(tmp_path / "starts.txt")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def create(place: Path, parameters: dict, method: str = "grid", spec: dict | None = None,
           program: str | None = None, **keys) -> str:
    """`wandb sweep` of a file over a tiny spec; returns ENTITY/PROJECT/ID. program: the text of
    another run.py than the real one."""
    if program:
        (place / "run.py").write_text(program)
    write_spec(place, track__wandb="auto", **(spec or {}))
    sweep = {"program": "run.py" if program else str(ROOT / "run.py"), "method": method,
             "project": "slm", "metric": {"name": "val/loss", "goal": "minimize"},
             "parameters": parameters, **keys,
             "command": ["${env}", "${interpreter}", "${program}", "tiny.yaml", "${args}"]}
    (place / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    checked = subprocess.run([sys.executable, "-m", "slm.sweep", "check", "s.yaml"],
                             capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    done = subprocess.run([sys.executable, "-m", "wandb", "sweep", "s.yaml"], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return re.search(r"wandb agent (\S+)", done.stdout + done.stderr).group(1)


def agents(sweep: str, *args: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "slm.sweep", "agents", sweep, *args],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def runs_of(server, sweep: str) -> list:
    return [r for r in server.runs.values() if r["sweep"] == sweep.split("/")[-1]]


def wait_for(condition, what: str, seconds: float = 100) -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, f"waited too long for {what}"
        time.sleep(0.05)


def trainers(place: Path) -> list[int]:
    """Living trainers of this test, by their command line."""
    out = []
    for proc in Path("/proc").iterdir():
        try:
            if proc.name.isdigit() and b"run.py\0tiny.yaml" in (proc / "cmdline").read_bytes() \
                    and (proc / "cwd").resolve() == place.resolve():
                out.append(int(proc.name))
        except OSError:
            continue
    return out


def logs(place: Path) -> str:
    return "\n".join(f"{p}:\n{p.read_text()}" for p in place.glob("runs/agents/*/*.txt"))


def test_two_agents_share_a_grid_and_run_no_point_twice(place, wandb_server):  # noqa: F811
    """With a dotted and a nested parameter, and points that can't be trained (16 / 3 heads)."""
    sweep = create(place, {"model.n_head": {"values": [2, 3]},
                           "optim": {"parameters": {"lr": {"values": [1e-5, 3e-3]}}}})
    both = agents(sweep, "--slots", "2")
    said, _ = both.communicate(timeout=150)
    assert both.returncode == 0, said + logs(place)
    import wandb
    runs = list(wandb.Api().runs(sweep.rpartition("/")[0], lazy=False))
    assert {r.sweep_name for r in runs} == {sweep.split("/")[2]}
    points = sorted((r.config["model.n_head"], r.config["optim"]["lr"]) for r in runs)
    assert points == [(2, 1e-5), (2, 3e-3), (3, 1e-5), (3, 3e-3)], logs(place)
    for run in runs:
        assert run.state == "finished", "also where a point is skipped"
        if run.config["model.n_head"] == 3:
            assert "val/loss" not in run.summary
        else:
            assert run.config["model"]["n_head"] == 2 and run.config["model"]["n_embd"] == 16
            assert run.summary["val/loss"] > 0
    done = {yaml.safe_load((f / "spec.yaml").read_text())["optim"]["lr"]: f
            for f in place.glob("runs/tiny-*")}
    assert set(done) == {1e-5, 3e-3}, "what was swept is what was trained"
    assert wandb.Api().sweep(sweep).state == "FINISHED"


def test_a_random_search_ends_at_its_cap_with_what_was_swept(place, wandb_server):  # noqa: F811
    """With a run.py without torch, and the real mirror."""
    sweep = create(place, {"optim.lr": {"distribution": "log_uniform_values", "min": 1e-6,
                                        "max": 1e-3}}, method="random", run_cap=2, program=FAKE)
    one = agents(sweep, "--slots", "1")
    said, _ = one.communicate(timeout=120)
    runs = runs_of(wandb_server, sweep)
    assert one.returncode == 0 and len(runs) == 2, said + logs(place)
    trained = {yaml.safe_load((f / "spec.yaml").read_text())["optim"]["lr"]
               for f in place.glob("runs/tiny-*")}
    assert trained == {r["args"]["optim.lr"]["value"] for r in runs} and max(trained) <= 1e-3


def test_killed_requeued_and_stopped_a_run_keeps_its_id_and_every_step(place, wandb_server):  # noqa: F811
    sweep = create(place, {"train.steps": {"value": 200_000}},
                   spec={"train__batch_tokens": 2048, "train__eval_interval": 1000,
                         "sample__interval": 0, "track__log_interval": 1})

    def begin() -> subprocess.Popen:
        """An agent, once its run has reported further steps to the server."""
        before = sum(len(r.history()) for r in runs_of(wandb_server, sweep))
        agent = agents(sweep, "--slots", "1")
        wait_for(lambda: sum(len(r.history()) for r in runs_of(wandb_server, sweep)) > before + 3,
                 "steps at the server")
        return agent

    def status() -> str:
        return json.loads((folder / "summary.json").read_text())["status"]

    agent = begin()
    run, = runs_of(wandb_server, sweep)
    folder, = place.glob("runs/tiny-*")
    agent.kill()                                         # by SIGKILL, with the agent it started
    wait_for(lambda: not trainers(place), "the orphan's end")
    assert status() == "preempted", "told by the kernel, it saved"
    wait_for(lambda: run["state"] == "preempted", "the word to the server")
    agent = begin()                                      # is given the run that was preempted
    run["stopped"] = True                                # from the dashboard: save and end
    said, _ = agent.communicate(timeout=60)
    assert agent.returncode == 0 and status() == "preempted", said + logs(place)
    assert len(runs_of(wandb_server, sweep)) == 1 and not trainers(place)
    steps = [row["step"] for row in metrics(folder) if "train/loss" in row]
    assert steps == list(range(1, len(steps) + 1)), "no gap, no repeat"
    shown = [row["_step"] for row in run.history()]
    assert shown == sorted(set(shown)) and set(range(1, max(shown))) <= set(shown)
    assert "resuming" in logs(place)


@pytest.mark.parametrize("args, sees", [([], ["0", "1"]), (["--gpus-per-agent=2"], ["0,1"])])
def test_agents_get_a_gpu_each_and_pass_signals_on(tmp_path, args, sees):
    """With a `wandb` that only waits to be told."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("")
    (tmp_path / "wandb" / "__main__.py").write_text(
        "import os, signal, sys\n"
        "print(sys.argv[1:], os.environ['CUDA_VISIBLE_DEVICES'],\n"
        "      os.environ['TORCHINDUCTOR_COMPILE_THREADS'], flush=True)\n"
        "signal.signal(signal.SIGTERM, lambda *a: sys.exit('told'))\nsignal.pause()\n")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-aa, T4, 15000'\necho '1, GPU-bb, T4, 15000'\n")
    tool.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    both = subprocess.Popen([sys.executable, "-m", "slm.sweep", "agents", "me/slm/abc", *args],
                            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, env={**env, "PYTHONPATH": f"{tmp_path}:{ROOT}",
                                            "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    files = [tmp_path / "runs/agents/abc" / f"{i}.txt" for i in range(len(sees))]
    wait_for(lambda: all(f.exists() and "agent" in f.read_text() for f in files), "the agents")
    both.send_signal(signal.SIGINT)
    said, _ = both.communicate(timeout=20)
    assert both.returncode == 130 and "save their state" in said
    threads = max(1, cores() // len(sees))
    for gpus, file in zip(sees, files):
        assert file.read_text().splitlines() \
            == [f"['agent', '--forward-signals', 'me/slm/abc'] {gpus} {threads}", "told"]
