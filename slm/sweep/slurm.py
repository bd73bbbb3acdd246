"""`slurm`: a job array for a cluster; one `wandb agent` or one point a task, preemption-safe.

The pattern: Slurm warns the batch shell alone (--signal=B:USR1@...), the shell hands the warning
on, the trainer saves and ends, and the shell puts its task back into the queue, where the next
start resumes. Every process of a task gets SIGTERM later; by then all is saved.
"""
from __future__ import annotations

import argparse
import shlex
import stat
from pathlib import Path

from slm.errors import UserError
from slm.sweep.agents import sweep_path
from slm.sweep.points import Point, Sweep
from slm.sweep.table import numbers

WARNING_SEC = 120
SCRIPT = """#!/bin/bash
{options}
# Written by: {written_by}
# Submit with: sbatch {out}
set -u
cd "${{SLURM_SUBMIT_DIR:-.}}" || exit 2
export WANDB_DIR="${{WANDB_DIR:-$PWD}}"

{command} &
pid=$!
preempted=0
# The warning, and the SIGTERM of a preemption or scancel: hand it on, wait until all is saved.
trap 'preempted=1; kill -USR1 "$pid" 2>/dev/null' USR1
trap 'kill -TERM "$pid" 2>/dev/null' TERM
code=0
while kill -0 "$pid" 2>/dev/null; do
    wait "$pid"
    code=$?
done
if [ "$preempted" = 1 ]; then
    echo "task ${{SLURM_ARRAY_TASK_ID:-}} was warned, has saved (exit code $code), is requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def write_script(options: argparse.Namespace, overrides: list[str], sweep: Sweep,
                 points: list[Point]) -> int:
    """Write the script; say how to submit it. Returns the exit code."""
    out = Path(options.out or f"{sweep.file.name}.sbatch")
    script = make_script(options, overrides, sweep, points, out)
    try:
        out.write_text(script, encoding="utf-8")
        out.chmod(out.stat().st_mode | stat.S_IXUSR)
        (sweep.folder / "logs").mkdir(parents=True, exist_ok=True)  # Slurm makes no folders
    except OSError as e:
        raise UserError(f"{out}: can't be written: {e.strerror}") from None
    print(f"wrote {out}; submit it with: sbatch {shlex.quote(str(out))}")
    return 0


def make_script(options: argparse.Namespace, overrides: list[str], sweep: Sweep,
                points: list[Point], out: Path) -> str:
    """The text of the job array."""
    todo = [p.number for p in points if not p.dropped]
    if sweep.file.method == "bayes" and not options.sweep:
        raise UserError("method: bayes chooses a point when another ends: give --sweep="
                        "ENTITY/PROJECT/ID, so that W&B's server does")
    file = shlex.quote(str(sweep.file.path))
    if options.sweep:
        # --count 1: a task is one run, so that time limits and requeues are of one run
        command = f"wandb agent --forward-signals --count 1 {sweep_path(options.sweep)}"
        tasks, again = f"1-{len(todo)}", f" --sweep={options.sweep}"
    else:
        command = f'python -m slm.sweep run {file} --point "$SLURM_ARRAY_TASK_ID"'
        if options.seed is not None:
            command += f" --seed {options.seed}"
        command += "".join(f" {shlex.quote(o)}" for o in overrides)
        if options.gpus == 0:
            command += " --slots 1"
        tasks, again = numbers(todo), ""
    throttle = f"%{options.at_once}" if options.at_once else ""
    cpus = options.cpus or (4 if options.gpus else 1)
    lines = [f"--job-name={sweep.file.name}", f"--array={tasks}{throttle}",
             f"--time={options.time}", f"--cpus-per-task={cpus}",
             *([f"--gres=gpu:{options.gpus}"] if options.gpus else []),
             f"--signal=B:USR1@{WARNING_SEC}", "--requeue", "--open-mode=append",
             f"--output={sweep.folder / 'logs' / 'slurm-%A_%a.txt'}", *options.sbatch]
    return SCRIPT.format(options="\n".join(f"#SBATCH {line}" for line in lines),
                         written_by=f"python -m slm.sweep slurm {file}{again}", out=out,
                         command=command)
