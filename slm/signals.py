"""Signals become a flag that the loop reads between two steps: no work is done in a handler.
Outside the loop Ctrl-C ends the process."""
from __future__ import annotations

import os
import signal
import threading

STOPPING = [s for s in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, s)]


class Signals:
    """Context manager. `received` is the number of the first stopping signal, or 0; one that is
    ignored, as by `nohup` or in a script's background, stays so. A second Ctrl-C does at once what
    it did before, for the impatient."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for name in STOPPING:
                number = getattr(signal, name)
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        before = self._before[number]
        if self.received and number == signal.SIGINT and callable(before):
            before(number, frame)
        self.received = self.received or number


def ctrl_c_ends(line: str) -> None:
    """From now on Ctrl-C says `line` on stderr and ends the process at once, with 130.

    Not by KeyboardInterrupt: raised within an import or a library's clean-up, it may be swallowed
    or turned into another error. Nothing is lost: files are written whole, locks end with their
    process. Does nothing where SIGINT is ignored or somebody else handles it."""
    def end(number: int, frame) -> None:
        if os.environ.get("RANK", "0") == "0":
            # past Python's buffers, which may be in the midst of a write
            os.write(2, f"{chr(10) * os.isatty(2)}{line}\n".encode())
        os._exit(128 + number)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
