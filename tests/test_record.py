"""The run folder: whole at every moment, one writer, nothing lost and nothing private."""
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from slm import record as record_module
from slm.errors import UserError
from slm.facts import describe_run, git_commit
from slm.files import plain, private, write_whole
from slm.record import Record

ROOT = Path(__file__).parent.parent
SPEC = {"model": {"n_layer": 2, "n_embd": 64}, "track": {"tags": ["a"]}}


def begin(folder, step=0, identity="1a2b3c4d", spec=SPEC):
    record = Record.open(folder, spec, identity)
    record.start(step)
    return record


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def child(code, *args, **env):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, "PYTHONPATH": str(ROOT), **env})


def test_a_run_from_start_to_finish(tmp_path):
    with begin(tmp_path / "run") as record:
        assert lines(record.folder) == []
        assert json.loads((record.folder / "summary.json").read_text())["status"] == "running"
        for step in range(0, 101, 10):
            record.log(step, {"tokens": step * 8, "flops": 1e6 * step, "train/loss": 5 - step / 50})
            if step % 50 == 0:
                record.log(step, {"tokens": step * 8, "val/loss": abs(50 - step) / 50 + 2,
                                  "val/loss_se": 0.01, "val/floor": 1.5})
        record.sample(100, 800, "Once", "upon a time — é")
        plot = record.finish("finished", "reached its horizon", {"extra": 1})
    assert plot == record.folder / "loss.png" and plot.stat().st_size > 1000
    rows = lines(record.folder)
    assert [r["step"] for r in rows] == [0, 0, 10, 20, 30, 40, 50, 50, 60, 70, 80, 90, 100, 100]
    assert all(a["time_sec"] <= b["time_sec"] for a, b in zip(rows, rows[1:]))
    summary = json.loads((record.folder / "summary.json").read_text())
    expected = {"status": "finished", "reason": "reached its horizon", "steps_done": 100,
                "tokens": 800, "flops": 1e8, "val_loss": 3.0, "best_val_loss": 2.0,
                "val_loss_se": 0.01, "val_floor": 1.5, "extra": 1, "name": "run",
                "train_loss": pytest.approx((3.2 + 3.0) / 2), "train_loss_window_tokens": 80}
    assert expected.items() <= summary.items()
    assert lines(record.folder, "samples.jsonl") == [
        {"step": 100, "tokens": 800, "prompt": "Once", "text": "upon a time — é"}]
    assert yaml.safe_load((record.folder / "spec.yaml").read_text()) == SPEC


def test_going_on_drops_what_is_done_again_and_adds_up_time(tmp_path):
    with begin(tmp_path) as record:
        record.before_sec = 1000.0
        for step in range(1, 11):
            record.log(step, {"tokens": step})
            record.sample(step, step, "p", f"text {step}")
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with open(tmp_path / "metrics.jsonl", "ab") as f:
        f.write(b'{"step": 11, "tok')  # killed in the middle of a line
    with begin(tmp_path, step=6) as record:
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:6])
        assert [r["step"] for r in lines(tmp_path, "samples.jsonl")] == list(range(1, 7))
        record.log(7, {"tokens": 7})
        assert 1000 <= lines(tmp_path)[-1]["time_sec"] < 1060
        with pytest.raises(ValueError, match="step 6"):
            record.log(6, {})
    with begin(tmp_path):  # from nothing
        assert lines(tmp_path) == lines(tmp_path, "samples.jsonl") == []


def test_numbers_of_every_kind_become_json(tmp_path):
    torch = pytest.importorskip("torch")
    with begin(tmp_path) as record:
        record.log(1, {"a": math.nan, "b": math.inf, "c": np.float32(0.5), "d": np.int64(3),
                       "e": torch.tensor(2.0), "f": np.float64("nan"), "g": True})
    row = lines(tmp_path)[0]
    assert [row[k] for k in "abcdefg"] == [None, None, 0.5, 3, 2.0, None, True]
    assert plain({"x": (Path("a") / "b", [np.bool_(True)])}) == {"x": ["a/b", [True]]}


WRITER = """
import sys
from pathlib import Path
from slm.record import Record
record = Record.open(Path(sys.argv[1]), {"model": {"n_layer": 2}}, "1a2b3c4d")
record.start(0)
print("ready", flush=True)
step = 0
while True:
    step += 1
    record.log(step, {"tokens": step, "padding": "x" * (step % 3000)})
    record.summary({"val_loss": step})
"""


