"""Signals become a flag that the loop reads between two steps: no work is done in a handler."""
from __future__ import annotations

import signal
import threading

STOPPING = [s for s in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, s)]


class Signals:
    """Context manager. `received` is the number of the first stopping signal, or 0. A second
    Ctrl-C raises KeyboardInterrupt at once, for the impatient."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for name in STOPPING:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
