"""The points of a sweep: for each the values, the resolved spec, its identity and its cost.

A point's arguments go through the very parser that run.py uses, so that what is planned is what
is trained. The base spec is read once; a thousand points take a second.
"""
from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Iterator

from slm.errors import ImpossiblePoint, UserError
from slm.keys import fields, nearest
from slm.layers import COMMAND_LINE, Layer, parse_arguments, read_layers
from slm.plan import Plan, make_plan
from slm.schema import Spec
from slm.spec import build, run_folder
from slm.sweep import command, space
from slm.sweep.file import SweepFile, read_sweep

MOST_POINTS = 10_000
STATE = "sweep.json"


@dataclass
class Point:
    """One run of a sweep. number counts from 1; dropped: why it can't be trained, or None."""
    number: int
    values: dict[tuple[str, ...], Any]
    label: str = ""                            # what varies: 'n_embd=128 lr=0.001'
    spec: Spec | None = None
    identity: str = ""
    folder: Path | None = None
    dropped: str | None = None
    quantiles: dict[str, float] | None = None  # of a bayes proposal: what the search chose
    make: Callable[[], Plan] | None = None

    @cached_property
    def plan(self) -> Plan:
        """Its cost. Raises ImpossiblePoint where the point is to be dropped."""
        return self.make()

    def branch_folders(self) -> list[Path]:
        """The run folders of its branches (train.branches), shortest horizon first."""
        out = []
        for tokens in self.spec.train.branches or []:
            child = self.spec.model_copy(deep=True)
            child.train.tokens, child.train.branches = tokens, []
            out.append(run_folder(child))
        return out

    @property
    def tokens(self) -> int:
        """Tokens trained, the decays of its branches included."""
        spec = self.spec
        return self.plan.tokens + round(sum(spec.train.branches or []) * (spec.optim.decay or 0))

    @property
    def flops(self) -> float:
        return self.tokens * self.plan.flops_per_token["matmul"]

    @property
    def shape(self) -> tuple:
        """What a compiled step depends on."""
        return (*vars(self.plan.config).values(), self.plan.micro_batch)


