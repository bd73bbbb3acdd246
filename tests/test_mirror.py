"""W&B as a mirror: what it gets, and that nothing it does stops, slows or loses a run."""
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from wandb_server import API_KEY, wandb_server  # noqa: F401  (a fixture)

from slm.errors import UserError
from slm.mirror import Mirror, check_swept, choose_mode, report_skipped, send
from slm.mirror_child import TURN
from slm.record import Record

ROOT = Path(__file__).parent.parent
SPEC = {"model": {"n_layer": 2, "n_head": 4, "n_embd": 64}, "optim": {"lr": 1e-4}}


def track(mode="online", **more):
    return SimpleNamespace(**{"wandb": mode, "project": "slm", "entity": None, "group": "g",
                              "tags": ["a", "b"], **more})


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """A machine with nothing configured, and W&B's patience shortened."""
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "zaphod"))
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "10")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(wandb_server, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    wandb_server.runs.clear()
    wandb_server.bodies.clear()
    yield wandb_server
    wandb_server.fail = None
    assert wandb_server.unknown == []


def begin(folder, step=0, mode="online", **more):
    record = Record.open(folder, SPEC, "1a2b3c4d")
    record.start(step, {"params": {"total": 5}}, track(mode, **more))
    return record


def steps(record, first, last):
    """Lines as the loop writes them: training metrics, then at some steps validation."""
    for step in range(first, last + 1):
        record.log(step, {"tokens": step * 8, "train/loss": 5 - step / 100})
        if step % 5 == 0:
            record.log(step, {"tokens": step * 8, "val/loss": 4 - step / 100})


def rows(folder):
    """metrics.jsonl as W&B shows it: one row a step."""
    merged = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        merged.setdefault(row["step"], {}).update(row)
    return [{k: row.get(k) for k in ("step", "tokens", "train/loss", "val/loss")}
            for row in merged.values()]


def sent(run):
    return [{"step": r["_step"], **{k: r.get(k) for k in ("tokens", "train/loss", "val/loss")}}
            for r in run.history()]


def only(server):
    assert len(server.runs) == 1, list(server.runs)
    return next(iter(server.runs.values()))


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def wait_until_ready(mirror):
    wait_for(lambda: mirror.poll() or mirror.ready)


def processes(part):
    """(process id, parent's id) of the processes whose command line has this part."""
    found = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in found.stdout.splitlines()[1:]]
    return [(int(pid), int(parent)) for pid, parent, args in rows if part in args]


def core_of(mirror):
    """The process id of the wandb-core that the mirror's child started."""
    return next(pid for pid, parent in processes("wandb-core") if parent == mirror.child.pid)


def sync(*args):
    return subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *map(str, args)],
                          capture_output=True, text=True, timeout=60)


# -- a run, and its resume ---------------------------------------------------------------------

def test_a_run_its_preemption_and_its_resume_are_one_whole_run(server, tmp_path, capsys):
    folder = tmp_path / "zaphod" / "runs" / "base-1a2b3c4d"
    with begin(folder) as record:
        steps(record, 1, 12)
        record.sample(10, 80, "Once", "upon")
        record.finish("preempted", "signal 15")
    run = only(server)
    assert run["state"] == "preempted" and sent(run) == rows(folder)
    with begin(folder, step=10) as record:  # the checkpoint was older than W&B's last row
        steps(record, 11, 30)
        record.sample(30, 240, "Once", "more")
        record.finish("finished", "reached its horizon")
    run = only(server)
    assert run["state"] == "finished" and run["exitcode"] == 0
    assert sent(run) == rows(folder) and len(sent(run)) == 30  # no gap, nothing twice
    assert run["name"] == (folder / "wandb_id").read_text().strip()
    assert (run["displayName"], run["group"], run["tags"]) == ("base-1a2b3c4d", "g", ["a", "b"])
    config = run.config()
    assert config["model"] == SPEC["model"] and config["facts"] == {"params": {"total": 5}}
    metrics = run["config"]["_wandb"]["value"]["m"]  # 1: name, 2: pattern, 5: its x-axis, from 1
    names = [m.get("1", m.get("2")) for m in metrics]
    x_axis = {name: names[m["5"] - 1] for name, m in zip(names, metrics) if "5" in m}
    assert {x_axis[k] for k in ("train/*", "val/*", "lr", "mfu")} == {"tokens"}
    assert run["summary"]["status"] == "finished" and run["summary"]["val_loss"] == 3.7
    assert run["summary"]["samples"]["nrows"] == 2
    assert run["summary"]["loss"]["_type"] == "image-file"
    secrets = [b"zaphod", str(tmp_path).encode(), API_KEY.encode(), str(ROOT).encode()]
    assert not [(w, b) for w in secrets for b in server.bodies if w in b]
    assert server.url in capsys.readouterr().out


