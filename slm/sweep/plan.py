"""`plan`: every point with its cost, what is dropped and why, and the totals."""
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from slm.plan import Plan, training_memory
from slm.screen import several
from slm.sweep import machine
from slm.sweep.estimate import Times, makespan, measure
from slm.sweep.machine import Slot
from slm.sweep.points import Point, Sweep, shown
from slm.sweep.table import count, cut, duration, memory, numbers, table

ROWS = 40
CUDA_CONTEXT_BYTES = 600_000_000  # of each process, beside what its allocator holds
EFFECTIVE = {"batch": "batch now", "lr": "lr now", "muon_lr": "muon_lr now",
             "weight_decay": "decay now"}         # as slm/rules.py names them -> heads of the table
SHOWN = ("model.n_layer", "model.n_head", "model.n_embd", "train.tokens")  # by columns of the table
MEASURES = ("layers", "heads", "width", "N", "total", "tokens")
COSTS = ("FLOPs", "time", "memory")


def point_memory(point: Point, on_gpu: bool) -> int:
    """Estimated bytes of the device's memory that a training process takes."""
    total = training_memory(point.spec, point.plan, "cuda" if on_gpu else "cpu")["total"]
    return total + (CUDA_CONTEXT_BYTES if on_gpu else 0)


def drop_too_large(points: list[Point], slots: list[Slot]) -> None:
    """Drop each point whose memory estimate is beyond its slot's device."""
    slot, on_gpu = slots[0], bool(slots[0].gpus)
    if on_gpu:
        room, where = slot.gpus[0].memory_bytes // slot.share, slot.gpus[0].name
        where += f", shared by {slot.share} runs" if slot.share > 1 else ""
    else:
        room, where = machine.memory_bytes(), "this machine"
    for point in points:
        if not point.dropped and point_memory(point, on_gpu) > room:
            point.dropped = (f"needs about {memory(point_memory(point, on_gpu))}, {where} has "
                             f"{memory(room)}: a smaller train.micro_batch "
                             f"(now {point.plan.micro_batch}) or model")


def order(points: list[Point]) -> list[Point]:
    """The order of running: equal shapes side by side, so that they share what is compiled; the
    costliest shape first, so that no long run is left alone at the end."""
    largest: dict[tuple, float] = {}
    for p in points:
        largest[p.shape] = max(largest.get(p.shape, 0.0), p.flops)
    return sorted(points, key=lambda p: (-largest[p.shape], p.shape, -p.flops, p.number))


def describe(sweep: Sweep, points: list[Point], slots: list[Slot], everything: bool) -> list[str]:
    """The lines of `plan`."""
    todo = [p for p in points if not p.dropped]
    on_gpu, search = bool(slots[0].gpus), sweep.file.method
    times = measure(sweep, on_gpu)
    lines = [f"{sweep.file.path}: {search}, {several(len(points), 'point')}, runs in "
             f"{sweep.folder}"]
    fixed = [f"{key.split('.')[-1]}={shown(value)}" for key, value in sweep.constants().items()]
    lines += [f"with {' '.join(fixed)}"] if fixed else []
    if search == "bayes":
        lines.append("bayes chooses points as results come in: these are random draws that show "
                     "what such points cost")
    ruled = [name for name in EFFECTIVE if any(name in p.plan.rules for p in todo)]
    rows = [row(sweep, p, times, on_gpu, ruled) for p in (todo if everything else todo[:ROWS])]
    if rows:
        lines += ["", *table(head(sweep, ruled), rows)]
    if len(todo) > len(rows):
        lines.append(f"... {len(todo) - len(rows)} more: --all shows them, --json writes them")
    lines += dropped_lines(points)
    if todo:
        lines += ["", *total_lines(todo, slots, times)]
    return lines


def swept(sweep: Sweep) -> list[tuple[str, ...]]:
    """The swept keys that have no column of their own in the table."""
    return [path for path in sweep.varying() if ".".join(path) not in SHOWN]


def effective(plan: Plan) -> dict[str, float | None]:
    """What is trained with where rules of the spec have set it (slm/rules.py)."""
    return {"batch": plan.tokens_per_step, "lr": plan.optim.lr, "muon_lr": plan.optim.muon_lr,
            "weight_decay": plan.optim.weight_decay}


