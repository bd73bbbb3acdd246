"""Every knob does something. A key that is logged and changes nothing is the worst kind of key: the
study that swept it will be published. So each one is turned, and the run must come out otherwise
(in its numbers, its files, what it says, or what W&B is told), or refuse.

What merely echoes the spec (spec.yaml, the hash in the folder's name) does not count."""
import json

import pytest
import torch
from tiny import TINY, final_weights, metrics, without_times

import run
from slm.export import write_model
from slm.hf import hf_config
from slm.keys import fields
from slm.model import GPT
from slm.shape import GPTConfig

MUP = {"model.parametrization": "mup", "model.base_width": 8}
MUON = {"optim.name": "muon"}
WSD = {"optim.schedule": "wsd", "optim.warmup_tokens": 128, "train.tokens": 1024,
       "optim.decay": 0.5}
FILES = {"data.corpus": "files", "data.path": "stories.jsonl"}
AUTO = {"optim.lr": "auto"}
POWER = {"train.batch_rule": "power_lines", "train.reference_tokens": 512, "train.steps": None,
         "train.tokens": 1024}
FREE = {"model.n_embd": None, "model.n_head": None, "model.head_size": 8,
        "model.aspect_ratio": 16.0}

# key -> the value to turn it to, or (what must be set for it to mean something, the value).
TURN = {
    "model.preset": "llama", "model.n_layer": 2, "model.n_head": 4, "model.n_embd": 24,
    "model.head_size": ({**FREE}, 16), "model.aspect_ratio": ({**FREE}, 24.0),
    "model.block_size": 64, "model.dropout": 0.3, "model.bias": False, "model.norm": "rmsnorm",
    "model.position": "rope", "model.activation": "relu2", "model.qk_norm": True,
    "model.tied": False, "model.zero_init": True, "model.d_ff": 40, "model.init_std": 0.05,
    "model.parametrization": "mup",
    "model.base_width": (MUP, 4),
    "model.base_depth": ({"model.parametrization": "completep", "model.n_layer": 2}, 1),
    "model.base_head_size": (MUP, 2),
    "model.input_mult": (MUP, 2.0), "model.output_mult": (MUP, 2.0),
    "model.init_from": "hf:weights",
    "model.init_fingerprint": ({"model.init_from": "hf:weights"}, "of other weights"),
    "data.corpus": ({}, "tinystories"), "data.path": (FILES, "other.txt"),
    "data.column": (FILES, "title"), "data.val_fraction": (FILES, 0.5),
    "data.tokenizer": "bpe:320", "data.seed": 1, "data.cache": "elsewhere",
    "data.eval_mode": "windows", "data.eval_tokens": 300,
    "data.fables.seed": 1, "data.fables.stories": 300, "data.fables.val_stories": 10,
    "data.fables.facts": 20, "data.fables.zipf": 3.0,
    "train.batch_tokens": 256, "train.batch_rule": (
        {"train.reference_tokens": 128, "optim.decay_rule": "horizon", "train.steps": None,
         "train.tokens": 1024}, "power_lines"),
    "train.reference_tokens": (POWER, 128), "train.micro_batch": 2, "train.steps": 6,
    "train.tokens": ({"train.steps": None}, 640), "train.epochs": ({"train.steps": None}, 0.05),
    "train.flops": ({"train.steps": None}, 6e7),
    "train.tokens_per_param": ({"train.steps": None}, 0.1), "train.branches": (
        {**WSD, "train.steps": None}, [512]),
    "train.eval_interval": 2, "train.patience": ({"optim.lr": 1e-13, "train.steps": 40}, 1),
    "train.time_limit_sec": ({"train.steps": 40}, 1e-6), "train.seed": 1,
    "optim.name": "muon", "optim.lr": 1e-2,
    "optim.lr_law": (AUTO, "0.001 N^0 D^0 [blocks, adamw, sp, N 1..1e9, D 1..1e9]"),
    "optim.lr_rule": ({**POWER, "train.reference_tokens": 64}, "sqrt_batch"),
    "optim.muon_lr": (MUON, 0.1),
    "optim.muon_momentum": (MUON, 0.5), "optim.weight_decay": 5.0, "optim.decay_rule": (
        {**POWER, "train.reference_tokens": 64}, "horizon"), "optim.beta1": 0.5,
    "optim.beta2": 0.5, "optim.eps": 0.1, "optim.grad_clip": 0.01, "optim.schedule": "linear",
    "optim.warmup": 0.5, "optim.warmup_tokens": ({"optim.warmup": None}, 512),
    "optim.final_lr": 0.9, "optim.decay": ({**WSD, "train.steps": None}, 0.2),
    "sample.prompts": ["One day"], "sample.interval": 4, "sample.max_new_tokens": 9,
    "sample.temperature": 3.0, "sample.top_k": 1, "sample.top_p": 0.01, "sample.seed": 7,
    "track.dir": "elsewhere", "track.name": "another", "track.wandb": "offline",
    "track.project": "p", "track.entity": "e", "track.group": "g", "track.tags": ["t"],
    "track.log_interval": 1, "track.dynamics_interval": 4,
    "track.checkpoint_interval": 5, "track.keep": 1,
    "device.name": "cuda:63", "device.precision": "bf16", "device.compile": True,
    "device.memory_fraction": 0.5, "device.threads": 2, "device.deterministic": True,
    "device.loss": "chunked", "device.malloc": False,
}
HORIZONS = {"train.tokens", "train.epochs", "train.flops", "train.tokens_per_param"}
REFUSED = {"data.corpus", "device.name", "device.memory_fraction"}  # here: no network, no GPU
CHOICES = ("device", "precision", "compile", "threads", "malloc", "kernels", "loss", "W&B")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """observe(values) -> what a run of these values shows; equal values are run once."""
    home = tmp_path_factory.mktemp("runs")
    stories = [{"text": f"Once upon a time number {i} met {i * i}. " * 8,
                "title": f"The tale of {i} and {i + 1}. " * 8} for i in range(60)]
    (home / "stories.jsonl").write_text("".join(json.dumps(s) + "\n" for s in stories))
    (home / "other.txt").write_text("<|endoftext|>".join(s["text"].upper() for s in stories))
    (home / "weights").mkdir()
    config = GPTConfig(**{k.removeprefix("model."): v for k, v in TINY.items()
                          if k.startswith("model.")}, vocab_size=512, init_std=0.1)
    write_model(home / "weights", config, GPT(config).state_dict(), hf_config(config))
    return home, {}