TRAINER = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import test_mirror as t
record = t.begin(Path(sys.argv[2]))
t.steps(record, 1, 23)
print("ready", flush=True)
time.sleep(60)
"""


def killed_after_23_steps(folder):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(ROOT / "tests"), str(folder)],
                               stdout=subprocess.PIPE, text=True, env=env)
    while trainer.stdout.readline() != "ready\n":
        pass
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert Record.peek(folder)["status"] == "crashed"


def test_after_sigkill_the_same_command_continues_without_gap(server, tmp_path):
    folder = tmp_path / "run"
    killed_after_23_steps(folder)
    with begin(folder, step=15) as record:  # at once, while the old mirror still sends
        steps(record, 16, 31)
        record.finish("finished")
    run = only(server)
    assert sent(run) == rows(folder) and len(sent(run)) == 31
    assert run["state"] == "finished"


def test_a_killed_runs_mirror_that_comes_too_late_does_nothing(server, tmp_path):
    """On a busy machine the mirror of a killed trainer may begin after that of its successor."""
    folder = tmp_path / "run"
    (folder / "wandb").mkdir(parents=True)
    with open(folder / TURN, "w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        killed_after_23_steps(folder)
        with begin(folder, step=15) as record:
            steps(record, 16, 31)
            fcntl.flock(busy, fcntl.LOCK_UN)
            record.finish("finished")
    wait_for(lambda: not processes(f"slm.mirror_child {folder}"))
    run = only(server)
    assert run["state"] == "finished" and sent(run) == rows(folder)
    assert len(list(folder.glob("wandb/run-*"))) == 1  # it did not begin at all


# -- faults ------------------------------------------------------------------------------------

def test_a_server_that_is_not_there_then_sync(server, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: refused
    with begin(folder) as record:
        steps(record, 1, 10)
        record.finish("preempted")
    said = capsys.readouterr().out
    assert "can't be reached" in said and "recorded offline" in said and len(said.splitlines()) == 2
    with begin(folder, step=8) as record:
        steps(record, 9, 20)
        record.sample(20, 160, "Once", "upon")
        record.finish("finished")
    command = capsys.readouterr().out.split("wandb sync ")[1].split()[0]
    assert not os.path.isabs(command) and Path(command).is_dir()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    done = sync(*sorted(folder.glob("wandb/offline-run-*")))
    assert done.returncode == 0, done.stderr
    run = only(server)
    assert sent(run) == rows(folder) and len(sent(run)) == 20  # one part holds all, none twice
    assert any("table.json" in path for path in server.files)


def test_a_server_that_dies_and_comes_back_later(server, tmp_path, capsys):
    folder = tmp_path / "run"
    with begin(folder) as record:
        wait_until_ready(record.mirror)
        steps(record, 1, 10)
        server.fail = lambda request: 503
        started = time.monotonic()
        steps(record, 11, 40)
        assert time.monotonic() - started < 5
        record.finish("finished")
        assert time.monotonic() - started < 60
    said = capsys.readouterr().out
    assert "could not take all" in said and "wandb sync --include-online" in said, said
    assert Record.peek(folder)["status"] == "finished" and len(rows(folder)) == 40
    server.fail = None
    done = sync("--include-online", said.split("--include-online ")[1].split()[0])
    assert done.returncode == 0, done.stderr
    assert sent(only(server)) == rows(folder)


def test_a_cluster_that_ends_every_process_of_a_job(server, tmp_path, capsys):
    """Slurm's SIGTERM reaches the mirror and wandb-core too, which dies of it."""
    folder = tmp_path / "run"
    with begin(folder) as record:
        wait_until_ready(record.mirror)
        steps(record, 1, 10)
        time.sleep(1)
        os.kill(core_of(record.mirror), signal.SIGKILL)
        os.kill(record.mirror.child.pid, signal.SIGTERM)
        steps(record, 11, 20)
        record.finish("preempted", "signal 15")
    said = capsys.readouterr().out
    assert "beginning again" in said and "Traceback" not in said
    run = only(server)
    assert sent(run) == rows(folder) and len(sent(run)) == 20
    assert run["state"] == "preempted"  # so that a sweep gives it out again


