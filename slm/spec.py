"""From YAML files and command-line overrides to one resolved experiment.

    defaults (slm/schema.py) < `extends:` files < file < command line

Every fault is collected and reported at once, one line each: where, key, value, what would be
right. Neither torch nor tiktoken is imported here: `--plan` and a sweep's plan must be instant.
"""
from __future__ import annotations

import ast
import difflib
import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from slm.errors import ImpossiblePoint, UserError
from slm.resolve import resolve
from slm.schema import Spec

COMMAND_LINE = "command line"
# Of each group a spec uses one key; a later layer's choice replaces an earlier layer's.
ONE_OF = [
    ("train.steps", "train.tokens", "train.epochs", "train.flops", "train.tokens_per_param"),
    ("optim.warmup", "optim.warmup_tokens"),
    ("model.n_embd", "model.aspect_ratio"),
    ("model.n_head", "model.head_size"),
]


@dataclass
class Layer:
    """One source of values: a file or the command line. values: dotted key -> raw value."""
    label: str
    values: dict[str, Any]


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


@lru_cache(maxsize=1)
def fields() -> dict[str, FieldInfo]:
    """Every leaf key of the schema, dotted, in order: 'model.n_layer' -> its pydantic field."""
    out: dict[str, FieldInfo] = {}

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                walk(field.annotation, f"{prefix}{name}.")
            else:
                out[prefix + name] = field

    walk(Spec, "")
    return out


@lru_cache(maxsize=None)
def adapter(key: str) -> TypeAdapter:
    field = fields()[key]
    return TypeAdapter(Annotated[field.annotation, field])


def marks(key: str) -> dict:
    """The project's own marks of a key: only_if, identity (slm/schema.py)."""
    return fields()[key].json_schema_extra or {}


def default(key: str) -> Any:
    return fields()[key].get_default(call_default_factory=True)


def expected(key: str) -> str:
    """What a value of this key must be, in words, from the schema: 'an integer > 0'."""
    return _words(adapter(key).json_schema())


def _words(schema: dict) -> str:
    if "anyOf" in schema:
        kinds = [s for s in schema["anyOf"] if s.get("type") != "null"]
        return " or ".join(_words(s) for s in kinds)
    if "enum" in schema:
        return "one of " + ", ".join(str(v).lower() if isinstance(v, bool) else str(v)
                                     for v in schema["enum"])
    if schema.get("type") == "array":
        return "a list, each item " + _words(schema["items"])
    words = {"integer": "an integer", "number": "a number", "boolean": "true or false",
             "string": "text"}[schema["type"]]
    bounds = [("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"),
              ("maximum", "<=")]
    limits = [f"{sign} {schema[name]:g}" for name, sign in bounds if name in schema]
    return f"{words} {' and '.join(limits)}".rstrip()


def nearest(word: str, among: list[str]) -> str:
    """' (did you mean model.n_layer?)', or '' where nothing is near. A key typed without its
    section, or with a wrong one, is found by its last part."""
    close = difflib.get_close_matches(word, among, n=1, cutoff=0.75)
    if not close:
        last = {k.split(".")[-1]: k for k in reversed(among)}
        close = [last[m] for m in difflib.get_close_matches(word.split(".")[-1], last, n=1,
                                                           cutoff=0.75)]
    return f" (did you mean {close[0]}?)" if close else ""


# -- reading ---------------------------------------------------------------------------------

class UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, which PyYAML would let the last one win."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """A YAML (or JSON) mapping. Raises UserError for a missing, unreadable or broken file."""
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=UniqueKeyLoader)  # a SafeLoader
    except FileNotFoundError:
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{path}: there is no such file (YAML files there: {near})") from None
    except OSError as e:
        raise UserError(f"{path}: can't be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 at byte {e.start}") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML: {getattr(e, 'problem', e)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: should be sections with keys, is a {type(values).__name__}")
    return values


def read_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """The file's own layer, preceded by those of the files that it extends (paths relative to
    the file)."""
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself, through "
                        + " -> ".join(p.name for p in (*seen, path)))
    values = read_yaml(path)
    parents = values.pop("extends", None) or []
    layers: list[Layer] = []
    for parent in [parents] if isinstance(parents, str) else parents:
        if not isinstance(parent, str):
            raise UserError(f"{path}: extends = {parents!r}: should be a file or a list of files")
        layers += read_layers(path.parent / parent, (*seen, path.resolve()))
    return [*layers, Layer(str(path), flatten(values))]


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested sections to dotted keys. {'model': {'n_layer': 4}} -> {'model.n_layer': 4}."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        is_section = any(k.startswith(key + ".") for k in fields())
        if isinstance(value, dict) and (is_section or key not in fields()):
            out.update(flatten(value, key + ".") or ({} if is_section else {key: value}))
        elif is_section and value is None:
            continue
        else:
            out[key] = value
    return out


def parse_arguments(args: list[str]) -> tuple[list[Path], Layer]:
    """Command line -> spec files and one layer of overrides. Every form that a person or a
    `wandb agent` sends: --a.b=v, --a.b v, --flag, --a={'b': v}, a.b=v, ++a.b=v, one JSON object."""
    files: list[Path] = []
    values: dict[str, Any] = {}
    args = list(args)
    while args:
        arg = args.pop(0)
        bare = arg.lstrip("-+")
        if arg.startswith("{"):
            parsed = literal(arg)
            if not isinstance(parsed, dict):
                raise UserError(f"{COMMAND_LINE}: {arg}: should be a JSON object of keys")
            values.update(flatten(parsed))
        elif "=" in bare and (arg[0] in "-+" or bare.split("=")[0].split(".")[0]
                              in Spec.model_fields):
            name, _, raw = bare.partition("=")
            values.update(flatten({name: literal(raw)}))
        elif arg.startswith("--"):
            is_flag = not args or args[0].startswith("--")
            values.update(flatten({bare: True if is_flag else literal(args.pop(0))}))
        elif arg.startswith("-"):
            raise UserError(f"{COMMAND_LINE}: {arg}: should be --section.key=value")
        else:
            files.append(Path(arg))
    hidden = [k for k in values if k == "_wandb" or k.startswith("_wandb.")]
    for name in hidden:  # W&B's server leaks it on a requeued sweep run
        del values[name]
    return files, Layer(COMMAND_LINE, values)


def literal(text: str) -> Any:
    """A list or mapping in JSON or Python's repr; anything else stays the text it is, since the
    schema knows its type and guessing does not."""
    if text[:1] not in "[{(":
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
            return list(value) if isinstance(value, tuple) else value
        except (ValueError, SyntaxError):
            continue
    return text


# -- merging ---------------------------------------------------------------------------------

def coerce(key: str, value: Any) -> Any:
    """The value as the schema's type. Raises ValueError where it can't be."""
    annotation = adapter(key).json_schema()
    kinds = {s.get("type") for s in annotation.get("anyOf", [annotation])}
    if isinstance(value, str) and value.strip().lower() in ("none", "null", "~"):
        value = None if "null" in kinds else value
    elif isinstance(value, str) and "integer" in kinds and value.strip():
        number = float(value)  # "1e6" is a fine number of tokens
        value = int(number) if number.is_integer() and abs(number) < 2**53 else value
    elif isinstance(value, bool) and kinds <= {"integer", "number", "null"}:
        raise ValueError("true and false are no numbers")
    elif "array" in kinds and isinstance(value, (str, int, float)):
        value = [literal(value)] if isinstance(value, str) else [value]
    elif "enum" in annotation and isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    try:
        return adapter(key).validate_python(value)
    except ValidationError as e:
        raise ValueError(str(e)) from None


def merge(layers: list[Layer]) -> tuple[dict[str, Any], dict[str, int], Faults]:
    """Values by key, the layer each came from, and the faults found."""
    values: dict[str, Any] = {key: default(key) for key in fields()}
    source: dict[str, int] = {}
    faults = Faults()
    for i, layer in enumerate(layers):
        for key, raw in layer.values.items():
            if key not in fields():
                faults.add(layer.label, key, raw,
                           f"there is no such key{nearest(key, list(fields()))}")
                continue
            try:
                values[key] = coerce(key, raw)
                source[key] = i
            except (ValueError, OverflowError):
                faults.add(layer.label, key, raw, f"should be {expected(key)}")
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
    for key in fields():
        for other, allowed in marks(key).get("only_if", {}).items():
            if values[other] in allowed:
                continue
            if key in source and source[key] >= source.get(other, -1) \
                    and values[key] not in (None, default(key)):
                faults.add(layers[source[key]].label, key, values[key],
                           f"does nothing with {other} = {values[other]} (needs "
                           + " or ".join(map(str, allowed)) + ")")
            values[key] = None


def build(layers: list[Layer]) -> Spec:
    """Layers -> one resolved Spec. Raises UserError, or ImpossiblePoint where each value is fine
    and only their combination can't be trained."""
    values, source, faults = merge(layers)
    if not faults.lines:
        drop_unused(values, source, layers, faults)
    if not faults.lines:
        def where(*keys: str) -> str:
            return layers[max((source[k] for k in keys if k in source), default=-1)].label
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


# -- the resolved spec -----------------------------------------------------------------------

def as_dict(spec: Spec) -> dict:
    """The resolved spec as plain nested dicts, None left out."""
    return spec.model_dump(exclude_none=True)


def identity(spec: Spec) -> str:
    """What this run is: 8 hex digits over every resolved key that can change its numbers, not
    over where it is recorded or on which device it happens to run."""
    flat = {k: v for k, v in flatten(as_dict(spec)).items() if marks(k).get("identity", True)}
    text = json.dumps(flat, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_folder(spec: Spec) -> Path:
    """runs/<name>-<identity>"""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in spec.track.name)
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
    print(json.dumps(json_schema(), indent=1))