def observe(home, seen, values, monkeypatch, capsys) -> dict:
    key = json.dumps(values, sort_keys=True)
    if key not in seen:
        seen[key] = look(home / str(len(seen)), home, values, monkeypatch, capsys)
    return seen[key]


def look(out, home, values, monkeypatch, capsys) -> dict:
    values = {"track.dir": str(out), "data.cache": str(home / "data"), **values}
    for k in ("track.dir", "data.cache"):
        if values[k] == "elsewhere":
            values[k] = str(out / "elsewhere")
    told, compiled = {}, []
    stop = monkeypatch.context()
    with stop as m:
        m.chdir(home)
        m.setattr("slm.record.Record._plot", lambda self: None)
        m.setattr("slm.mirror.Mirror._launch", lambda self, order: told.update(order))
        m.setattr(torch, "compile", lambda model, **kw: compiled.append(1) or model)
        try:
            code = run.main([f"--{k}={v}" for k, v in values.items()] + [str(home / "empty.yaml")])
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_num_threads(1)
    screen = capsys.readouterr()
    folders = [p.parent for p in sorted(out.rglob("summary.json"))]
    choices = [line for line in screen.out.splitlines() if line.startswith(CHOICES)]
    return {
        "code": code, "choices": choices, "refused": screen.err,
        "told": {k: told.get(k) for k in ("mode", "project", "entity", "group", "tags")},
        "compiled": len(compiled),
        "names": [f.name.rpartition("-")[0] for f in folders],
        "metrics": [without_times(metrics(f)) for f in folders],
        "samples": [(f / "samples.jsonl").read_text() for f in folders],
        "checkpoints": [sorted(p.name for p in (f / "checkpoints").glob("*")) for f in folders],
        "weights": [[w.double().sum().item() for w in final_weights(f).values()]
                    for f in folders if list((f / "checkpoints").glob("step-*.pt"))],
        "files": [str(p.relative_to(out).parts[0]) == "elsewhere" for p in out.glob("*")],
    }


def test_every_key_is_turned_here():
    assert list(TURN) == list(fields())


def test_an_unturned_run_looks_the_same_twice(runs, monkeypatch, capsys):
    """Else the test below would pass for any key."""
    home, _ = runs
    (home / "empty.yaml").write_text("{}\n")
    values = {**TINY, "train.steps": 8, "track.wandb": "offline"}
    first, second = (look(home / name, home, values, monkeypatch, capsys) for name in ("a", "b"))
    assert first == second and first["code"] == 0


@pytest.mark.parametrize("key", list(TURN))
def test_turning_a_key_changes_the_run_or_is_refused(key, runs, monkeypatch, capsys):
    home, seen = runs
    (home / "empty.yaml").write_text("{}\n")
    context, value = TURN[key] if isinstance(TURN[key], tuple) else ({}, TURN[key])
    base = {**TINY, "train.steps": 8, "train.eval_interval": 4, "track.checkpoint_interval": 2,
            "sample.prompts": ["Once"], **context}
    if key.startswith("track.") and key not in ("track.wandb", "track.dir", "track.name"):
        base["track.wandb"] = "offline"
    if context.get("data.corpus") == "files":
        base = {k: v for k, v in base.items() if not k.startswith("data.fables")}
        base["data.tokenizer"] = "bpe:320"
    before = observe(home, seen, base, monkeypatch, capsys)
    turned = {k: v for k, v in {**base, key: value}.items()
              if not (key == "data.corpus" and k.startswith("data.fables"))}
    if key in HORIZONS:
        before = None
    after = observe(home, seen, turned, monkeypatch, capsys)
    if key in REFUSED:
        assert after["code"] == 2
    elif before is None or before["code"] == 2:  # there is no run without a horizon
        assert after["code"] == 0 and after["metrics"]
    else:
        assert before["code"] == 0, before["refused"]
        assert before != after, f"{key} = {value} changed nothing"
