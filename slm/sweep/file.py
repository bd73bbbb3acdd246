"""A sweep file: W&B's own schema and nothing else, read and checked with every fault at once.

The rules are those of W&B's published schema (github.com/wandb/sweeps, config/schema.json, 0.3.0),
and those that bite later: numbers that YAML reads as text, searches without an end, metrics that
are never logged, keys that the program does not know.
"""
from __future__ import annotations

import difflib
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slm.errors import UserError
from slm.keys import coerce, expected, fields, kinds_of, literal, nearest, section_names
from slm.layers import flatten, read_yaml
from slm.sweep import command, space

TOP_LEVEL = {"program", "method", "parameters", "command", "metric", "early_terminate", "run_cap",
             "name", "description", "project", "entity", "controller", "apiVersion", "kind"}
ELSEWHERE = {"job", "image_uri", "scheduler", "metrics"}  # sound W&B, but needs W&B's services
METHODS = ("grid", "random", "bayes")
METRICS = ["val/loss", "val/bits_per_byte", "val/perplexity", "train/loss", "tokens_per_sec",
           "mfu", "grad_norm", "val/floor", "val/loss_se"]
SCIENTIFIC = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)[eE][+-]?\d+")


@dataclass
class Metric:
    name: str = "val/loss"
    goal: str = "minimize"
    target: float | None = None

    def better(self, a: float, b: float) -> bool:
        return a < b if self.goal == "minimize" else a > b


@dataclass
class SweepFile:
    """A sound sweep file. parameters: path of names -> its distribution, in the file's order."""
    path: Path
    name: str
    method: str
    program: str
    command: list[str]
    parameters: dict[tuple[str, ...], dict]
    metric: Metric
    early_terminate: dict | None
    run_cap: int | None
    notes: list[str] = field(default_factory=list)

    def arguments(self, values: dict[tuple[str, ...], Any]) -> list[str]:
        """What the program is given for these values: all that follows it in the command."""
        start = command.program_index(self.command, self.program) + 1
        return command.expand(self.command[start:], self.fill(values))

    def argv(self, values: dict[tuple[str, ...], Any], interpreter: str) -> list[str]:
        """The whole command line for these values, with this Python for ${interpreter}."""
        fill = {**self.fill(values), "env": [], "interpreter": [interpreter],
                "program": [self.program]}
        return command.expand(self.command, fill)

    @staticmethod
    def fill(values: dict[tuple[str, ...], Any]) -> dict[str, list[str]]:
        given = command.nested(values)
        return {name: make(given) for name, make in command.ARGS.items()}


def read_sweep(path: Path) -> SweepFile:
    """A checked sweep file. Raises UserError with one line a fault: file, line, key, mend."""
    raw = read_yaml(path)
    checker = Checker(path, raw)
    checker.check()
    if checker.faults:
        raise UserError("\n".join(dict.fromkeys(checker.faults)))
    metric = Metric(**{k: v for k, v in (raw.get("metric") or {}).items()
                       if k in ("name", "goal", "target")})
    name = re.sub(r"[^\w.-]+", "-", str(raw.get("name") or path.stem)).strip("-")
    return SweepFile(path, name, raw["method"], raw["program"], checker.command,
                     checker.parameters, metric, raw.get("early_terminate"), raw.get("run_cap"),
                     checker.notes)


