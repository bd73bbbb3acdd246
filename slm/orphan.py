"""No trainer outlives whoever started it: the kernel tells it when its parent dies (Linux)."""
from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2): the signal this process gets when its parent dies


def die_with_parent(parent: int | None = None) -> None:
    """Get SIGTERM when the parent dies, even by SIGKILL, so that this process saves and ends
    instead of holding a GPU unseen. Does nothing where the system has no such thing.

    parent: the process id the parent should have; where it is gone already, the signal is sent
    at once. Left out: the present parent."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
