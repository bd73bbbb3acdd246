"""The screen is calm: a bar on a terminal, a few whole lines elsewhere, a summary at the end."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slm.record import Record
from slm.screen import Progress, amount, duration, final_summary, say, several

ROOT = Path(__file__).parent.parent


def run(bar, total, evaluate_every, log_every, first=0):
    for step in range(first + 1, total + 1):
        evaluated, logged = step % evaluate_every == 0, step % log_every == 0
        bar.update(step, {"train/loss": 3.0, "val/loss": 2.5, "tokens_per_sec": 12_345.0},
                   evaluated=evaluated, logged=logged)


def test_without_a_terminal_there_are_whole_lines_at_evaluations(capsys):
    with Progress(1000) as bar:
        run(bar, 1000, evaluate_every=250, log_every=10)
    out = capsys.readouterr().out
    lines = out.splitlines()
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert "\r" not in out
    assert steps == [100, 200, 250, 350, 450, 500, 600, 700, 750, 850, 950, 1000]
    assert lines[0].startswith("step  100/1000  train 3.0000  12.3k tokens/s")  # none just measured
    assert lines[2].startswith("step  250/1000  train 3.0000  val 2.5000  12.3k tokens/s")
    assert " left" in lines[0]


def test_a_resumed_run_says_where_it_is(capsys):
    with Progress(100, 90) as bar:
        bar.update(90, {}, evaluated=True)
        run(bar, 100, evaluate_every=5, log_every=1, first=90)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("/")[0] for line in lines] == ["step  90", "step  95", "step 100"]


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Progress(10) as bar:
        run(bar, 10, 1, 1)
    say("hello")
    assert capsys.readouterr().out == ""


TERMINAL = """
import time
from slm.screen import Progress, say
with Progress(200) as bar:
    for step in range(1, 201):
        time.sleep(0.003)
        bar.update(step, {"train/loss": 3.0, "val/loss": 2.5}, logged=True,
                   evaluated=step == 150)
        if step == 100:
            say("a line above the bar")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal_there_is_one_bar_and_lines_above_it():
    import fcntl
    import pty
    import struct
    import termios
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", TERMINAL], stdout=theirs, stderr=theirs,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(theirs)
    out = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:
            break
        if not chunk:
            break
        out += chunk
    assert child.wait() == 0
    print(repr(out.decode()))
    lines = [line.rstrip("\r").split("\r")[-1].strip() for line in out.decode().split("\n")]
    assert lines[0] == "a line above the bar" and len(lines) == 3
    assert lines[1].startswith("100% |") and \
        "200/200, train 3.0000  val 2.5000 (step 150)" in lines[1]


def test_the_summary_at_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "base-1a2b3c4d"
    with Record.open(folder, {"a": 1}, "1a2b3c4d") as record:
        record.start(0)
        record.log(40, {"tokens": 4000, "flops": 2.5e12, "val/loss": 2.1234, "val/loss_se": 0.0051,
                        "val/bits_per_byte": 0.812, "val/floor": 2.0})
        record.sample(40, 4000, "Once", "Once upon a time, " * 12)
        record.finish("finished", "reached its horizon")
    capsys.readouterr()
    final_summary(folder)
    out = capsys.readouterr().out
    for text in ("2.1234 ± 0.0051", "0.8120", "2.0000", "0.1234 above", "4,000 in 40 steps",
                 "2.5e+12 FLOPs", "Once upon a time,", "runs/base-1a2b3c4d\n", "loss.png",
                 "finished", "reached its horizon"):
        assert text in out, out
    assert max(map(len, out.splitlines())) <= 100


def test_a_summary_of_a_run_that_recorded_nothing(tmp_path, capsys):
    with Record.open(tmp_path / "run", {"a": 1}, "1a2b3c4d") as record:
        record.finish("failed", "out of memory")
    final_summary(tmp_path / "run")
    assert "out of memory" in capsys.readouterr().out


def test_numbers_are_said_as_a_person_says_them():
    assert [amount(x) for x in (0.5, 999, 12_345, 4.3e6, 1.2e9, 3e12)] \
        == ["0.5", "999", "12.3k", "4.3M", "1.2B", "3T"]
    assert [several(n, "step") for n in (0, 1, 1000)] == ["0 steps", "1 step", "1,000 steps"]
    assert [duration(s) for s in (12.34, 200, 3725)] == ["12.3 s", "3 min 20 s", "1 h 02 min"]
