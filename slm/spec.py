"""From YAML files and command-line overrides to one resolved experiment.

    defaults (slm/schema.py) < `extends:` files < file < command line

Every fault is collected and reported at once, one line each: where, key, value, what would be
right. Neither torch nor tiktoken is imported here: `--plan` and a sweep's plan must be instant.
"""
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from slm.errors import ImpossiblePoint, UserError
from slm.keys import coerce, conditions, default, expected, fields, marks, nearest, section_names
from slm.layers import COMMAND_LINE, Layer, flatten, parse_arguments, read_layers
from slm.resolve import resolve
from slm.schema import Spec
from slm.screen import command

__all__ = ["COMMAND_LINE", "Layer", "Faults", "as_dict", "build", "help_text", "identity",
           "load_spec", "parse_arguments", "read_layers", "run_folder", "to_yaml"]

# Of each group a spec uses one key; a later layer's choice replaces an earlier layer's.
ONE_OF = [
    ("train.steps", "train.tokens", "train.epochs", "train.flops", "train.tokens_per_param"),
    ("optim.warmup", "optim.warmup_tokens"),
    ("model.n_embd", "model.aspect_ratio"),
    ("model.n_head", "model.head_size"),
]


class Faults:
    """Collects every fault, so that a user mends them in one go."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.impossible: list[str] = []

    def add(self, where: str, key: str, value: Any, should: str) -> None:
        self.lines.append(f"{where}: {key} = {value!r}: {should}")

    def raise_if_any(self) -> None:
        if self.lines:
            raise UserError("\n".join(self.lines + self.impossible))
        if self.impossible:
            raise ImpossiblePoint("\n".join(self.impossible))


def merge(layers: list[Layer]) -> tuple[dict[str, Any], dict[str, int], Faults]:
    """Values by key, the layer each came from, and the faults found."""
    values: dict[str, Any] = {key: default(key) for key in fields()}
    source: dict[str, int] = {}
    faults = Faults()
    for i, layer in enumerate(layers):
        for key, raw in layer.values.items():
            if key not in fields():
                faults.add(layer.label, key, raw, "should be a section with keys"
                           if key in section_names()
                           else f"there is no such key{nearest(key, list(fields()))}")
                continue
            try:
                values[key] = coerce(key, raw)
                source[key] = i
            except (ValueError, OverflowError):
                faults.add(layer.label, key, raw, f"should be {expected(key, raw)}")
    for group in ONE_OF:
        given = [k for k in group if values[k] is not None]
        top = max((source[k] for k in given), default=-1)
        winners = [k for k in given if source[k] == top]
        if len(winners) > 1:
            faults.add(layers[top].label, " and ".join(winners),
                       [values[k] for k in winners], "give one of them")
        for k in given:
            if source[k] < top:
                values[k] = None
    return values, source, faults


def drop_unused(values: dict, source: dict, layers: list[Layer], faults: Faults) -> None:
    """A key that means nothing here resolves to None, so that it can't change what a run is. It is
    a fault where it was asked for no earlier than the choice that makes it idle."""
    for key, group in conditions():
        if any(values[other] in allowed for other, allowed in group.items()):
            continue
        if key in source and source[key] >= max(source.get(other, -1) for other in group) \
                and values[key] not in (None, default(key)):
            faults.add(layers[source[key]].label, key, values[key], "does nothing with "
                       + " and ".join(f"{other} = {word(values[other])} (needs "
                                      + " or ".join(map(str, allowed)) + ")"
                                      for other, allowed in group.items()))
        values[key] = None


def word(value: Any) -> str:
    return "none" if value is None else str(value)


def build(layers: list[Layer]) -> Spec:
    """Layers -> one resolved Spec. Raises UserError, or ImpossiblePoint where each value is fine
    and only their combination can't be trained."""
    values, source, faults = merge(layers)
    if not faults.lines:
        drop_unused(values, source, layers, faults)
    if not faults.lines:
        last_file = max((i for i, layer in enumerate(layers) if layer.label != COMMAND_LINE),
                        default=-1)

        def where(*keys: str) -> str:  # what nobody gave is missing in the file
            return layers[max((source[k] for k in keys if k in source), default=last_file)].label
        resolve(values, faults, where)
    faults.raise_if_any()
    return Spec.model_construct(**_sections(values))


def _sections(values: dict[str, Any]) -> dict[str, BaseModel]:
    """Dotted keys back to nested sections, already validated key by key."""
    def make(model: type[BaseModel], prefix: str) -> BaseModel:
        parts = {}
        for name, field in model.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            parts[name] = make(field.annotation, f"{prefix}{name}.") if nested \
                else values[prefix + name]
        return model.model_construct(**parts)
    return {name: make(field.annotation, f"{name}.") for name, field in Spec.model_fields.items()}


def load_spec(files: list[str | Path], overrides: dict[str, Any] | Layer | None = None) -> Spec:
    """The resolved spec of some files (later ones win) and overrides (dotted or nested keys).

    Raises UserError with one line a fault, ImpossiblePoint for an untrainable combination."""
    layers: list[Layer] = []
    for file in files:
        layers += read_layers(Path(file))
    if overrides is not None:
        layers.append(overrides if isinstance(overrides, Layer)
                      else Layer("overrides", flatten(overrides)))
    spec = build(layers)
    if spec.track.name is None:
        spec.track.name = Path(files[-1]).stem if files else "run"
    return spec


def as_dict(spec: Spec) -> dict:
    """The resolved spec as plain nested dicts, None left out."""
    return spec.model_dump(exclude_none=True)


def identity(spec: Spec) -> str:
    """What this run is: 8 hex digits over every resolved key that can change its numbers, not
    over where it is recorded or on which device it happens to run. Keys left out are not part of
    it: one that a later version adds, and that a spec does not use, makes no other run of it."""
    flat = {k: v for k, v in flatten(as_dict(spec)).items()
            if v is not None and marks(k).get("identity", True)}
    text = json.dumps(flat, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_folder(spec: Spec) -> Path:
    """runs/<name>-<identity>"""
    name = spec.track.name.replace("e+", "e")     # 1e+11: a sign turned to a dash would be another
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
    return Path(os.path.expanduser(spec.track.dir)) / f"{name}-{identity(spec)}"


def to_yaml(spec: Spec) -> str:
    return yaml.safe_dump(as_dict(spec), sort_keys=False, allow_unicode=True)


def json_schema() -> dict:
    """A JSON Schema of a spec file, for editors: every key optional, `extends` allowed."""
    schema = Spec.model_json_schema()
    schema["title"] = "slm experiment"
    schema["properties"]["extends"] = {
        "description": "a spec file (or a list of them) to start from, relative to this file",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    return schema


def help_text() -> str:
    """Every key with its type, default and meaning."""
    lines, section = [], None
    for key, field in fields().items():
        head = key.split(".")[0]
        if head != section:
            section = head
            lines.append(f"\n{section}: {Spec.model_fields[section].description}")
        value = default(key)
        lines.append(f"  --{key}={'' if value is None else json.dumps(value)}")
        lines.append(f"      {field.description}. {expected(key)[0].upper()}{expected(key)[1:]}.")
    return "\n".join(lines)


if __name__ == "__main__":
    command(lambda args: print(json.dumps(json_schema(), indent=1)))
