"""What `run` shows: one line for each point that ends, and how far it is."""
from __future__ import annotations

import math
import shutil
import sys
import time

from slm.screen import several
from slm.sweep.estimate import Times
from slm.sweep.points import Point, Sweep
from slm.sweep.status import State
from slm.sweep.table import cut, duration

FOOT_SEC = 0.25    # between two pictures of the line at the foot of a terminal
LINE_SEC = 30.0    # between two lines of progress in a file, at the least


class Screen:
    """Lines above one line of progress. search: a slm.sweep.search.Search."""

    def __init__(self, sweep: Sweep, search, slots: int, times: Times) -> None:
        self.sweep, self.search, self.slots, self.times = sweep, search, slots, times
        self.ended = len(search.done)
        self.started = time.monotonic()
        self.expected: dict[int, float] = {}  # seconds of points, by their numbers
        self.took = self.should = 0.0         # seconds of all that ended here, and those expected
        self.terminal = sys.stdout.isatty()
        self.drawn_at = -math.inf
        self.best: tuple[Point, float] | None = None
        for point, state in search.done:
            self.note(point, state.last.get(sweep.file.metric.name), state)
        there = f", {self.ended} done already" if self.ended else ""
        self.say(f"{sweep.file.name}: {several(search.total, 'point')}{there}, {slots} at a time, "
                 f"in {sweep.folder}")

    def say(self, line: str) -> None:
        sys.stdout.write(("\r\x1b[K" if self.terminal else "") + line + "\n")
        sys.stdout.flush()

    def mark(self, point: Point) -> str:
        return f"#{point.number:<{len(str(self.search.total))}} {cut(point.label, 48)}"

    def note(self, point: Point, value: float | None, state: State) -> None:
        if value is not None and state.status in ("finished", "stopped") \
                and (self.best is None or self.sweep.file.metric.better(value, self.best[1])):
            self.best = point, value

    def done(self, point: Point, state: State, value: float | None, job) -> None:
        """A point has ended: its state, its metric, its time. job: None where it ran elsewhere."""
        self.ended += 1
        self.note(point, value, state)
        if job and state.status == "finished":
            self.took += job.took
            self.should += self.seconds(point, job.first_step)
        shown = f"{self.sweep.file.metric.name} {value:.4f}" if value is not None else ""
        extra = "" if state.status == "finished" else \
            f"  {state.status}: {state.summary.get('reason', '')}".rstrip(": ")
        how = f"{duration(job.took):>8}  {job.slot.name}" if job else "run by another launcher"
        total = str(self.search.total)
        self.say(f"{self.ended:>{len(total)}}/{total}  {self.mark(point):<56} {shown:<18} "
                 f"{how}{extra}")

    def progress(self, jobs: list) -> None:
        """How far it is: the line at the foot of a terminal; in a file a line now and then, the
        rarer the longer it lasts."""
        now = time.monotonic()
        pause = FOOT_SEC if self.terminal else max(LINE_SEC, (now - self.started) / 20)
        if now < self.drawn_at + pause:
            return
        self.drawn_at = now
        text = f"[{self.ended}/{self.search.total}] done, {len(jobs)} running, about " \
               f"{duration(max(1.0, self.time_left(jobs)), 2)} left"
        if self.best:
            text += f", best {self.sweep.file.metric.name} {self.best[1]:.4f} " \
                    f"(point {self.best[0].number})"
        if self.terminal:
            sys.stdout.write("\r\x1b[K" + cut(text, shutil.get_terminal_size().columns - 1))
            sys.stdout.flush()
        else:
            self.say(text)

    def seconds(self, point: Point, first_step: int = 0) -> float:
        """Those expected of a point that goes on from a step."""
        if point.number not in self.expected:
            self.expected[point.number] = self.times.seconds(point)
        return self.expected[point.number] * (1 - first_step / point.plan.steps)

    def time_left(self, jobs: list) -> float:
        """Expected seconds, corrected by what those that ended here took."""
        slower, now = self.took / self.should if self.should else 1.0, time.monotonic()
        running = [max(0.0, slower * self.seconds(job.point, job.first_step) - (now - job.started))
                   for job in jobs]
        todo = [self.seconds(point) for point in self.search.todo]
        unknown = self.search.left() - len(todo)     # of bayes: not proposed yet
        if unknown and self.expected:
            todo.append(unknown * sum(self.expected.values()) / len(self.expected))
        return max([(sum(running) + slower * sum(todo)) / self.slots, *running])

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
