"""method: bayes without W&B's server, by Optuna's TPE (an optional extra)."""
from __future__ import annotations

from collections import deque

from slm.errors import UserError
from slm.sweep import space
from slm.sweep.machine import Slot
from slm.sweep.plan import drop_too_large
from slm.sweep.points import STATE, Point, Sweep
from slm.sweep.search import Search, alone, remember
from slm.sweep.status import State, read_state


class Bayes(Search):
    """Searches the quantiles of each parameter, as W&B's own engine does, and categories as such.

    Proposals are kept in sweep.json and results are read from the run folders, so that a search
    goes on after a crash and several launchers share it."""

    def __init__(self, sweep: Sweep, slots: list[Slot]) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError("method: bayes without W&B's server needs Optuna: pip install optuna "
                            "(or use method: random)") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.sweep, self.slots = optuna, sweep, slots
        self.points: list[Point] = []
        self.states: dict[int, State] = {}    # of the points that have ended
        self.total = sweep.file.run_cap
        with alone(sweep):
            self.refresh()
        self.done = [(p, self.states[p.number]) for p in self.points if p.number in self.states]
        self.todo = deque(p for p in self.points if p.number not in self.states)

    def distributions(self) -> dict:
        d, out = self.optuna.distributions, {}
        for path, p in self.sweep.file.parameters.items():
            if "values" in p:
                out[".".join(path)] = d.CategoricalDistribution(list(range(len(p["values"]))))
            elif "value" not in p:
                out[".".join(path)] = d.FloatDistribution(0.0, 1.0)
        return out

    def values(self, chosen: dict[str, float]) -> dict:
        """The values that go with what Optuna chose: an index, or a quantile."""
        out = {}
        for path, p in self.sweep.file.parameters.items():
            u = chosen.get(".".join(path))
            out[path] = p["value"] if "value" in p else p["values"][u] if "values" in p \
                else space.quantile(p, min(u, 1 - 1e-9))
        return out

    def refresh(self) -> None:
        """Take over the proposals of sweep.json that are not known here yet."""
        for row in self.sweep.stored().get("points", [])[len(self.points):]:
            chosen = row.get("quantiles") or {}
            if chosen.keys() != self.distributions().keys():
                raise UserError(f"{self.sweep.folder / STATE}: is of other parameters than "
                                f"{self.sweep.file.path}: move that folder away, or give the sweep "
                                "another name:")
            self.add(chosen)

    def add(self, chosen: dict[str, float]) -> Point:
        """A proposal becomes a point."""
        point = self.sweep.point(len(self.points) + 1, self.values(chosen), chosen)
        if not point.dropped:
            drop_too_large([point], self.slots)
            same = next((p for p in self.points if p.identity == point.identity), None)
            if same:
                point.dropped = f"the same run as point {same.number}"
        state = State("skipped") if point.dropped else read_state(point)
        if state.done:
            self.states[point.number] = state
        self.points.append(point)
        return point

    def propose(self) -> dict[str, float]:
        """What to try next, given all that is known: a pure function of seed and results."""
        count, ended = len(self.points), self.optuna.trial.TrialState
        study = self.optuna.create_study(
            direction=self.sweep.file.metric.goal,
            sampler=self.optuna.samplers.TPESampler(
                seed=self.sweep.seed + count, constant_liar=True,
                n_startup_trials=max(4, self.total // 4)))
        for point in self.points:
            state = self.states.get(point.number)
            value = state and state.last.get(self.sweep.file.metric.name)
            good = value is not None and state.status in ("finished", "stopped")
            kind = ended.RUNNING if state is None else ended.COMPLETE if good else ended.FAIL
            study.add_trial(self.optuna.trial.create_trial(
                state=kind, value=value if good else None, params=point.quantiles,
                distributions=self.distributions()))
        return dict(study.ask(self.distributions()).params)

    def take(self) -> Point | None:
        while not self.todo and len(self.points) < self.total:
            with alone(self.sweep):
                known = len(self.points)
                self.refresh()
                if len(self.points) == known:  # else another launcher proposed these
                    self.add(self.propose())
                    remember(self.sweep, self.points)
            self.todo.extend(p for p in self.points[known:] if p.number not in self.states)
        return self.todo.popleft() if self.todo else None

    def tell(self, point: Point, state: State) -> None:
        self.states[point.number] = state

    def left(self) -> int:
        return len(self.todo) + self.total - len(self.points)
