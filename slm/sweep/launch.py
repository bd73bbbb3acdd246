"""`run`: the sweep on this machine, one run per free slot, without a server.

What is done is read from the run folders: nothing else remembers it, so a launcher that is killed
loses nothing, and two launchers on one folder share the work.
"""
from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass

from slm.errors import UserError
from slm.files import is_locked, write_whole
from slm.sweep import process
from slm.sweep.bandit import History, to_stop
from slm.sweep.estimate import measure
from slm.sweep.machine import Slot
from slm.sweep.points import Point, Sweep
from slm.sweep.search import Search
from slm.sweep.show import Screen
from slm.sweep.status import FAILED, STOPPED, TOOK, State, last_error, log_file, read_state

POLL_SEC = 0.05
BANDIT_SEC = 2.0
ELSEWHERE_SEC = 1.0
BAD_INPUT, DIVERGED = 2, 3                    # exit codes of run.py
PREEMPTED = {128 + n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)} \
    | {-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1}


@dataclass
class Job:
    """A running point."""
    point: Point
    child: subprocess.Popen
    slot: Slot
    claim: process.Claim
    started: float
    first_step: int
    history: History
    ended: str = ""  # why early_terminate ended it
    took: float = 0.0  # seconds, once it has ended


class Launcher:
    """Runs the points of a search on slots until none is left. retries: of a failed point."""

    def __init__(self, sweep: Sweep, search: Search, slots: list[Slot], retries: int) -> None:
        self.sweep, self.search, self.retries = sweep, search, retries
        self.free, self.jobs, self.slots = list(reversed(slots)), [], len(slots)
        self.elsewhere: list[Point] = []      # claimed by another launcher
        self.failures: Counter[str] = Counter()
        self.failed: dict[str, str] = {}      # identity -> last error
        self.histories: dict[str, History] = {}
        for point, state in search.done:
            if state.status != "skipped":
                self.history(point)           # early_terminate compares with these too
        self.screen = Screen(sweep, search, len(slots), measure(sweep, bool(slots[0].gpus)))
        self.bandit_at = self.elsewhere_at = 0.0
        self.enough = False                   # metric.target is reached

    def run(self) -> int:
        """Returns the exit code: 0, 1 where points failed, 128 + signal where interrupted."""
        with process.Stop() as stop:
            try:
                self.loop(stop)
            finally:
                for job in self.jobs:         # only where this launcher itself failed
                    process.send(job.child, signal.SIGTERM)
        self.screen.end(self.failed, stop.received)
        return 128 + stop.received if stop.received else int(bool(self.failed))

    def loop(self, stop: process.Stop) -> None:
        told = killed = False
        while True:
            self.reap(bool(stop.received))
            if not stop.received:
                self.fill()
                self.early_terminate()
                if not self.jobs and not self.elsewhere:
                    return
            elif not self.jobs:
                return
            elif not told:
                told = True
                self.screen.say("stopping: the runs save their state (Ctrl-C again stops them at "
                                "once)")
                number = stop.received if stop.received == signal.SIGUSR1 else signal.SIGTERM
                for job in self.jobs:
                    process.send(job.child, number)
            elif stop.again and not killed:
                killed = True
                for job in self.jobs:
                    process.kill_group(job.child)
            self.screen.progress(self.jobs)
            time.sleep(POLL_SEC)

    # -- starting ------------------------------------------------------------------------------

    def fill(self) -> None:
        """Give every free slot a point; those claimed elsewhere are looked at again later."""
        if self.elsewhere and time.monotonic() > self.elsewhere_at:
            self.elsewhere_at = time.monotonic() + ELSEWHERE_SEC
            waiting, self.elsewhere = self.elsewhere, []
            for point in waiting:
                self.begin(point) if self.free else self.elsewhere.append(point)
        while self.free and not self.enough:
            point = self.search.take()
            if point is None:
                return
            self.begin(point)

    def begin(self, point: Point) -> None:
        """Start a point, unless it is done or someone else has it."""
        claim = process.Claim.take(self.sweep.folder / ".claims" / point.identity)
        if claim is None or is_locked(point.folder):
            if claim:
                claim.release()
            self.elsewhere.append(point)
            return
        state = read_state(point)
        if state.done:                        # by another launcher, meanwhile
            claim.release()
            self.settle(point, state)
            return
        slot = self.free.pop()
        child = process.start(self.argv(point, slot), process.child_environment(slot, self.slots),
                              log_file(point.folder), claim)
        self.jobs.append(Job(point, child, slot, claim, time.monotonic(),
                             state.last.get("step") or 0, self.history(point)))

    def argv(self, point: Point, slot: Slot) -> list[str]:
        """The command line of a point: the file's own, and where its record goes."""
        track = point.spec.track
        where = [f"--track.{key}={getattr(track, key)}" for key in ("dir", "name", "group")]
        if slot.share > 1 and point.spec.device.memory_fraction is None:
            where.append(f"--device.memory_fraction={0.94 / slot.share:.3f}")
        return [*self.sweep.file.argv(point.values, sys.executable), *self.sweep.overrides, *where]

    # -- ending --------------------------------------------------------------------------------

    def reap(self, stopping: bool) -> None:
        for job in [j for j in self.jobs if j.child.poll() is not None]:
            self.jobs.remove(job)
            job.claim.release()
            self.free.append(job.slot)
            self.finish(job, job.child.returncode, stopping)

    def finish(self, job: Job, code: int, stopping: bool) -> None:
        """What the end of a process means for its point."""
        point, state = job.point, read_state(job.point)
        job.took = time.monotonic() - job.started
        moved = (state.last.get("step") or 0) > job.first_step
        if state.done:
            if state.status == "finished" and not job.first_step and not point.spec.train.branches:
                note(point, f"{TOOK} {job.took:.1f} s")
            self.settle(point, state, job)
        elif stopping:
            self.screen.say(f"{self.screen.mark(point)} saved at step "
                            f"{state.last.get('step') or 0}")
        elif code in PREEMPTED and moved:     # someone else stopped it: it goes on, no fault of its
            self.search.again(point)
        elif code == BAD_INPUT and "another process" in last_error(point, state):
            self.elsewhere.append(point)
        elif code == BAD_INPUT and self.impossible(point):
            self.screen.say(f"{self.screen.mark(point)} dropped: {point.dropped}")
            self.search.tell(point, State("skipped"))
        else:
            self.retry(point, state, code)

    def settle(self, point: Point, state: State, job: Job | None = None) -> None:
        """A point that is done: show it, tell the search."""
        metric, value = self.sweep.file.metric, state.last.get(self.sweep.file.metric.name)
        self.failed.pop(point.identity, None)
        self.history(point)
        self.search.tell(point, state)
        self.screen.done(point, state, value, job)
        if metric.target is not None and value is not None \
                and not metric.better(metric.target, value) and not self.enough:
            self.enough = True
            self.screen.say(f"{metric.name} has reached its target of {metric.target:g}: no "
                            "further points are started")

    def retry(self, point: Point, state: State, code: int) -> None:
        """A failed point: again, or reported."""
        self.failures[point.identity] += 1
        error = last_error(point, state)
        how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}" \
            + (", as for want of memory" if code == -signal.SIGKILL else "")
        note(point, f"{FAILED}: {how}")
        if code != BAD_INPUT and self.failures[point.identity] <= self.retries:
            self.screen.say(f"{self.screen.mark(point)} failed ({how}), is tried again: {error}")
            self.search.again(point)
            return
        self.failed[point.identity] = error
        self.search.tell(point, State("failed"))
        self.screen.say(f"{self.screen.mark(point)} FAILED ({how}): {error}\n"
                        f"{'':8}log: {log_file(point.folder)}")

    def impossible(self, point: Point) -> bool:
        """Whether the point, now that the data are prepared, turns out to be untrainable."""
        self.sweep.data.clear()
        try:
            point.dropped = self.sweep.point(point.number, point.values).dropped
        except UserError:
            return False
        return point.dropped is not None

    # -- early termination ---------------------------------------------------------------------

    def history(self, point: Point) -> History:
        metric = self.sweep.file.metric
        if point.identity not in self.histories:
            self.histories[point.identity] = History(point.folder / "metrics.jsonl", metric.name,
                                                     metric.goal == "maximize")
        return self.histories[point.identity]

    def early_terminate(self) -> None:
        """Stop the running points that Hyperband gives up; they save, and count as done."""
        stop = self.sweep.file.early_terminate
        if not stop or time.monotonic() < self.bandit_at:
            return
        self.bandit_at = time.monotonic() + BANDIT_SEC
        values = {name: history.read() for name, history in self.histories.items()}
        running = {job.point.identity: job for job in self.jobs if not job.ended}
        for name, why in to_stop(values, list(running), stop).items():
            job = running[name]
            job.ended = f"{self.sweep.file.metric.name} {why}"
            write_whole(job.point.folder / STOPPED, job.ended + "\n")
            process.send(job.child, signal.SIGTERM)


def note(point: Point, line: str) -> None:
    """A line of the launcher's own at the end of a point's log."""
    with open(log_file(point.folder), "a") as log:
        log.write(f"\n{line}\n")
