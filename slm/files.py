"""Files that are whole at every moment, that one process writes, and that hold nothing private."""
from __future__ import annotations

import errno
import json
import math
import os
import re
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from slm.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def plain(value: Any) -> Any:
    """A value as JSON knows it. NumPy and torch scalars become numbers, a number that is not finite
    None (JSON knows no NaN), paths text; text is made private."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (str, os.PathLike)):
        return private(str(value))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return plain(value.item())


def private(text: str) -> str:
    """The text with the home folder shown as ~, and without the keys of W&B and Hugging Face."""
    home = os.path.expanduser("~").rstrip("/")
    for folder in {home, os.path.realpath(home)} if home not in ("", "~") else ():
        if folder in text:
            text = re.sub(re.escape(folder) + r"(?![\w.-])", "~", text)
    for name in SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text


def shown(path: Path) -> str:
    """A path for the screen, to be pasted into a shell: relative where it is below here."""
    relative = os.path.relpath(path)
    return private(os.path.abspath(path)) if relative.startswith("..") else relative


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Turns what a disk can refuse into one line that names the run folder."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "the disk is full: free some space, and the same command goes on"
        elif e.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            what = "something is in the way of this folder: give another track.dir"
        elif e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = "can't be written (read-only?): give another track.dir"
        else:
            what = f"can't be written: {e.strerror or e}"
        raise UserError(f"{private(str(folder))}: {what}") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old one or the new one, never half."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def rows_of(raw: bytes) -> Iterator[tuple[dict, bytes]]:
    """The objects of JSON lines, each with its line; a line cut short by a kill is left out."""
    for line in raw.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row, line


def read_rows(path: Path) -> list[dict]:
    """All whole lines of a .jsonl file; none where there is no such file."""
    try:
        return [row for row, _ in rows_of(path.read_bytes())]
    except FileNotFoundError:
        return []


class Lock:
    """An flock on folder/.lock for the life of this process: the system lets go of it however the
    process ends. Raises UserError where another process has it."""

    def __init__(self, folder: Path) -> None:
        self.fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None and not self._take():
            holder = os.pread(self.fd, 200, 0).decode(errors="replace").strip() or "unknown"
            os.close(self.fd)
            raise UserError(f"{private(str(folder))}: another process is training this run "
                            f"({holder}): wait for it or end it")
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _take(self) -> bool:
        for _ in range(20):  # is_locked holds it for microseconds: try again before refusing
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(0.02)
        return False

    def release(self) -> None:
        if self.fd >= 0:
            os.ftruncate(self.fd, 0)
            os.close(self.fd)
            self.fd = -1


def is_locked(folder: Path) -> bool:
    """Whether a living process holds folder/.lock."""
    try:
        fd = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)