class Sweep:
    """A checked sweep file with the base spec read. folder: where its runs lie.

    overrides: further --section.key=value arguments for every point; plans: make every point's
    plan at once (else only where it decides whether the point is dropped).
    Raises UserError for any fault of the file, its base spec or the overrides."""

    def __init__(self, path: str | Path, overrides: list[str] | None = None,
                 seed: int | None = None, plans: bool = True) -> None:
        self.file: SweepFile = read_sweep(Path(path))
        self.overrides, self.plans = list(overrides or []), plans
        self.layers: dict[tuple, list[Layer]] = {}
        self.data: dict[str, dict] = {}
        self.world = command.processes_per_run(self.file.command)
        files, layer = parse_arguments(self.arguments({}))
        self.check_constants(files, layer)
        root = next((each.values["track.dir"] for each in reversed(self.read(tuple(files)))
                     if "track.dir" in each.values), "runs")
        given = layer.values.get("track.dir")
        self.folder = Path(given or Path(root) / self.file.name).expanduser()
        self.group = layer.values.get("track.group", self.file.name)
        self.seed = self.stored().get("seed", 0) if seed is None else seed

    def check_constants(self, files: list[Path], layer: Layer) -> None:
        """Faults of what every point's command line holds beside the swept values. An override may
        replace a constant of the file, not what varies."""
        extra, given = parse_arguments(self.overrides)
        if extra:
            raise UserError(f"{extra[0]}: not understood; an override looks like --train.steps=10")
        for key in given.values.keys() - fields().keys():
            raise UserError(f"{COMMAND_LINE}: {key}: there is no such option or key"
                            f"{nearest(key, list(fields()))}")
        if not files:
            raise UserError(f"{self.file.path}: command: gives no base spec, as in "
                            "experiments/base.yaml")
        varying = {".".join(path) for path in self.varying()}
        fixed = {".".join(path) for path in self.file.parameters} - varying
        both = [key for key in layer.values for name in (varying if key in given.values
                                                         else varying | fixed)
                if key == name or key.startswith(name + ".")]
        if both:
            raise UserError(f"{self.file.path}: {', '.join(both)}: swept, and given in the command "
                            "as well: only one of the two can hold")

    def read(self, files: tuple[Path, ...]) -> list[Layer]:
        if files not in self.layers:
            self.layers[files] = [layer for file in files for layer in read_layers(file)]
        return self.layers[files]

    # -- the record of a sweep -----------------------------------------------------------------

    def stored(self) -> dict:
        """What sweep.json remembers: the seed of random and bayes, and bayes' proposals."""
        try:
            return json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as e:
            raise UserError(f"{self.folder / STATE}: can't be read ({e}); remove it to start the "
                            "search anew (runs that are done are kept)") from None

    # -- points --------------------------------------------------------------------------------

    def arguments(self, values: dict) -> list[str]:
        return self.file.arguments(values) + self.overrides

    def point(self, number: int, values: dict, quantiles: dict | None = None) -> Point:
        """The point with these values. Raises UserError for a fault that is not this point's
        alone; a combination that can't be trained gives a dropped point."""
        point = Point(number, values, self.label(values), quantiles=quantiles)
        files, layer = parse_arguments(self.arguments(values))
        layer.label = str(self.file.path)
        try:
            spec = point.spec = build([*self.read(tuple(files)), layer])
            spec.track.dir, spec.track.group = str(self.folder), self.group
            spec.track.name = run_name(self.file.name, point.label)
            point.folder = run_folder(spec)
            point.identity = point.folder.name.rpartition("-")[2]
            point.make = lambda: make_plan(spec, *self.data_facts(spec), self.world)
            if self.plans or not point.folder.exists():  # one that has begun was not dropped
                point.plan
        except ImpossiblePoint as e:
            point.dropped = str(e).removeprefix(f"{self.file.path}: ")
        return point

    def varying(self) -> list[tuple[str, ...]]:
        """The swept parameters without the constants among them."""
        return [path for path, p in self.file.parameters.items()
                if space.distribution(p) != "constant"]

    def constants(self) -> dict[str, Any]:
        """The parameters that do not vary, as far as no override replaces them."""
        replaced = parse_arguments(self.overrides)[1].values
        return {".".join(path): p["value"] for path, p in self.file.parameters.items()
                if "value" in p and ".".join(path) not in replaced}

    def label(self, values: dict) -> str:
        return " ".join(f"{path[-1].split('.')[-1]}={shown(values[path])}"
                        for path in self.varying())

    def data_facts(self, spec: Spec) -> tuple[int, int | None]:
        """(vocabulary, training tokens if the data are prepared) of a spec's data."""
        meta = self.prepared(spec)
        if meta["vocab_size"] is None:
            raise UserError(f"data.tokenizer = {spec.data.tokenizer}: its vocabulary is known only "
                            "once the data are prepared: python -m slm.prepare <spec>")
        return meta["vocab_size"], meta["train"]["tokens"]

    def eval_tokens(self, spec: Spec) -> int:
        """Tokens that an evaluation reads: no more than there are, where the data are prepared."""
        return min(spec.data.eval_tokens, self.prepared(spec)["val"]["tokens"] or 10**12)

    def prepared(self, spec: Spec) -> dict:
        """meta.json of a spec's data; without it, what is known beforehand."""
        key = spec.data.model_dump_json()
        if key not in self.data:
            from slm.prepare import find_prepared
            from slm.tokenizer import nominal_vocab
            self.data[key] = find_prepared(spec.data) or {
                "vocab_size": nominal_vocab(spec.data.tokenizer), "train": {"tokens": None},
                "val": {"tokens": None}}
        return self.data[key]

    def drawn(self) -> Iterator[dict]:
        """The values of each point of a grid or a random search, in order."""
        parameters = self.file.parameters
        if self.file.method == "grid":
            lists = [space.grid_values(p) for p in parameters.values()]
            cap = self.file.run_cap or MOST_POINTS
            for row in itertools.islice(itertools.product(*lists), cap):
                yield dict(zip(parameters, row))
            return
        source = random.Random(self.seed)  # the same seed, the same list, however long
        for _ in range(self.file.run_cap):
            yield {path: space.quantile(p, source.random()) for path, p in parameters.items()}

    def points(self) -> list[Point]:
        """Every point of a grid or a random search; for bayes, random draws that show the cost.

        Raises UserError: a grid too large to be meant, or faults that points share."""
        size = math.prod(space.grid_size(p) for p in self.file.parameters.values()) \
            if self.file.method == "grid" else self.file.run_cap
        if min(size, self.file.run_cap or size) > MOST_POINTS:
            raise UserError(f"{self.file.path}: {size:,} points: give run_cap: (at most "
                            f"{MOST_POINTS:,}), or fewer values")
        points, faults, seen = [], {}, {}
        for number, values in enumerate(self.drawn(), 1):
            try:
                point = self.point(number, values)
            except UserError as e:
                faults.update(dict.fromkeys(str(e).splitlines(), number))
                continue
            if not point.dropped and point.identity in seen:
                point.dropped = f"the same run as point {seen[point.identity]}"
            elif not point.dropped:
                seen[point.identity] = number
            points.append(point)
        if faults:
            lines = list(faults)
            more = [f"... and {len(lines) - 20} faults more"] if len(lines) > 20 else []
            raise UserError("\n".join(lines[:20] + more))
        return points


def run_name(sweep: str, label: str) -> str:
    """The readable part of a run's name: 'n_embd128-lr0.001'."""
    text = label.replace("=", "").replace(" ", "-")
    return text if text and len(text) <= 60 else sweep


def shown(value: Any) -> str:
    """A value in a few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ",".join(f"{k.split('.')[-1]}={shown(v)}" for k, v in value.items())
    if is_large(value):
        return f"{value:.4g}" if float(f"{value:.4g}") == value else str(value)
    return str(value)


def is_large(value: Any) -> bool:
    return space.is_integer(value) and abs(value) >= 1_000_000
