"""README.md of an exported model: the run's figures and its spec, from what it recorded."""
from __future__ import annotations

from pathlib import PurePath
from typing import Any

import yaml

USAGE = '''```python
from transformers import {model}, AutoTokenizer
model, tokenizer = {model}.from_pretrained("."), AutoTokenizer.from_pretrained(".")
ids = tokenizer(tokenizer.bos_token + "{prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids)[0], skip_special_tokens=True))
```

A document begins after an end-of-text token: that is the `bos_token` before the prompt. The context
is {block} tokens, prompt and answer together.'''
IDS_ONLY = '''```python
from transformers import {model}
model = {model}.from_pretrained(".")     # token ids in and out, see below
```'''


def card(summary: dict, spec: dict, saved: dict, which: str, config: dict,
         notes: list[str]) -> str:
    """Markdown. summary, spec: of the run folder; saved: the checkpoint's dict; which: 'best' or
    'last'; config: config.json; notes: lines on the tokenizer. No path of this machine in it."""
    shape, data, params = (summary.get(key, {}) for key in ("shape", "data", "params"))
    prompt = (spec.get("sample", {}).get("prompts") or ["Once upon a time"])[0]
    usage = (IDS_ONLY if notes else USAGE).format(
        model=config["architectures"][0], prompt=prompt.replace("\\", "").replace('"', ""),
        block=shape.get("block_size"))
    text = yaml.safe_dump(public(spec), sort_keys=False, allow_unicode=True)
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["slm"]}
    return "\n".join([
        "---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "",
        f"# {summary.get('name', 'model')}", "",
        f"A {config['model_type']} language model of {_number(params.get('total'))} parameters "
        f"({shape.get('n_layer')} layers, {shape.get('n_head')} heads, width "
        f"{shape.get('n_embd')}), trained from scratch with slm on the corpus "
        f"`{data.get('corpus')}`."
        if not spec.get("model", {}).get("init_from") else
        f"A {config['model_type']} language model of {_number(params.get('total'))} parameters, "
        f"trained on from other weights with slm on the corpus `{data.get('corpus')}`.",
        "", usage, *(["", *notes] if notes else []), "", "## Figures", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value
                                in figures(summary, saved, which)),
        "", "Losses are in nats per token; bits per byte compares tokenizers.", "", "## Spec", "",
        "```yaml", text.strip(), "```", ""])


def figures(summary: dict, saved: dict, which: str) -> list[tuple[str, str]]:
    """(name, value) of what is known of the run."""
    data, params, versions = (summary.get(k, {}) for k in ("data", "params", "versions"))
    rows: list[tuple[str, Any]] = [
        ("weights", f"step {saved['step']:,}"
         + (f", validation loss {saved['val_loss']:.4f}" if which == "best" else "")),
        ("run", f"{summary.get('status')}, {_number(summary.get('steps_done'))} steps, "
                f"{_number(summary.get('tokens'))} tokens, {_number(summary.get('flops'))} FLOPs"),
        ("validation loss at its end", _pair(summary.get("val_loss"), summary.get("val_loss_se"))),
        ("floor (entropy of the text)", _number(summary.get("val_floor"))),
        ("bits per byte", _number(summary.get("val_bits_per_byte"))),
        ("training loss, last tenth", _number(summary.get("train_loss"))),
        ("parameters", ", ".join(f"{k} {_number(params[k])}" for k in
                                 ("total", "blocks", "wte", "matmul") if k in params)),
        ("corpus", f"`{data.get('corpus')}`, sha256 `{str(data.get('corpus_sha256'))[:16]}`"),
        ("unique training tokens", _number(data.get("train", {}).get("tokens"))),
        ("tokenizer", f"`{PurePath(str(data.get('tokenizer'))).name}`, sha256 "
                      f"`{str(data.get('tokenizer_sha256'))[:16]}`"),
        ("trained on", summary.get("machine", {}).get("hardware")),
        ("versions", ", ".join(f"{k} {versions[k]}" for k in ("slm", "git_sha", "torch")
                               if versions.get(k))),
    ]
    return [(name, value) for name, value in rows if value]


def public(spec: dict) -> dict:
    """A resolved spec without what names files or places of the machine it ran on."""
    out = {section: dict(keys) for section, keys in spec.items()
           if isinstance(keys, dict) and section not in ("track", "device")}
    data, model = out.get("data", {}), out.get("model", {})
    data.pop("cache", None)
    if data.get("corpus") != "hub":
        data.pop("path", None)
    if "tokenizer" in data:
        kind, colon, name = str(data["tokenizer"]).partition(":")
        data["tokenizer"] = kind + colon + PurePath(name).name
    if "init_from" in model:
        kind, colon, name = str(model["init_from"]).rpartition(":")
        model["init_from"] = kind + colon + PurePath(name).name
    return out


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}" if value < 10**12 else f"{value:.3e}"
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"


def _pair(value: float | None, se: float | None) -> str:
    return _number(value) + (f" ± {se:.4f}" if value is not None and se is not None else "")