def test_a_run_that_is_stopped_on_the_page_is_not_given_out_again(server, tmp_path):
    """Its agent stops it with the same SIGTERM by which a cluster preempts."""
    with begin(tmp_path / "run") as record:
        wait_until_ready(record.mirror)
        steps(record, 1, 10)
        only(server)["stopped"] = True
        record.finish("preempted", "signal 15")
    assert only(server)["state"] == "failed" and len(sent(only(server))) == 10


def test_wandb_that_hangs_is_left_behind_and_sent_later(server, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    with begin(folder) as record:
        wait_until_ready(record.mirror)
        core = core_of(record.mirror)
        os.kill(core, signal.SIGSTOP)
        try:
            steps(record, 1, 20)
            monkeypatch.setenv("WANDB_INIT_TIMEOUT", "-9")  # its allowance is over: wait 4 s
            started = time.monotonic()
            record.finish("finished")
            assert time.monotonic() - started < 30
        finally:
            os.kill(core, signal.SIGKILL)
    assert "send it later: python -m slm.mirror run" in capsys.readouterr().out
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "10")
    send(Path("run"))
    run = only(server)
    assert sent(run) == rows(folder) and run["state"] == "finished"
    with pytest.raises(UserError, match="no run folder"):
        send(tmp_path)


def test_wandb_that_can_not_start_says_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with begin(tmp_path / "run", mode="offline") as record:
        steps(record, 1, 3)
        record.finish("finished")
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "can't be started" in line] and len(said) == 1


# -- choices -----------------------------------------------------------------------------------

@pytest.mark.parametrize("wanted, env, netrc, mode, why", [
    ("auto", {}, "", "disabled", "no API key"),
    ("auto", {"WANDB_API_KEY": API_KEY}, "", "online", "API key"),
    ("auto", {}, "api.wandb.ai", "online", "API key"),
    ("auto", {"WANDB_BASE_URL": "http://host:80"}, "api.wandb.ai", "disabled", "no API key"),
    ("auto", {"WANDB_BASE_URL": "http://host:80"}, "host:80", "online", "API key"),
    ("auto", {"WANDB_MODE": "offline", "WANDB_API_KEY": API_KEY}, "", "offline", "WANDB_MODE"),
    ("auto", {"WANDB_SWEEP_ID": "s"}, "", "online", "agent"),
    ("online", {}, "", "offline", "wandb login"),
    ("online", {"WANDB_API_KEY": API_KEY}, "", "online", "track.wandb"),
    ("online", {"WANDB_API_KEY": API_KEY, "WANDB_MODE": "offline"}, "", "offline", "against"),
    ("offline", {"WANDB_MODE": "online"}, "", "offline", "track.wandb"),
    ("disabled", {"WANDB_MODE": "online", "WANDB_API_KEY": API_KEY}, "", "disabled", "track"),
])
def test_the_mode_is_chosen_with_a_reason(tmp_path, monkeypatch, wanted, env, netrc, mode, why):
    home = tmp_path / "zaphod"
    home.mkdir()
    if netrc:
        (home / ".netrc").write_text(f"machine {netrc}\n  login user\n  password {API_KEY}\n")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    chosen, reason = choose_mode(wanted)
    assert chosen == mode and why in reason


def test_wandb_login_and_offline_files_are_read(tmp_path, monkeypatch):
    settings = tmp_path / "wandb" / "settings"  # what `wandb offline` writes
    settings.parent.mkdir()
    settings.write_text("[default]\nmode = offline\n")
    assert choose_mode("auto")[0] == "offline"
    settings.write_text(f"[default]\napi_key = {API_KEY}\n")
    assert choose_mode("auto")[0] == "online"


def test_disabled_starts_nothing(tmp_path, capsys):
    mirror = Mirror.start(track("disabled"), tmp_path, {})
    assert mirror.child is None and mirror.mode == "disabled"
    mirror.poll(), mirror.finish(0), mirror.let_go()
    assert capsys.readouterr().out == "W&B off (track.wandb = disabled)\n"
    assert list(tmp_path.iterdir()) == []