def test_a_killed_writer_leaves_whole_files_and_frees_the_folder(tmp_path):
    spec = {"model": {"n_layer": 2}}
    for pause in (0.02, 0.1, 0.3):
        writer = child(WRITER, tmp_path)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(pause)
        assert Record.peek(tmp_path)["status"] == "running"
        with pytest.raises(UserError, match=f"{tmp_path.name}.*pid {writer.pid} "):
            Record.open(tmp_path, spec, "1a2b3c4d")
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        raw = (tmp_path / "metrics.jsonl").read_bytes()
        steps = [json.loads(line)["step"] for line in raw.splitlines()]
        assert steps == list(range(1, len(steps) + 1)) and steps
        seen = Record.peek(tmp_path)
        assert seen["status"] == "crashed" and seen["last"]["step"] == steps[-1]
        with begin(tmp_path, step=steps[-1] // 2, spec=spec):
            assert len(lines(tmp_path)) == steps[-1] // 2


def test_a_line_can_be_read_at_once(tmp_path):
    with begin(tmp_path) as record:
        for step in range(1, 50):
            record.log(step, {"tokens": step})
            assert lines(tmp_path)[-1]["step"] == step


def test_a_folder_of_another_spec_is_refused(tmp_path):
    begin(tmp_path).close()
    changed = {"model": {"n_layer": 3, "n_embd": 64}, "track": {"tags": ["a"]}}
    with pytest.raises(UserError, match=r"model.n_layer: 2 there, 3 here") as e:
        Record.open(tmp_path, changed, "99999999")
    assert len(str(e.value).splitlines()) == 1
    assert Record.peek(tmp_path)["status"] == "crashed"  # and it is not locked
    retagged = {"model": SPEC["model"], "track": {"tags": ["b"]}}
    begin(tmp_path, spec=retagged).close()  # the same run: track is no part of what it is
    assert yaml.safe_load((tmp_path / "spec.yaml").read_text()) == retagged


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="in the way"):
        Record.open(tmp_path / "runs" / "a", SPEC, "1a2b3c4d")
    with pytest.raises(UserError, match="in the way"):
        Record.open(tmp_path / "runs", SPEC, "1a2b3c4d")


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="read-only"):
        Record.open(tmp_path / "run", SPEC, "1a2b3c4d")


