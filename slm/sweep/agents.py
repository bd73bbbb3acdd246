"""`agents`: one `wandb agent` for each visible GPU (or CPU slot) of this machine."""
from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import sys
import time
from pathlib import Path

from slm.errors import UserError
from slm.screen import say, several
from slm.sweep import process
from slm.sweep.machine import Slot, make_slots

POLL_SEC = 0.2


def sweep_path(text: str) -> str:
    """ENTITY/PROJECT/ID as it is. Raises UserError for anything else."""
    if not re.fullmatch(r"[^/\s]+/[^/\s]+/[^/\s]+", text):
        raise UserError(f"{text}: should be ENTITY/PROJECT/ID, as `wandb sweep` prints it")
    return text


def agent_command(sweep: str, count: int | None = None) -> list[str]:
    """`wandb agent` of this Python. -f: signals reach the trainer, which then saves."""
    limit = ["--count", str(count)] if count else []
    return [sys.executable, "-m", "wandb", "agent", "--forward-signals", *limit, sweep]


def agent_environment(slot: Slot, slots: int) -> dict[str, str]:
    """So that ${interpreter}, which W&B's agent looks up as `python`, is this very Python."""
    env = process.child_environment(slot, slots)
    return env | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])}


def run_agents(options: argparse.Namespace, rest: list[str]) -> int:
    """Start the agents and wait for them. Returns the exit code."""
    process.require_posix()
    if rest:
        raise UserError(f"{rest[0]}: not understood; the sweep's own file says what is swept")
    sweep = sweep_path(options.sweep)
    if importlib.util.find_spec("wandb") is None:
        raise UserError("agents need W&B: pip install wandb (`python -m slm.sweep run` needs none)")
    slots = make_slots(False, options.slots, options.per_gpu, options.gpus_per_agent)
    folder = Path("runs") / "agents" / sweep.rpartition("/")[2]
    running = {}
    with process.Stop() as stop:
        for i, slot in enumerate(slots):
            log = folder / f"{i}.txt"
            child = process.start(agent_command(sweep, options.count),
                                  agent_environment(slot, len(slots)), log)
            running[child] = (slot, log)
        places = ", ".join(slot.name for slot in slots)
        say(f"{several(len(slots), 'agent')} of {sweep}, on {places}; logs in {folder}")
        return wait(running, stop)


def wait(running: dict, stop: process.Stop) -> int:
    """Until every agent has ended. Returns the exit code."""
    told = killed = False
    worst = 0
    while running:
        for child in [c for c in running if c.poll() is not None]:
            slot, log = running.pop(child)
            line = "" if child.returncode == 0 else f": {last_line(log)}"
            say(f"agent on {slot.name} has ended (code {child.returncode}){line}")
            worst = worst or (child.returncode if not stop.received else 0)
        if stop.received and not told:
            told = True
            say("stopping: the runs save their state (Ctrl-C again stops them at once)")
            for child in running:
                process.send(child, signal.SIGTERM)
        elif stop.again and not killed:
            killed = True
            for child in running:
                process.kill_group(child)
        time.sleep(POLL_SEC)
    return 128 + stop.received if stop.received else int(bool(worst))


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), f"see {log}")
