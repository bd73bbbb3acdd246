"""What the sweep's own verbs cost: `run` over the sum of its runs, and a thousand points.

`run` starts a stand-in for run.py that keeps its contract and record but sleeps instead of
training, so that only the launcher is measured: overhead = slots x wall / sum of the processes'
lives - 1."""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Options, Reach, Row

ROOT = Path(__file__).resolve().parent.parent

LIFE = '''
import atexit, os, time
def life():
    started = int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    with open("lives.txt", "a") as f:
        f.write(f"{now - started / os.sysconf('SC_CLK_TCK')}\\n")
atexit.register(life)
'''


def fakes():
    """The tests' stand-in and workplace."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))
    import sweep_fakes
    return sweep_fakes


def timed(folder: Path, *args: str, **extra) -> tuple[float, str]:
    """Seconds and output of `python -m slm.sweep ARGS`."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "slm.sweep", *args], cwd=folder, text=True,
                          env=fakes().environment(folder, **extra), capture_output=True, check=True)
    return time.perf_counter() - started, done.stdout


def overhead(folder: Path, runs: int, seconds: float, slots: int) -> dict[str, float]:
    """`run` of a sweep whose runs last so many seconds each."""
    steps = 20
    fakes().workplace(folder, {"train.seed": {"min": 100, "max": 99 + runs}},
                      base={"train": {"steps": steps}})
    (folder / "run.py").write_text(LIFE + fakes().RUN)
    wall, _ = timed(folder, "run", "s.yaml", "--slots", str(slots), FAKE_STEP_SEC=seconds / steps)
    lives = [float(x) for x in (folder / "lives.txt").read_text().split()]
    assert len(lives) == runs
    return {"mean_life_sec": sum(lives) / runs, "wall_sec": wall,
            "overhead": slots * wall / sum(lives) - 1}


def finished_sweep(folder: Path, runs: int) -> None:
    """A sweep of `runs` points in s.yaml, all with run folders that say finished."""
    fakes().workplace(folder, {"train.seed": {"min": 0, "max": runs // 10 - 1},
                               "optim.lr": {"values": [1e-3 * i for i in range(1, 11)]}})
    for point in json.loads(timed(folder, "plan", "s.yaml", "--json")[1])["points"]:
        run = folder / point["folder"]
        run.mkdir(parents=True)
        row = {"step": 4, "tokens": 256, "time_sec": 1.0, "val/loss": 2 + point["point"] / 1000}
        (run / "metrics.jsonl").write_text((json.dumps(row) + "\n") * 100)
        (run / "summary.json").write_text(json.dumps({"status": "finished",
                                                      "horizon": {"steps": 4}}))


def verbs_sec(folder: Path, runs: int) -> dict[str, float]:
    """Seconds of the verbs that only look, on finished_sweep's folder."""
    seconds = {verb: timed(folder, verb, "s.yaml") for verb in ("check", "plan", "status")}
    assert f"{runs} finished" in seconds["status"][1]
    return {verb: sec for verb, (sec, _) in seconds.items()}


def rows(options: Options) -> list[Row]:
    points = 20 if options.quick else 1000
    runs, seconds = (4, 0.5) if options.quick else (50, 5.0)
    slots = 2
    with tempfile.TemporaryDirectory() as place:
        finished_sweep(Path(place), points)
        found = [verbs_sec(Path(place), points) for _ in range(options.rounds(5))]
    with tempfile.TemporaryDirectory() as place:
        launcher = overhead(Path(place), runs, seconds, slots)
    reach = {"status": Reach(1.5, at_most=True)}
    return [Row(f"{verb} of {points:,} points", "s", [f[verb] for f in found],
                reach=reach.get(verb)) for verb in found[0]] + [
        Row(f"run: {runs} runs on {slots} slots, wall over the sum of their lives", "%",
            [100 * launcher["overhead"]], reach=Reach(5, at_most=True),
            note=f"runs of {launcher['mean_life_sec']:.1f} s that sleep; what the launcher adds")]
