"""What the schema knows of each key: type, default, marks, the words for what it must be."""
from __future__ import annotations

import ast
import difflib
import json
import math
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from slm.schema import Spec


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
    return TypeAdapter(Annotated[field.annotation, field], config=ConfigDict(allow_inf_nan=False))


@lru_cache(maxsize=None)
def value_schema(key: str) -> dict:
    """The JSON Schema of a key's value. Made once: a sweep coerces thousands of values."""
    return adapter(key).json_schema()


@lru_cache(maxsize=1)
def section_names() -> frozenset[str]:
    """Every dotted prefix that holds keys: 'model', 'data', 'data.fables', ..."""
    parts = (key.split(".") for key in fields())
    return frozenset(".".join(p[:n]) for p in parts for n in range(1, len(p)))


def marks(key: str) -> dict:
    """The project's own marks of a key: only_if, any_of, identity (slm/schema.py)."""
    return fields()[key].json_schema_extra or {}


@lru_cache(maxsize=1)
def conditions() -> list[tuple[str, dict[str, list]]]:
    """(key, {another key: values}) for each condition of a key: it means something only where one
    of these others has one of its values. Made once: a sweep resolves thousands of specs."""
    return [(key, group) for key in fields()
            for group in [*({other: allowed} for other, allowed in
                            marks(key).get("only_if", {}).items()), marks(key).get("any_of", {})]
            if group]


def default(key: str) -> Any:
    return fields()[key].get_default(call_default_factory=True)


def expected(key: str, value: Any = None) -> str:
    """What a value of this key must be, in words, from the schema: 'an integer > 0'.

    value: the one refused; an infinite one may seem to be just that."""
    try:
        finite = math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        finite = True
    return _words(adapter(key).json_schema()) + ("" if finite else ", and finite")


def _words(schema: dict) -> str:
    if "anyOf" in schema:
        kinds = [s for s in schema["anyOf"] if s.get("type") != "null"]
        return " or ".join(_words(s) for s in kinds)
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(str(v).lower() if isinstance(v, bool) else str(v)
                                     for v in schema["enum"])
    if schema.get("type") == "array":
        return "a list, each item " + _words(schema["items"])
    words = {"integer": "an integer", "number": "a number", "boolean": "true or false",
             "string": "text"}[schema["type"]]
    bounds = [("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"),
              ("maximum", "<=")]
    limits = [f"{sign} {schema[name]}" for name, sign in bounds if name in schema]
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


def kinds_of(key: str) -> set[str]:
    """The JSON types that a value may have. A word that stands for itself, as auto, is none."""
    schema = value_schema(key)
    return {s.get("type") for s in schema.get("anyOf", [schema]) if "const" not in s}


def coerce(key: str, value: Any) -> Any:
    """The value as the schema's type. Raises ValueError where it can't be."""
    annotation, kinds = value_schema(key), kinds_of(key)
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


def may_be(key: str, value: Any) -> bool:
    """Whether the key can have this value."""
    try:
        coerce(key, value)
    except ValueError:
        return False
    return True
