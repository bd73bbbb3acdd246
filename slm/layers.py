"""Where values come from: YAML files, the files they extend, and the command line."""
from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slm.errors import UserError
from slm.keys import expected, fields, literal, may_be, section_names
from slm.schema import Spec

COMMAND_LINE = "command line"


@dataclass
class Layer:
    """One source of values: a file or the command line. values: dotted key -> raw value."""
    label: str
    values: dict[str, Any]


class UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, which PyYAML would let the last one win, and a
    key that it reads as something else than text (1, true, on)."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in seen:
                fault = f"the key {key!r} is given twice" if isinstance(key, str) else \
                    f"the key {key_node.value} is not text: there is no such key"
                raise yaml.constructor.ConstructorError(None, None, fault, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """A YAML (or JSON) mapping. Raises UserError for a missing, unreadable or broken file."""
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=UniqueKeyLoader)  # a SafeLoader
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file{_nearest_file(path)}") from None
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


def _nearest_file(path: Path) -> str:
    """' (did you mean experiments/base.yaml?)', from the files beside it and in experiments/; where
    no name is near, a few of them."""
    folders = dict.fromkeys((path.parent, Path("experiments")))
    files = [p for folder in folders for p in sorted(folder.glob("*.yaml"))]
    near = difflib.get_close_matches(path.stem, dict.fromkeys(p.stem for p in files), n=3)
    close = [str(p) for stem in near for p in files if p.stem == stem]
    if close:
        return f" (did you mean {' or '.join(close[:3])}?)"
    some = ", ".join(map(str, files[:3])) + ", ..." * (len(files) > 3)
    return f" (YAML files there: {some})" if files else ""


def read_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """The file's own layer, preceded by those of the files that it extends (paths relative to
    the file)."""
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself, through "
                        + " -> ".join(p.name for p in (*seen, path)))
    values = read_yaml(path)
    parents = values.pop("extends", None) or []
    parents = parents if isinstance(parents, list) else [parents]
    if not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"{path}: extends = {parents!r}: should be a file or a list of files")
    layers: list[Layer] = []
    for parent in parents:
        layers += read_layers(path.parent / parent, (*seen, path.resolve()))
    return [*layers, Layer(str(path), flatten(values))]


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested sections to dotted keys. {'model': {'n_layer': 4}} -> {'model.n_layer': 4}."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        is_section = key in section_names()
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
            if is_flag and bare in fields() and not may_be(bare, True):
                raise UserError(f"{COMMAND_LINE}: {arg}: its value is missing: should be "
                                f"{expected(bare)}, as in {arg}=...")
            values.update(flatten({bare: True if is_flag else literal(args.pop(0))}))
        elif arg.startswith("-"):
            raise UserError(f"{COMMAND_LINE}: {arg}: should be --section.key=value")
        else:
            files.append(Path(arg))
    hidden = [k for k in values if k == "_wandb" or k.startswith("_wandb.")]
    for name in hidden:  # W&B's server leaks it on a requeued sweep run
        del values[name]
    return files, Layer(COMMAND_LINE, values)
