"""The verbs that take a sweep file: what each does, in order."""
from __future__ import annotations

import argparse
import sys

from slm.errors import UserError
from slm.screen import several
from slm.sweep import machine, plan as planning, status as standing
from slm.sweep.machine import Slot
from slm.sweep.points import Point, Sweep


def open_sweep(options: argparse.Namespace, overrides: list[str]) -> tuple[Sweep, list[Point]]:
    """The sweep with its points; says what is worth a note. Raises UserError."""
    sweep = Sweep(options.file, overrides, options.seed)
    points = sweep.points()
    refuse_hopeless(sweep, points)
    for note in [*sweep.file.notes, *notes(sweep, points)]:
        print(f"note: {note}", file=sys.stderr)
    return sweep, points


def refuse_hopeless(sweep: Sweep, points: list[Point]) -> None:
    """Raises UserError where no point of the list can be trained. The draws that stand for a bayes
    search say nothing of its other points."""
    if sweep.file.method == "bayes" or not all(p.dropped for p in points):
        return
    reasons = list(dict.fromkeys(p.dropped.replace("\n", "; ") for p in points))
    more = f"; and {several(len(reasons) - 3, 'reason')} more" if len(reasons) > 3 else ""
    raise UserError(f"{sweep.file.path}: none of {several(len(points), 'point')} can be trained: "
                    + "; ".join(reasons[:3]) + more)


def slots_for(options: argparse.Namespace, sweep: Sweep, points: list[Point]) -> list[Slot]:
    names = {p.spec.device.name for p in points if p.spec}
    machine.check_device(names)
    return machine.make_slots(names == {"cpu"}, options.slots, options.runs_per_gpu, sweep.world)


def notes(sweep: Sweep, points: list[Point]) -> list[str]:
    """What is no fault and yet hardly meant."""
    out = []
    stop = sweep.file.early_terminate
    logged = [p.plan.steps // p.plan.eval_interval + 1 if p.plan.eval_interval else 2
              for p in points if not p.dropped]
    if stop and logged and sweep.file.metric.name.startswith("val/"):
        from slm.sweep.bandit import bands
        first = min(bands(stop), default=None)
        if first is None or first >= max(logged):
            out.append(f"early_terminate never acts: its first band is at {first} values of "
                       f"{sweep.file.metric.name}, a run logs {max(logged)}")
    return out


def check(options: argparse.Namespace, overrides: list[str]) -> int:
    sweep, points = open_sweep(options, overrides)
    machine.check_device({p.spec.device.name for p in points if p.spec})
    dropped = sum(bool(p.dropped) for p in points)
    print(f"{sweep.file.path}: sound: {sweep.file.method}, {several(len(points), 'point')}"
          + (f", {dropped} of which can't be trained (`plan` says why)" if dropped else ""))
    return 0


def plan(options: argparse.Namespace, overrides: list[str]) -> int:
    sweep, points = open_sweep(options, overrides)
    slots = slots_for(options, sweep, points)
    planning.drop_too_large(points, slots)
    refuse_hopeless(sweep, points)
    print(planning.as_json(sweep, points, slots) if options.json else
          "\n".join(planning.describe(sweep, points, slots, options.all)))
    return 0


def status(options: argparse.Namespace, overrides: list[str]) -> int:
    sweep = Sweep(options.file, overrides, options.seed, plans=False)
    points = known_points(sweep)
    print(standing.as_json(sweep, points) if options.json else
          "\n".join(standing.describe(sweep, points, options.all)))
    return 0


def known_points(sweep: Sweep) -> list[Point]:
    """The points of a sweep; of a bayes search those that were proposed so far."""
    if sweep.file.method != "bayes":
        return sweep.points()
    paths = {".".join(path): path for path in sweep.file.parameters}
    rows = sweep.stored().get("points", [])
    return [sweep.point(row["point"], {paths[k]: v for k, v in row["values"].items()})
            for row in rows if row["values"].keys() == paths.keys()]


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from slm.sweep import process
    process.require_posix()
    sweep, points = open_sweep(options, overrides)
    slots = slots_for(options, sweep, points)
    from slm.sweep.launch import Launcher
    from slm.sweep.search import Search, alone, remember
    if sweep.file.method == "bayes":
        if options.point:
            raise UserError("--point: the points of method: bayes are not known beforehand")
        from slm.sweep.bayes import Bayes
        search = Bayes(sweep, slots)
    else:
        planning.drop_too_large(points, slots)
        refuse_hopeless(sweep, points)
        refuse_half_written(points)
        mine = [chosen(points, options.point)] if options.point else points
        with alone(sweep):
            remember(sweep, points)
        points, slots = mine, slots[:1] if options.point else slots
        search = Search(sweep, points)
        for line in planning.dropped_lines(points)[1:]:
            print(line)
    return Launcher(sweep, search, slots, options.retries).run()


def chosen(points: list[Point], number: int) -> Point:
    """The point of that number. Raises UserError where there is none or it was dropped."""
    if number > len(points):
        raise UserError(f"--point={number}: the sweep has {len(points)} points")
    point = points[number - 1]
    if point.dropped:
        raise UserError(f"--point={number}: was dropped: {point.dropped}")
    return point


def refuse_half_written(points: list[Point]) -> None:
    """Raises UserError for run folders whose spec.yaml is broken or of another run: training
    would end at once, after others have been waited for."""
    faults = []
    for point in points:
        for folder in [] if point.dropped else [point.folder, *point.branch_folders()]:
            try:
                with open(folder / "spec.yaml", "rb") as f:
                    head = f.read(100).decode(errors="replace")
            except FileNotFoundError:
                continue
            except OSError as e:
                faults.append(f"{folder}: can't be read: {e.strerror}")
                continue
            if not head.startswith(f"# identity {folder.name.rpartition('-')[2]}"):
                faults.append(f"{folder}: half-written or of another spec (spec.yaml does not begin"
                              f" with the identity of this run): remove that folder, and the point "
                              "is trained anew")
    if faults:
        raise UserError("\n".join(faults))


def slurm(options: argparse.Namespace, overrides: list[str]) -> int:
    from slm.sweep.slurm import write_script
    sweep, points = open_sweep(options, overrides)
    return write_script(options, overrides, sweep, points)
