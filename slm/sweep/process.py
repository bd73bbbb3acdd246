"""Processes that the launcher starts: each in a group of its own, none outlives the launcher."""
from __future__ import annotations

import contextlib
import getpass
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from slm.errors import UserError
from slm.orphan import die_with_parent
from slm.sweep.machine import Slot, cores, gpus

# Set for one run by whoever runs it; a sweep's children must not share them.
NOT_INHERITED = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME")


class Claim:
    """The right to run one point: a lock on a file, held by the launcher and, through inheritance,
    by the process it starts, so that it ends with the last of them and never goes stale."""

    def __init__(self, file: IO) -> None:
        self.file = file

    @staticmethod
    def take(path: Path) -> "Claim | None":
        """The claim, or None where another launcher (or what it left running) has it."""
        import fcntl
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return Claim(file)

    def fileno(self) -> int:
        return self.file.fileno()

    def release(self) -> None:
        self.file.close()


def require_posix() -> None:
    if os.name != "posix":
        raise UserError("slm.sweep run and agents need Linux or macOS (on Windows: WSL)")


def start(argv: list[str], env: dict[str, str], log: Path, claim: Claim | None = None
          ) -> subprocess.Popen:
    """Start a command, its output appended to `log`. Raises UserError where it can't start."""
    log.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getpid()
    with open(log, "ab") as out:
        try:
            return subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                process_group=0, pass_fds=(claim.fileno(),) if claim else (),
                preexec_fn=lambda: die_with_parent(parent))
        except OSError as e:
            raise UserError(f"{argv[0]}: can't be started: {e.strerror}") from None


def child_environment(slot: Slot, slots: int) -> dict[str, str]:
    """This process's environment for a child in one of so many slots: it sees its GPUs alone, takes
    its share of the cores, and knows nothing of another run."""
    env = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
    if slot.gpus or gpus():                   # there are, and the CPU was asked for
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.id for gpu in slot.gpus)
    if slot.gpus:
        env.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, cores() // slots)))
    else:
        env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("TORCHINDUCTOR_CACHE_DIR", compile_cache())
    return env


def compile_cache() -> str:
    """The folder in which all runs share what torch.compile made: torch's own default, which a
    TMPDIR of the child's must not change."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        user = f"uid_{os.getuid()}"
    return str(Path(tempfile.gettempdir()) / f"torchinductor_{user}")


def send(child: subprocess.Popen, number: int) -> None:
    """A signal to the child alone: its helpers (W&B's service) must live until it has saved."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)


def kill_group(child: subprocess.Popen) -> None:
    """SIGKILL to the child, its group, and whatever it started in groups of their own."""
    for pid in [*descendants(child.pid), child.pid]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes under pid, children first (Linux; elsewhere none are found)."""
    out: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                out += [int(child), *descendants(int(child))]
    return out


class Stop:
    """Context manager: the first stopping signal is remembered in `received`; `again` says that
    Ctrl-C came a second time, for those who will not wait."""
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1) \
        if os.name == "posix" else ()

    def __init__(self) -> None:
        self.received, self.again = 0, False

    def __enter__(self) -> "Stop":
        self.before = {n: signal.signal(n, self.handle) for n in self.SIGNALS
                       if signal.getsignal(n) != signal.SIG_IGN}  # as `nohup` has it
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame) -> None:
        self.again = self.again or bool(self.received) and number == signal.SIGINT
        self.received = self.received or number