def test_swept_values_must_be_those_that_are_trained(tmp_path, monkeypatch):
    assert check_swept(SPEC) == []
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "p.yaml"))

    def differences(**given):
        content = {"wandb_version": 1} | {k: {"value": v} for k, v in given.items()}
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
        return check_swept(SPEC)

    assert differences(**{"model.n_layer": 2, "optim.lr": "1e-4", "model.bias": None}) == []
    assert differences(model={"n_layer": 2, "n_head": 4}, _wandb={}) == []
    wrong = differences(model={"n_layer": 3}, **{"optim.lr": 2e-4})
    assert len(wrong) == 2 and "model.n_layer = 3" in wrong[0] and "2" in wrong[0]
    assert differences(**{"model.head_size": 16, "model.aspect_ratio": 32}) == []
    assert len(differences(**{"model.head_size": 32})) == 1
    assert len(differences(**{"model.aspect_ratio": 64})) == 1
    assert len(differences(**{"model.d_ff": 256})) == 1


# -- a sweep, with W&B's own CLI, agent and Api --------------------------------------------------

SCRIPT = """
import os, sys
from pathlib import Path
sys.path[:0] = {paths}
import test_mirror as t
from slm.mirror import check_swept, report_skipped
value = int(sys.argv[1].split("=")[1])
assert sys.argv[1].startswith("--model.n_layer="), sys.argv
if value == 7:
    report_skipped("width 7 is not divisible")
    sys.exit(0)
folder = Path(f"run-{{value}}")
spec = {{**t.SPEC, "model": {{**t.SPEC["model"], "n_layer": value}}}}
assert check_swept(spec) == []
again = folder.exists()
with t.Record.open(folder, spec, f"{{value}}") as record:
    record.start(6 if again else 0, {{}}, t.track("auto"))
    t.steps(record, 7 if again else 1, 12 if again else 8)
    if value == 2 and not again:
        record.finish("preempted", "signal 15")
        sys.exit(143)
    record.finish("finished")
"""
AGENT = ("import wandb.wandb_agent as a; a.Agent.POLL_INTERVAL = 0.2; "
         "from wandb.cli.cli import cli; cli()")  # else 5 s for every heartbeat


def test_a_sweep_with_a_preempted_and_a_skipped_point(server, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT.format(paths=[str(ROOT), str(ROOT / "tests")]))
    sweep = {"program": "train.py", "method": "grid", "metric": {"name": "val/loss",
                                                                 "goal": "minimize"},
             "command": [sys.executable, "${program}", "${args}"],
             "parameters": {"model.n_layer": {"values": [2, 7]}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    env = {**os.environ, "WANDB_PROJECT": "swept", "WANDB_AGENT_DISABLE_FLAPPING": "true"}
    for args in (["sweep", "sweep.yaml"], ["agent", "{}"]):
        place = "/".join(next(iter(server.sweeps), ()))
        done = subprocess.run([sys.executable, "-c", AGENT, *[a.format(place) for a in args]],
                              capture_output=True, text=True, env=env, timeout=90)
        assert done.returncode == 0, done.stderr
    runs = {r.config()["model.n_layer"]: r for r in server.runs.values()}
    assert len(server.runs) == 2 and {r["state"] for r in runs.values()} == {"finished"}
    assert sent(runs[2]) == rows(tmp_path / "run-2") and len(sent(runs[2])) == 12
    assert runs[2].config()["model"]["n_layer"] == 2 and runs[2]["summary"]["val_loss"] == 3.9
    assert runs[7]["summary"]["status"] == "skipped" and "7" in runs[7]["summary"]["reason"]
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=env)
    asked = json.loads(done.stdout.splitlines()[-1])
    assert sorted(asked["all"]) == [2, 7] and asked["finished"] == [[2, 3.9, 12]], done.stderr


ASK = """
import json, wandb
runs = wandb.Api().runs("tester/swept", per_page=1)
print(json.dumps({
    "all": [r.config["model.n_layer"] for r in runs],
    "finished": [[r.config["model"]["n_layer"], r.summary["val_loss"], len(list(r.scan_history()))]
                 for r in wandb.Api().runs("tester/swept", lazy=False,
                                           filters={"summary_metrics.status": "finished"})]}))
"""


def test_without_an_agent_nothing_is_reported(capsys):
    report_skipped("no key here")
    assert "W&B off" in capsys.readouterr().out
