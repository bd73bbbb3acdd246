"""Which point comes next in a grid or a random search (bayes: slm/sweep/bayes.py)."""
from __future__ import annotations

import json
import time
from collections import deque
from contextlib import contextmanager
from typing import Iterator

from slm.files import write_whole
from slm.sweep.plan import order
from slm.sweep.points import STATE, Point, Sweep
from slm.sweep.process import Claim
from slm.sweep.status import State, read_state


class Search:
    """Hands out points. total: how many there are in all (dropped ones not counted)."""

    def __init__(self, sweep: Sweep, points: list[Point]) -> None:
        states = {p.number: read_state(p) for p in points if not p.dropped}
        self.sweep, self.points = sweep, points
        self.done = [(p, states[p.number]) for p in points
                     if not p.dropped and states[p.number].done]
        self.todo = deque(order([p for p in points
                                 if not p.dropped and not states[p.number].done]))
        self.total = len(states)

    def take(self) -> Point | None:
        """The next point; None where there is none (yet)."""
        return self.todo.popleft() if self.todo else None

    def again(self, point: Point) -> None:
        """A point that is to be run once more."""
        self.todo.append(point)

    def tell(self, point: Point, state: State) -> None:
        """The end of a point."""

    def left(self) -> int:
        """Points not yet handed out."""
        return len(self.todo)


@contextmanager
def alone(sweep: Sweep) -> Iterator[None]:
    """Of all launchers and array tasks of a sweep, one at a time changes sweep.json."""
    while (claim := Claim.take(sweep.folder / ".claims" / "search")) is None:
        time.sleep(0.02)
    try:
        yield
    finally:
        claim.release()


def remember(sweep: Sweep, points: list[Point]) -> None:
    """Write sweep.json: the seed, and every point with its values and its run folder. The caller
    is alone(sweep)."""
    rows = [{"point": p.number, "values": {".".join(path): v for path, v in p.values.items()},
             "run": p.folder.name if p.folder else None, "dropped": p.dropped,
             **({"quantiles": p.quantiles} if p.quantiles is not None else {})} for p in points]
    head = {"name": sweep.file.name, "file": sweep.file.path.name, "method": sweep.file.method,
            "seed": sweep.seed}
    text = json.dumps(head)[:-1] + ', "points": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n"
    write_whole(sweep.folder / STATE, text)
