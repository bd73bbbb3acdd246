"""What `run` shows: one line for each point that ends, and at a terminal a line of progress."""
from __future__ import annotations

import shutil
import sys
import time

from slm.sweep.points import Point, Sweep
from slm.sweep.status import State
from slm.sweep.table import cut, duration


class Screen:
    """Lines above one line of progress. search: a slm.sweep.search.Search."""

    def __init__(self, sweep: Sweep, search, slots: int) -> None:
        self.sweep, self.search, self.slots = sweep, search, slots
        self.ended = len(search.done)
        self.started = time.monotonic()
        self.seconds: list[float] = []        # of the points that ended here
        self.terminal = sys.stdout.isatty()
        self.drawn_at = 0.0
        self.best: tuple[Point, float] | None = None
        for point, state in search.done:
            self.note(point, state.last.get(sweep.file.metric.name), state)
        there = f", {self.ended} done already" if self.ended else ""
        self.say(f"{sweep.file.name}: {search.total} point{'s' * (search.total != 1)}{there}, "
                 f"{slots} at a time, in {sweep.folder}")

    def say(self, line: str) -> None:
        sys.stdout.write(("\r\x1b[K" if self.terminal else "") + line + "\n")
        sys.stdout.flush()

    def mark(self, point: Point) -> str:
        return f"[{point.number:>{len(str(self.search.total))}}] {cut(point.label, 48)}"

    def note(self, point: Point, value: float | None, state: State) -> None:
        if value is not None and state.status in ("finished", "stopped") \
                and (self.best is None or self.sweep.file.metric.better(value, self.best[1])):
            self.best = point, value

    def done(self, point: Point, state: State, value: float | None, took: float | None,
             slot: str | None) -> None:
        """A point has ended: its state, its metric, its time."""
        self.ended += 1
        self.note(point, value, state)
        if took is not None:
            self.seconds.append(took)
        shown = f"{self.sweep.file.metric.name} {value:.4f}" if value is not None else ""
        extra = "" if state.status == "finished" else \
            f"  {state.status}: {state.summary.get('reason', '')}".rstrip(": ")
        how = f"{duration(took):>8}  {slot}" if took is not None else "run by another launcher"
        self.say(f"{self.mark(point):<56} {shown:<18} {how}{extra}")

    def progress(self, jobs: list) -> None:
        """The line at the foot of a terminal, four times a second."""
        now = time.monotonic()
        if not self.terminal or now < self.drawn_at + 0.25:
            return
        self.drawn_at = now
        text = f"{self.ended} of {self.search.total} done, {len(jobs)} running"
        if self.best:
            text += f", best {self.sweep.file.metric.name} {self.best[1]:.4f} " \
                    f"(point {self.best[0].number})"
        left = self.time_left(jobs)
        text += f", {duration(left)} left" if left is not None else ""
        sys.stdout.write("\r\x1b[K" + cut(text, shutil.get_terminal_size().columns - 1))
        sys.stdout.flush()

    def time_left(self, jobs: list) -> float | None:
        """By the mean time of the points that ended here; None before the first has."""
        if not self.seconds:
            return None
        mean = sum(self.seconds) / len(self.seconds)
        running = sum(max(0.0, mean - (time.monotonic() - job.started)) for job in jobs)
        return (mean * self.search.left() + running) / self.slots

    def end(self, failed: dict[str, str], signal_number: int) -> None:
        """The last lines."""
        if signal_number:
            self.say("stopped; the same command goes on with what is left")
        elif failed:
            self.say(f"{len(failed)} of {self.search.total} points failed; the same command tries "
                     "them again")
        if self.best:
            name = self.sweep.file.metric.name
            self.say(f"best {name} {self.best[1]:.4f}: point {self.best[0].number} "
                     f"({self.best[0].label}) in {self.best[0].folder}")
