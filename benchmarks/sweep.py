"""What the sweep's own verbs cost: `run` over the sum of its runs, `plan` and `status` of 1,000.

    python benchmarks/sweep.py [--runs 50] [--seconds 5] [--slots 2]

`run` starts a stand-in for run.py that keeps its contract and record but sleeps instead of
training, so that only the launcher is measured. Overhead = slots x wall / sum of the
processes' lives - 1."""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sweep_fakes import RUN, environment, workplace  # noqa: E402

LIFE = '''
import atexit, os, time
def life():
    started = int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    with open("lives.txt", "a") as f:
        f.write(f"{now - started / os.sysconf('SC_CLK_TCK')}\\n")
atexit.register(life)
'''


def timed(folder: Path, *args: str, **extra) -> tuple[float, str]:
    """Seconds and output of `python -m slm.sweep ARGS`."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "slm.sweep", *args], cwd=folder, text=True,
                          env=environment(folder, **extra), capture_output=True, check=True)
    return time.perf_counter() - started, done.stdout


def overhead(folder: Path, runs: int, seconds: float, slots: int) -> dict:
    steps = 20
    workplace(folder, {"train.seed": {"min": 100, "max": 99 + runs}},
              base={"train": {"steps": steps}})
    (folder / "run.py").write_text(LIFE + RUN)
    wall, _ = timed(folder, "run", "s.yaml", "--slots", str(slots), FAKE_STEP_SEC=seconds / steps)
    lives = [float(x) for x in (folder / "lives.txt").read_text().split()]
    return {"runs": len(lives), "slots": slots, "mean_life_sec": round(sum(lives) / runs, 2),
            "wall_sec": round(wall, 1), "overhead": round(slots * wall / sum(lives) - 1, 4)}


def thousand(folder: Path) -> dict:
    workplace(folder, {"train.seed": {"min": 0, "max": 9}, "model.n_layer": {"min": 1, "max": 10},
                       "optim.lr": {"values": [1e-3 * i for i in range(1, 11)]}})
    plan, text = timed(folder, "plan", "s.yaml", "--json")
    for point in json.loads(text)["points"]:
        run = folder / point["folder"]
        run.mkdir(parents=True)
        row = {"step": 4, "tokens": 256, "time_sec": 1.0, "val/loss": 2 + point["point"] / 1000}
        (run / "metrics.jsonl").write_text((json.dumps(row) + "\n") * 100)
        (run / "summary.json").write_text(json.dumps({"status": "finished"}))
    status, text = timed(folder, "status", "s.yaml")
    assert "1000 finished" in text
    check, _ = timed(folder, "check", "s.yaml")
    return {"plan_1000_sec": round(plan, 2), "status_1000_sec": round(status, 2),
            "check_1000_sec": round(check, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--slots", type=int, default=2)
    options = parser.parse_args()
    for measure in (thousand, lambda f: overhead(f, options.runs, options.seconds, options.slots)):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder))), flush=True)


if __name__ == "__main__":
    main()
