"""`command:` of a sweep file: the macros of W&B's agent (wandb 0.31), expanded as it does."""
from __future__ import annotations

import json
import os
import re
from typing import Any

DEFAULT = ["${env}", "${interpreter}", "${program}", "${args}"]
# Each way of passing the swept values that W&B knows.
ARGS = {
    "args": lambda v: [f"--{k}={x}" for k, x in v.items()],
    "args_no_hyphens": lambda v: [f"{k}={x}" for k, x in v.items()],
    "args_no_boolean_flags": lambda v: [f"--{k}" if x is True else f"--{k}={x}"
                                        for k, x in v.items() if x is not False],
    "args_no_equals": lambda v: [part for k, x in v.items() for part in (f"--{k}", str(x))],
    "args_json": lambda v: [json.dumps(v)],
    "args_json_file": lambda v: [json.dumps(v)],  # W&B: a file of it; run.py takes either
    "args_append_hydra": lambda v: [f"+{k}={x}" for k, x in v.items()],
    "args_override_hydra": lambda v: [f"++{k}={x}" for k, x in v.items()],
}
MACRO = re.compile(r"\$\{([^}]*)\}")
ENVIRONMENT = re.compile(r"envvar:([A-Z0-9_]*)")


def macro(item: str) -> str | None:
    """'args' for '${args}'; None where the item is anything but one macro."""
    match = MACRO.fullmatch(item)
    return match and match.group(1)


def expand(items: list[str], fill: dict[str, list[str]]) -> list[str]:
    """The command with each macro replaced; one that W&B does not know vanishes, as there."""
    out: list[str] = []
    for item in items:
        item = MACRO.sub(lambda m: environment(m) or m.group(0), item)
        name = macro(item)
        out += fill.get(name, []) if name is not None else [item]
    return out


def environment(match: re.Match) -> str | None:
    inner = ENVIRONMENT.fullmatch(match.group(1))
    return inner and os.environ.get(inner.group(1), inner.group(1))


def nested(values: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Values by path -> the mapping that W&B hands out: {('model', 'n_layer'): 4} ->
    {'model': {'n_layer': 4}}, {('model.n_layer',): 4} -> {'model.n_layer': 4}."""
    out: dict[str, Any] = {}
    for path, value in sorted(values.items()):
        level = out
        for part in path[:-1]:
            level = level.setdefault(part, {})
        level[path[-1]] = value
    return out


def program_index(items: list[str], program: str) -> int | None:
    """Where the program stands in the command: what follows are its own arguments."""
    for i, item in enumerate(items):
        if macro(item) == "program" or item == program:
            return i
    return None


def processes_per_run(items: list[str]) -> int:
    """N of `torchrun --nproc_per_node=N`, else 1."""
    text = " ".join(items)
    match = re.search(r"--nproc[-_]per[-_]node[= ](\d+)", text)
    return int(match.group(1)) if match else 1


def problems(items: list[str], program: str) -> list[str]:
    """What W&B would leave literal, drop or never pass on, in words."""
    out = []
    for item in items:
        for match in MACRO.finditer(item):
            name, whole = match.group(1), match.group(0)
            variable = ENVIRONMENT.fullmatch(name)
            if variable and variable.group(1) not in os.environ:
                out.append(f"{item!r}: the environment variable {variable.group(1)} is not set")
            elif not variable and name not in {*ARGS, "env", "interpreter", "program"}:
                out.append(f"{item!r}: W&B knows no macro {whole} and would drop it; swept values "
                           'come with "${args}"')
            elif not variable and item != whole:
                out.append(f"{item!r}: W&B leaves a macro literal unless it is a list item of its "
                           f'own: write "{whole}" as one item')
    used = [name for item in items if (name := macro(item)) in ARGS]
    if not used:
        out.append('has no "${args}", so that the swept values would never reach the program')
    if program_index(items, program) is None:
        out.append('has no "${program}"')
    return out
