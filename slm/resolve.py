"""What follows from a spec's values: presets, derived widths, defaults that depend on others, and
the combinations that can't be trained."""
from __future__ import annotations

import math
from typing import Any, Callable

from slm.errors import UserError
from slm.lr_law import NAMED, read_law
from slm.screen import several
from slm.shape import PRESETS, GPTConfig, default_d_ff, padded_vocab, round_up

HORIZONS = ("train.steps", "train.tokens", "train.epochs", "train.flops", "train.tokens_per_param")


def resolve(values: dict[str, Any], faults, where: Callable[..., str]) -> None:
    """Fill every derived value into `values` (dotted keys); add to `faults` what can't be.

    where(*keys): the file or command line that set the latest of these keys."""
    resolve_model(values, faults, where)
    resolve_init(values, faults, where)
    resolve_rules(values, faults, where)
    resolve_training(values, faults, where)
    resolve_data(values, faults, where)


def resolve_model(v: dict[str, Any], faults, where) -> None:
    for name, value in PRESETS[v["model.preset"]].items():
        if v[f"model.{name}"] is None:
            v[f"model.{name}"] = value
    head_size = v.pop("model.head_size")
    aspect = v.pop("model.aspect_ratio")
    v["model.head_size"] = v["model.aspect_ratio"] = None  # both are in n_head and n_embd from here
    n_head = v["model.n_head"]
    if v["model.n_embd"] is None:
        width = v["model.n_layer"] * (aspect or 64)
        v["model.n_embd"] = round_up(width, n_head * (head_size or 1) if n_head
                                     else head_size or 64)
    d = v["model.n_embd"]
    if n_head is None:
        size = head_size or 64
        if d % size:
            faults.impossible.append(
                f"{where('model.n_embd', 'model.head_size')}: model.n_embd = {d} is not divisible "
                f"by head_size = {size}: give model.n_head or a width of {round_up(d, size)}")
            return
        v["model.n_head"] = n_head = d // size
    if d % n_head:
        faults.impossible.append(
            f"{where('model.n_embd', 'model.n_head')}: model.n_embd = {d} is not divisible by "
            f"model.n_head = {n_head}: a width of {round_up(d, n_head)} is")
    elif v["model.position"] == "rope" and (d // n_head) % 2:
        faults.impossible.append(
            f"{where('model.n_embd', 'model.n_head')}: model.n_embd / model.n_head = {d // n_head} "
            "must be even for model.position = rope")
    if v["model.d_ff"] is None:
        v["model.d_ff"] = default_d_ff(d, v["model.activation"])


def resolve_init(v: dict[str, Any], faults, where) -> None:
    """The fingerprint of the starting weights stands for them in what the run is."""
    source, given = v["model.init_from"], v["model.init_fingerprint"]
    if source is None:
        if given is not None:
            faults.add(where("model.init_fingerprint"), "model.init_fingerprint", given,
                       "does nothing without model.init_from")
        return
    from slm.init_from import fingerprint
    try:
        found = fingerprint(source)
    except UserError as e:
        if given is None:  # else the run may be past its start, and need them no more
            faults.add(where("model.init_from"), "model.init_from", source, str(e))
        return
    if given not in (None, found):
        faults.add(where("model.init_fingerprint"), "model.init_fingerprint", given,
                   f"the weights of {source} are {found}")
    v["model.init_fingerprint"] = found


def resolve_rules(v: dict[str, Any], faults, where) -> None:
    """The law of optim.lr = auto, written out so that its file may change or go, and what the
    rules of slm/rules.py need."""
    if v["optim.lr"] == "auto":
        resolve_lr_law(v, faults, where)
    rules = [k for k in ("train.batch_rule", "optim.decay_rule") if v[k]]
    if rules and v["train.reference_tokens"] is None:
        faults.add(where(*rules), rules[0], v[rules[0]], "needs train.reference_tokens, the horizon"
                   " at which batch_tokens, lr and weight_decay were tuned")
    if v["train.batch_rule"] and v["train.steps"] is not None:
        faults.impossible.append(
            f"{where('train.batch_rule', 'train.steps')}: train.batch_rule = "
            f"{v['train.batch_rule']}: with a horizon in train.steps the batch would follow from "
            "itself: give train.tokens, or another horizon")
    if v["optim.lr_rule"] and v["optim.lr"] == "auto":
        faults.impossible.append(
            f"{where('optim.lr_rule', 'optim.lr')}: optim.lr_rule = {v['optim.lr_rule']}: the law "
            "of optim.lr = auto gives the learning rate of this very horizon: leave one of them "
            "out")


def resolve_lr_law(v: dict[str, Any], faults, where) -> None:
    given = v["optim.lr_law"]
    try:
        law = read_law(given)
    except UserError as e:
        faults.add(where("optim.lr_law"), "optim.lr_law", given, str(e))
        return
    v["optim.lr_law"] = given if given in NAMED else str(law)
    because = {"optim.name": "", "model.parametrization": "" if law.parametrization != "sp" else
               " (there the learning rate tuned at the base shape holds at every size)"}
    for key, fitted in (("optim.name", law.optimizer),
                        ("model.parametrization", law.parametrization)):
        if v[key] != fitted:
            faults.impossible.append(
                f"{where('optim.lr', 'optim.lr_law', key)}: optim.lr = auto: its law holds for "
                f"{key} = {fitted}, not {v[key]}{because[key]}: give a number, or a law fitted to "
                "such runs in optim.lr_law")


def resolve_training(v: dict[str, Any], faults, where) -> None:
    batch, block = v["train.batch_tokens"], v["model.block_size"]
    if batch % block:
        faults.impossible.append(
            f"{where('train.batch_tokens', 'model.block_size')}: train.batch_tokens = {batch} is "
            f"not a multiple of model.block_size = {block}: {round_up(batch, block)} is")
    micro = v["train.micro_batch"]
    if micro and (batch // block) % micro:
        faults.impossible.append(
            f"{where('train.micro_batch', 'train.batch_tokens')}: train.micro_batch = {micro} does "
            f"not divide the batch of {several(batch // block, 'sequence')}")
    horizons = [k for k in HORIZONS if v[k] is not None]
    if not horizons:
        faults.add(where(), "train", "no horizon",
                   "give one of " + ", ".join(HORIZONS))
    if v["optim.warmup"] is None and v["optim.warmup_tokens"] is None:
        v["optim.warmup"] = 0.02
    if v["optim.schedule"] == "wsd":
        if (v["optim.warmup"] or 0) + v["optim.decay"] > 1:
            faults.impossible.append(
                f"{where('optim.warmup', 'optim.decay')}: optim.warmup = {v['optim.warmup']} and "
                f"optim.decay = {v['optim.decay']} together are longer than the run")
        resolve_branches(v, faults, where)
    elif v["train.branches"] is None:
        v["train.branches"] = []


def resolve_branches(v: dict[str, Any], faults, where) -> None:
    branches = v["train.branches"] = sorted(set(v["train.branches"] or []))
    if not branches:
        return
    line = f"{where('train.branches')}: train.branches = {branches}: "
    if v["train.tokens"] is None:
        faults.lines.append(line + "needs a horizon in train.tokens")
    elif branches[-1] >= v["train.tokens"]:
        faults.impossible.append(line + f"must be shorter than train.tokens = {v['train.tokens']}")
    moving = [k for k in ("train.batch_rule", "optim.decay_rule") if v[k]] \
        + ["optim.lr = auto"] * (v["optim.lr"] == "auto")
    if moving:
        faults.lines.append(line + f"{' and '.join(moving)} would give every branch settings of its"
                            " own horizon, and they share one trunk")
    if v["optim.warmup_tokens"] is None:
        faults.lines.append(line + "needs optim.warmup_tokens, since a warm-up that is a fraction "
                            "of the run would differ between branches")


def resolve_data(v: dict[str, Any], faults, where) -> None:
    corpus = v["data.corpus"]
    if v["data.eval_mode"] is None:
        v["data.eval_mode"] = "stories" if corpus == "fables" else "windows"
    if v["data.eval_tokens"] is None:
        v["data.eval_tokens"] = 200_000
    if corpus in ("files", "hub") and not v["data.path"]:
        what = "a file or folder" if corpus == "files" else "a Hub dataset, as in owner/name"
        faults.add(where("data.corpus"), "data.path", None, f"should be {what}")


def gpt_config(spec, n_vocab: int) -> GPTConfig:
    """The model's shape. spec: a resolved Spec; n_vocab: the tokenizer's ids, before padding."""
    m = spec.model
    mup = ("base_width", "base_depth", "base_head_size", "input_mult", "output_mult")
    optional = {k: getattr(m, k) for k in mup if getattr(m, k) is not None}
    return GPTConfig(
        n_layer=m.n_layer, n_head=m.n_head, n_embd=m.n_embd, block_size=m.block_size,
        vocab_size=padded_vocab(n_vocab), dropout=m.dropout, bias=m.bias, norm=m.norm,
        position=m.position, activation=m.activation, qk_norm=m.qk_norm, tied=m.tied,
        zero_init=m.zero_init, d_ff=m.d_ff, init_std=m.init_std,
        parametrization=m.parametrization, **optional)


def sequences_per_pass(spec, batch_size: int, world: int = 1) -> int:
    """Sequences in one forward pass on one device: train.micro_batch, else the largest divisor
    of the device's share of the batch (batch_size sequences) that keeps a pass within 65,536 tokens
    (the activations of larger passes cost memory and win no speed)."""
    share = batch_size // world
    if spec.train.micro_batch:
        return math.gcd(spec.train.micro_batch, share)
    most = max(1, 65_536 // spec.model.block_size)
    return max(n for n in range(1, min(share, most) + 1) if share % n == 0)