class Checker:
    """Goes through a sweep file and collects `faults`, `notes` and the flattened `parameters`."""

    def __init__(self, path: Path, raw: dict) -> None:
        self.path, self.raw = path, raw
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.parameters: dict[tuple[str, ...], dict] = {}
        self.command: list[str] = list(command.DEFAULT)
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        self.lines = dict(node_lines(root)) if root else {}

    def fault(self, keys: tuple, text: str) -> None:
        known = next((keys[:n] for n in range(len(keys), 0, -1) if keys[:n] in self.lines), ())
        line = f" line {self.lines[known]}" if known else ""
        shown = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys).lstrip(".")
        self.faults.append(f"{self.path}{line}: {shown + ': ' if shown else ''}{text}")

    def check(self) -> None:
        for key in self.raw:
            if key in ELSEWHERE:
                self.fault((key,), "needs W&B's own services; here a sweep is grid, random or "
                                   "bayes over program:")
            elif key not in TOP_LEVEL:
                self.fault((key,), f"W&B's schema has no such key{meant(str(key))}; settings of "
                                   "the program belong in command: or parameters:")
        self.check_program()
        self.check_parameters()
        self.check_search()
        self.check_metric()
        self.check_early_terminate()

    def check_program(self) -> None:
        program = self.raw.get("program")
        if not isinstance(program, str):
            self.fault(("program",), "missing: the script to run, as in program: run.py")
            program = "run.py"
        elif not Path(program).is_file():
            self.fault(("program",), f"{program}: there is no such file here; start from the "
                                     "folder that has it")
        items = self.raw.get("command", self.command)
        if not isinstance(items, list):
            self.fault(("command",), 'should be a list, as in ["${env}", "${interpreter}", '
                                     '"${program}", experiments/base.yaml, "${args}"]')
            return
        self.command = [str(item) for item in items]
        for text in command.problems(self.command, program):
            self.fault(("command",), text)
        start = command.program_index(self.command, program)
        for item in self.command[start + 1:] if start is not None else ():
            if item.endswith((".yaml", ".yml")) and "=" not in item and not Path(item).is_file():
                near = ", ".join(sorted(map(str, Path(item).parent.glob("*.yaml")))) or "none"
                self.fault(("command",), f"{item}: there is no such spec (there: {near})")
        if "${interpreter}" in self.command and not shutil.which("python"):
            self.notes.append("W&B's agent runs ${interpreter} as `python`, which is not on the "
                              "PATH: activate the virtual environment before `wandb agent`, or "
                              "use `python -m slm.sweep agents`, which sees to it")

    def check_parameters(self) -> None:
        parameters = self.raw.get("parameters")
        if not isinstance(parameters, dict) or not parameters:
            self.fault(("parameters",), "missing or empty: what is swept, as in "
                                        "model.n_layer: {values: [2, 4, 8]}")
            return
        self.walk(parameters, (), ("parameters",))
        for path, p in self.parameters.items():
            self.check_parameter(path, p)

    def walk(self, level: dict, path: tuple[str, ...], keys: tuple) -> None:
        for name, p in level.items():
            if isinstance(p, dict) and "parameters" in p:
                if isinstance(p["parameters"], dict) and p["parameters"] and len(p) == 1:
                    self.walk(p["parameters"], (*path, str(name)), (*keys, name, "parameters"))
                else:
                    self.fault((*keys, name), "a nested group holds parameters: and nothing else")
            else:
                self.parameters[(*path, str(name))] = p

    def check_parameter(self, path: tuple[str, ...], p: Any) -> None:
        key, keys = ".".join(path), self.keys_of(path)
        found = [f"YAML reads {text} as text, and W&B would sweep that text: write "
                 f"{yaml_number(text)}" for text in scientific(key, p)] or space.problems(p)
        if key not in fields() and key not in section_names():
            found = [f"there is no such key{nearest(key, list(fields()))}"]
        for text in found:
            self.fault(keys, text)
        if found:
            return
        kind, method = space.distribution(p), self.raw.get("method")
        if method == "grid" and kind not in space.IN_A_GRID:
            self.fault(keys, f"a grid can't enumerate {kind}: give values:")
        elif method == "bayes" and kind == "categorical_w_probabilities":
            self.fault(keys, "probabilities: are for method: random")
        for value in p.get("values") or ([p["value"]] if "value" in p else ()):
            self.check_value(keys, key, value)
        before = len(self.faults)
        for u in (0.3, 0.01, 0.7, 0.99) if "value" not in p and "values" not in p else ():
            if len(self.faults) == before:  # one value out of a range says enough
                self.check_value(keys, key, space.quantile(p, u))

    def check_value(self, keys: tuple, key: str, value: Any) -> None:
        if key in section_names() and isinstance(value, dict):  # values that go together
            for name, part in flatten({key: value}).items():
                self.check_value(keys, name, part)
            return
        if key not in fields():
            self.fault(keys, f"{key} = {value!r}: there is no such key"
                             f"{nearest(key, list(fields()))}")
            return
        try:
            coerce(key, literal(str(value)))
        except (ValueError, OverflowError):
            named = "" if key == ".".join(p for p in keys[1:] if p != "parameters") else f"{key} = "
            self.fault(keys, f"{named}{value!r} should be {expected(key)}")
        if value is False and "${args_no_boolean_flags}" in self.command:
            self.fault(keys, "W&B leaves a false value out with ${args_no_boolean_flags}, so that "
                             'the default would be trained: use "${args}"')

    def keys_of(self, path: tuple[str, ...]) -> tuple:
        """Keys from the top of the file to a parameter."""
        out: tuple = ("parameters",)
        for name in path[:-1]:
            out += (name, "parameters")
        return (*out, path[-1])

    def check_search(self) -> None:
        method, cap = self.raw.get("method"), self.raw.get("run_cap")
        if method not in METHODS:
            self.fault(("method",), f"{'missing' if method is None else repr(method)}: should be "
                                    f"one of {', '.join(METHODS)}")
        if cap is None and method in ("random", "bayes"):
            self.fault(("run_cap",), f"missing: W&B runs method: {method} for ever without it, as "
                                     "in run_cap: 20")
        elif cap is not None and not (space.is_integer(cap) and cap > 0):
            self.fault(("run_cap",), f"{cap!r}: should be a whole number > 0")

    def check_metric(self) -> None:
        metric, method = self.raw.get("metric"), self.raw.get("method")
        needed = "bayes" if method == "bayes" else \
            "early_terminate" if "early_terminate" in self.raw else None
        if metric is None:
            if needed:
                self.fault(("metric",), f"missing: {needed} needs it, as in metric: "
                                        "{name: val/loss, goal: minimize}")
            return
        if not isinstance(metric, dict) or "name" not in metric:
            self.fault(("metric",), "should have a name:, as in {name: val/loss, goal: minimize}")
            return
        if metric["name"] not in METRICS:
            self.fault(("metric", "name"), f"{metric['name']}: a run logs no such metric"
                       f"{nearest(str(metric['name']), METRICS)}; it logs {', '.join(METRICS)}")
        if metric.get("goal", "minimize") not in ("minimize", "maximize"):
            self.fault(("metric", "goal"), f"{metric['goal']}: should be minimize or maximize")
        if not space.is_number(metric.get("target", 0)):
            self.fault(("metric", "target"), f"{metric['target']!r}: should be a number")
        for key in metric.keys() - {"name", "goal", "target", "impute", "impute_while_running"}:
            self.fault(("metric", key), "W&B's schema has no such key")

    def check_early_terminate(self) -> None:
        stop = self.raw.get("early_terminate")
        if stop is None:
            return
        if not isinstance(stop, dict) or stop.get("type") != "hyperband":
            self.fault(("early_terminate", "type"), "should be hyperband")
            return
        for key in stop.keys() - {"type", "min_iter", "max_iter", "s", "eta", "strict"}:
            self.fault(("early_terminate", key), "W&B's schema has no such key")
        if not ("min_iter" in stop or {"max_iter", "s"} <= stop.keys()):
            self.fault(("early_terminate",), "needs min_iter:, or max_iter: and s:")
        for key in ("min_iter", "max_iter", "s"):
            if not (space.is_integer(stop.get(key, 1)) and stop.get(key, 1) >= 1):
                self.fault(("early_terminate", key), f"{stop[key]!r}: should be a whole number > 0")
        if not space.is_number(stop.get("eta", 3)) or stop.get("eta", 3) <= 1:
            self.fault(("early_terminate", "eta"), f"{stop['eta']!r}: should be a number > 1")
        if not isinstance(stop.get("strict", True), bool):
            self.fault(("early_terminate", "strict"), f"{stop['strict']!r}: should be true or "
                                                      "false")