@pytest.mark.parametrize("call", ["log", "sample", "summary", "open"])
def test_a_full_disk_is_one_line_that_names_the_folder(tmp_path, monkeypatch, call):
    def full(*args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device")

    with begin(tmp_path) as record:
        record.log(1, {"tokens": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            patch.setattr(os, "fsync", full)
            with pytest.raises(UserError, match="disk is full") as e:
                {"log": lambda: record.log(2, {}), "summary": lambda: record.summary({"a": 1}),
                 "sample": lambda: record.sample(2, 2, "p", "t"),
                 "open": lambda: Record.open(tmp_path / "new", SPEC, "1")}[call]()
            assert str(tmp_path) in str(e.value)
        assert json.loads((tmp_path / "summary.json").read_text())["status"] == "running"
        assert [(row["step"], row["tokens"]) for row in lines(tmp_path)] == [(1, 1)]
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_device_that_is_full(tmp_path):
    with begin(tmp_path) as record:
        os.close(record.fds["metrics.jsonl"])
        record.fds["metrics.jsonl"] = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(UserError, match=f"{tmp_path.name}: the disk is full"):
            record.log(1, {"tokens": 1})


def test_write_whole_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(errno.EIO, "x")))
    with pytest.raises(OSError):
        write_whole(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_peek_takes_every_state_of_a_folder(tmp_path):
    assert Record.peek(tmp_path / "none") is None and Record.peek(tmp_path) is None
    run = tmp_path / "run"
    begin(run).close()
    (run / "summary.json").write_text('{"status": "fini')  # no writer of ours leaves this
    assert Record.peek(run)["status"] == "crashed"
    record = begin(run)
    record.log(5, {"tokens": 5, "val/loss": 2.0})
    record.log(6, {"tokens": 6, "train/loss": 3.0})
    os.write(record.fds["metrics.jsonl"], b'{"step": 7, ')
    seen = Record.peek(run)
    assert seen["status"] == "running" and seen["identity"] == "1a2b3c4d"
    assert {"step": 6, "val/loss": 2.0, "train/loss": 3.0}.items() <= seen["last"].items()
    record.finish("preempted", "signal 15")
    assert Record.peek(run)["status"] == "preempted"
    code = ("import sys; from slm.record import Record; Record.peek(sys.argv[1]);"
            "print([m for m in ('torch', 'pandas', 'numpy', 'wandb') if m in sys.modules])")
    assert child(code, run).communicate()[0] == "[]\n"


def test_other_ranks_write_nothing(tmp_path):
    with Record.open(tmp_path / "run", SPEC, "1a2b3c4d", main=False) as record:
        record.start(0, {"a": 1})
        record.log(1, {"tokens": 1})
        record.sample(1, 1, "p", "t")
        assert record.seconds() >= 0 and record.finish("finished") is None
    assert list(tmp_path.iterdir()) == []


def test_what_is_private_becomes_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/zaphod")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert private("/home/zaphod/x and /home/zaphodbeeble") == "~/x and /home/zaphodbeeble"
    assert private(f"open '/home/zaphod': {'k' * 40}") == "open '~': ***"


PRIVATE = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from slm.record import Record
home = Path.home()
spec = {"data": {"path": str(home / "texts"), "cache": str(home)}, "track": {"dir": str(home)}}
track = SimpleNamespace(wandb="offline", project="slm", entity=None, group=None, tags=[])
with Record.open(home / "runs" / "a", spec, "1a2b3c4d") as record:
    record.start(0, {"where": home}, track)
    record.log(1, {"tokens": 1, "train/loss": 2.0})
    record.sample(1, 1, "Once", "upon")
    record.finish("finished", f"as {home}/x said, with {os.environ['WANDB_API_KEY']}")
"""


def test_nothing_private_is_in_any_file_of_a_run_folder(tmp_path):
    """Home folder, user and key, in our own files and in W&B's."""
    home, key = tmp_path / "zaphod", "5ec3e7" * 6 + "abcd"
    home.mkdir()
    done = child(PRIVATE, HOME=str(home), USER="zaphod", LOGNAME="zaphod", WANDB_API_KEY=key,
                 XDG_CACHE_HOME=str(tmp_path / "cache"))
    out, _ = done.communicate(timeout=60)
    assert done.returncode == 0, out
    files = [p for p in (home / "runs" / "a").rglob("*") if p.is_file()]
    assert any(p.suffix == ".wandb" for p in files), out  # W&B did record
    for path in files:
        found = [w for w in (b"zaphod", str(tmp_path).encode(), key.encode())
                 if w in path.read_bytes()]
        assert not found, (path, found)
    assert not [p for p in (home / "runs" / "a").rglob("*") if p.is_symlink()]


def test_facts_let_every_convention_be_recomputed():
    from slm.plan import make_plan
    from slm.spec import load_spec
    spec = load_spec([], {"train.steps": 10, "data.tokenizer": "bpe:512", "model.n_embd": 64,
                          "model.n_head": 2, "model.n_layer": 3})
    plan = make_plan(spec, 512, 100_000)
    part = {"documents": 10, "tokens": 5000, "bytes": 20_000, "sha256": "ab"}
    meta = {"n_vocab": 500, "corpus": "fables", "corpus_fingerprint": "c", "tokenizer": "bpe:512",
            "tokenizer_fingerprint": "t", "train": part, "val": part}
    machine = SimpleNamespace(world=1, type="cpu", precision="fp32", compile=False,
                              name=lambda: "a CPU")
    facts = plain(describe_run(spec, plan, meta, machine))
    shape, n = facts["shape"], facts["params"]
    roles = ("wte", "wpe", "attn", "mlp", "norms", "biases", "lm_head")
    assert sum(n[r] for r in roles) == n["total"]
    d, layers, t, v = (shape[k] for k in ("n_embd", "n_layer", "block_size", "vocab_size"))
    assert n["attn"] + n["mlp"] == 12 * layers * d * d
    assert facts["flops_per_token"]["6N"] == 6 * n["total"]
    assert facts["flops_per_token"]["matmul"] == 6 * (12 * layers * d * d + v * d) \
        + 12 * layers * d * t
    horizon, batch = facts["horizon"], facts["batch"]
    assert horizon["tokens"] == horizon["steps"] * batch["tokens"]
    assert batch["tokens"] == batch["sequences"] * t
    assert batch["sequences"] == batch["micro_batch"] * batch["accumulation"] * batch["world"]
    assert horizon["epochs"] == horizon["tokens"] / horizon["unique_tokens"]
    assert facts["data"]["val"]["bytes"] == 20_000 and facts["seeds"] == {"train": 0, "data": 0}
    assert str(Path.home()) not in json.dumps(facts)


def test_git_commit_is_of_the_checkout_itself(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.com"]
    (tmp_path / "sub").mkdir()
    assert git_commit(tmp_path) == (None, None)
    subprocess.run([*git, "init", "-q"], check=True)
    assert git_commit(tmp_path) == (None, None)  # no commit yet
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "m"], check=True)
    sha, dirty = git_commit(tmp_path)
    assert len(sha) == 40 and dirty is False
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == (sha, True)
    assert git_commit(tmp_path / "sub") == (None, None)  # e.g. an installed slm in a project


def test_a_plot_that_fails_costs_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("slm.plot.plot_run", lambda folder: 1 / 0)
    with begin(tmp_path) as record:
        assert record.finish("finished") is None
    assert "loss.png" in capsys.readouterr().out
    assert Record.peek(tmp_path)["status"] == "finished"
    with pytest.raises(ValueError, match="status"):
        record_module.Record(tmp_path, True).finish("done")