def head(sweep: Sweep, ruled: list[str]) -> list[str]:
    """ruled: which of EFFECTIVE have a column. A swept key is named in full where its last part is
    the name of another column."""
    keys = [".".join(path) for path in swept(sweep)]
    short = [key.rpartition(".")[2] for key in keys]
    taken = Counter([*short, *MEASURES, *COSTS])
    return ["#", *[cut(key if taken[name] > 1 else name, 24) for key, name in zip(keys, short)],
            *MEASURES, *[EFFECTIVE[name] for name in ruled], *COSTS]


def row(sweep: Sweep, point: Point, times: Times, on_gpu: bool, ruled: list[str]) -> list[str]:
    c, params, now = point.plan.config, point.plan.params, effective(point.plan)
    return [str(point.number), *[cut(shown(point.values[path]), 24) for path in swept(sweep)],
            str(c.n_layer), str(c.n_head), str(c.n_embd), count(params["matmul"]),
            count(params["total"]), count(point.tokens),
            *[f"{now[name]:,}" if name == "batch" else f"{now[name]:.3g}" for name in ruled],
            f"{point.flops:.2e}",
            duration(times.seconds(point)), memory(point_memory(point, on_gpu))]


def dropped_lines(points: list[Point]) -> list[str]:
    """The dropped points, those with one reason together."""
    reasons: dict[str, list[int]] = {}
    for p in points:
        if p.dropped:
            reasons.setdefault(p.dropped, []).append(p.number)
    if not reasons:
        return []
    out = ["", f"dropped {sum(map(len, reasons.values()))} of {len(points)}:"]
    out += [f"  #{numbers(n)}  {reason}" for reason, n in list(reasons.items())[:ROWS]]
    return out + ([f"  ... and {len(reasons) - ROWS} reasons more"] if len(reasons) > ROWS else [])


def total_lines(todo: list[Point], slots: list[Slot], times: Times) -> list[str]:
    on_gpu, seconds = bool(slots[0].gpus), [times.seconds(p) for p in order(todo)]
    where = "GPU" if on_gpu else "CPU slot"
    wall = makespan(seconds, len(slots))
    out = [f"in all {several(len(todo), 'run')}, {count(sum(p.tokens for p in todo))} tokens, "
           f"{sum(p.flops for p in todo):.2e} FLOPs: about {duration(sum(seconds), 2)} of one "
           f"{where}, {duration(wall, 2)} on the {several(len(slots), 'slot')} here",
           f"times {times.reason}; N = parameters in matmuls, head included"]
    together = sum(sorted((point_memory(p, on_gpu) for p in todo), reverse=True)[:len(slots)])
    if not on_gpu and together > machine.memory_bytes():
        out.append(f"note: {len(slots)} of the largest at once need {memory(together)} of this "
                   f"machine's {memory(machine.memory_bytes())}: give fewer --slots")
    return out


def as_json(sweep: Sweep, points: list[Point], slots: list[Slot]) -> str:
    on_gpu, out = bool(slots[0].gpus), []
    times = measure(sweep, on_gpu)
    for p in points:
        facts = {"point": p.number, "values": {".".join(k): v for k, v in p.values.items()},
                 "dropped": p.dropped}
        if not p.dropped:
            c = p.plan.config
            facts |= {"identity": p.identity, "folder": Path(p.folder).as_posix(),
                      "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd,
                      "params": p.plan.params, "tokens": p.tokens, "steps": p.plan.steps,
                      "flops": p.flops, "time_sec": times.seconds(p),
                      "memory_bytes": point_memory(p, on_gpu),
                      "batch_tokens": p.plan.tokens_per_step, "lr": p.plan.optim.lr,
                      "muon_lr": p.plan.optim.muon_lr, "weight_decay": p.plan.optim.weight_decay}
        out.append(facts)
    return json.dumps({"name": sweep.file.name, "method": sweep.file.method,
                       "time_estimate": times.reason, "slots": len(slots), "points": out}, indent=1)