def meant(key: str) -> str:
    """' (did you mean early_terminate?)' for early_stop: the top-level key that looks like this
    one or else begins with the same word; '' where there is none."""
    near = difflib.get_close_matches(key, TOP_LEVEL, n=1) or \
        [name for name in sorted(TOP_LEVEL) if name.split("_")[0] == key.split("_")[0]]
    return f" (did you mean {near[0]}?)" if near else ""


def numeric(key: str) -> bool:
    """Whether the schema wants a number (and no text) there."""
    kinds = kinds_of(key)
    return bool(kinds & {"number", "integer"}) and "string" not in kinds


def scientific(key: str, value: Any):
    """Every text in a parameter that was meant as a number, in scientific notation."""
    if isinstance(value, dict):
        for name, item in value.items():
            inner = f"{key}.{name}"
            yield from scientific(inner if inner in {*fields(), *section_names()} else key, item)
    elif isinstance(value, list):
        for item in value:
            yield from scientific(key, item)
    elif isinstance(value, str) and SCIENTIFIC.fullmatch(value.strip()):
        if key not in fields() or numeric(key):
            yield value


def yaml_number(text: str) -> str:
    """1e-4 -> 1.0e-4, 1.5E8 -> 1.5e+8: what YAML 1.1 reads as a number."""
    mantissa, exponent = re.split("[eE]", text.strip())
    mantissa += "" if "." in mantissa else ".0"
    return f"{mantissa}e{exponent if exponent[0] in '+-' else '+' + exponent}"


def node_lines(node: yaml.Node, path: tuple = ()):
    """(path of keys, line number) of everything in a YAML document."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from node_lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield (*path, i), item.start_mark.line + 1
            yield from node_lines(item, (*path, i))
