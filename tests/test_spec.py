"""The spec: layers, types, faults. Nothing here needs torch."""
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from slm.errors import ImpossiblePoint, UserError
from slm.keys import fields
from slm.spec import (as_dict, help_text, identity, json_schema, load_spec, parse_arguments,
                      to_yaml)

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))
TINY = {"train.steps": 10}


def spec_of(*args, base=None):
    return load_spec([], parse_arguments(["--train.steps=10", *args])[1])


@pytest.mark.parametrize("args", [
    ["--model.n_layer=6", "--optim.lr=1e-05"],
    ["--model.n_layer", "6", "--optim.lr", "1e-05"],
    ["model.n_layer=6", "optim.lr=0.00001"],
    ["++model.n_layer=6", "+optim.lr=1e-5"],
    ["--model={'n_layer': 6}", '--optim={"lr": 1e-05}'],
    ['{"model.n_layer": 6, "optim": {"lr": 1e-05}}'],
    ["--model.n_layer=6.0", "--optim.lr=1e-05", "--_wandb={'a': 1}"],
])
def test_every_form_of_override_means_the_same(args):
    spec = spec_of(*args)
    assert spec.model.n_layer == 6 and type(spec.model.n_layer) is int
    assert spec.optim.lr == 1e-5


def test_flags_lists_none_and_booleans():
    spec = spec_of("--device.deterministic", "--sample.prompts=['a, b', 'c']", "--model.qk_norm",
                   "True", "--device.compile=False", "--sample.top_k=None", "--track.tags=one")
    assert spec.device.deterministic is True and spec.device.compile is False
    assert spec.sample.prompts == ["a, b", "c"] and spec.model.qk_norm is True
    assert spec.sample.top_k is None and spec.track.tags == ["one"]


def test_types_come_from_the_schema_not_from_yaml(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("optim: {lr: 1e-3, eps: 1e-8}\ntrain: {tokens: 1e6}\ntrack: {name: '008'}\n")
    assert yaml.safe_load(file.read_text())["optim"]["lr"] == "1e-3"  # the trap itself
    spec = load_spec([file])
    assert spec.optim.lr == 0.001 and spec.train.tokens == 1_000_000 and spec.track.name == "008"


def test_layers_default_extends_file_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {n_layer: 2, dropout: 0.1}\ntrain: {steps: 5}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nmodel: {n_layer: 3}\n")
    spec = load_spec([tmp_path / "b.yaml"], {"model.block_size": 64, "train.batch_tokens": 64})
    assert (spec.model.n_layer, spec.model.dropout, spec.model.block_size) == (3, 0.1, 64)
    assert spec.optim.lr == 1e-3 and spec.track.name == "b"


def test_a_later_horizon_replaces_an_earlier_one_and_two_at_once_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {tokens: 1000000}\n")
    spec = load_spec([tmp_path / "a.yaml"], {"train.steps": 7})
    assert spec.train.steps == 7 and spec.train.tokens is None
    with pytest.raises(UserError, match="train.steps and train.flops.*give one of them"):
        load_spec([tmp_path / "a.yaml"], {"train.steps": 7, "train.flops": 1e9})


def test_all_faults_are_reported_together_with_place_and_remedy(tmp_path):
    (tmp_path / "a.yaml").write_text("modle: {n_layer: 2}\nmodel: {n_layer: four}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ntrain: {steps: 10}\n")
    _, layer = parse_arguments(["--optim.lr=-1", "--model.preset=gpt3", "--data.tokeniser=gpt2",
                                "--lr=1", "--device.compile=maybe", "--train.seed=True"])
    with pytest.raises(UserError) as e:
        load_spec([tmp_path / "b.yaml"], layer)
    lines = str(e.value).splitlines()
    assert not isinstance(e.value, ImpossiblePoint)
    a = str(tmp_path / "a.yaml")
    for part in [f"{a}: modle.n_layer = 2: there is no such key (did you mean model.n_layer?)",
                 f"{a}: model.n_layer = 'four': should be an integer > 0",
                 "command line: optim.lr = '-1': should be a number > 0",
                 "model.preset = 'gpt3': should be one of gpt2, modern, llama",
                 "data.tokeniser = 'gpt2': there is no such key (did you mean data.tokenizer?)",
                 "lr = '1': there is no such key (did you mean optim.lr?)",
                 "device.compile = 'maybe': should be one of auto, true, false"]:
        assert any(line.endswith(part) or part in line for line in lines), (part, lines)


@pytest.mark.parametrize("yaml_text, says", [
    ("train: [1, 2]\n", "should be a section"), ("extends: 5\n", "extends = "),
    ("- a\n", "should be sections"), ("a: b: c\n", "line 1"),
    ("train: {steps: 1, steps: 2}\n", "given twice"), ("extends: gone.yaml\n", "no such file"),
    ("extends: x.yaml\n", "extends itself"), ("train: {steps: true}\n", "an integer > 0"),
    ("data: {fables: 3}\ntrain: {steps: 1}\n", "data.fables = 3: should be a section"),
    ("model: {n_layer: {a: 1}}\ntrain: {steps: 1}\n", "model.n_layer"),
    ("1: 2\ntrue: 3\n", "line 1: .*the key 1 is not text"), ("on: 1\n", "the key on is not text"),
    ("", "x.yaml: train = 'no horizon'"),
])
def test_broken_files_get_one_line(tmp_path, yaml_text, says):
    (tmp_path / "x.yaml").write_text(yaml_text)
    with pytest.raises(UserError, match=says):
        load_spec([tmp_path / "x.yaml"])


@pytest.mark.parametrize("key, value", [
    ("optim.lr", "inf"), ("optim.lr", "1e400"), ("optim.weight_decay", float("nan")),
    ("train.flops", float("inf")), ("train.seed", 2**63), ("data.seed", "9" * 20),
    ("data.fables.seed", 2**63), ("sample.seed", "1e20")])
def test_numbers_that_torch_could_not_take_are_refused(key, value):
    with pytest.raises(UserError, match=f"{key} = .*should be an? (number .*, and finite|integer)"):
        load_spec([], {**TINY, key: value})


def test_the_largest_seed_is_kept_to_the_last_digit():
    assert spec_of(f"--train.seed={2**63 - 1}").train.seed == 2**63 - 1


@pytest.mark.parametrize("args", [["--model.n_layer"], ["--track.name", "--device.deterministic"]])
def test_a_key_without_a_value_is_said_to_lack_one(args):
    with pytest.raises(UserError, match=f"{args[0]}: its value is missing: should be"):
        parse_arguments(args)


def test_a_missing_file_names_the_nearest_there_and_in_experiments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    for name in ("mine.yaml", *(f"other{i}.yaml" for i in range(9)), "experiments/base.yaml"):
        (tmp_path / name).touch()
    for wrong, says in (("bas.yml", "did you mean experiments/base.yaml?"),
                        ("mime.yaml", "did you mean mine.yaml?"),
                        ("qqq.yaml", "YAML files there: mine.yaml, other0.yaml, other1.yaml, ...")):
        with pytest.raises(UserError) as e:
            load_spec([wrong])
        assert str(e.value) == f"{wrong}: there is no such file ({says})"


@pytest.mark.parametrize("values, says", [
    ({"model.n_embd": 100, "model.n_head": 3}, "a width of 102 is"),
    ({"train.batch_tokens": 1000}, "1024 is"),
    ({"train.micro_batch": 5}, "does not divide the batch of 12"),
    ({"optim.schedule": "wsd", "optim.warmup": 0.5, "optim.decay": 0.9}, "longer than the run"),
    ({"model.n_embd": 100}, "not divisible by head_size"),
])
def test_impossible_combinations_are_told_apart_from_faults(values, says):
    with pytest.raises(ImpossiblePoint, match=says):
        load_spec([], {**TINY, **values})


def test_a_key_that_would_do_nothing_is_refused_where_it_was_asked_for(tmp_path):
    with pytest.raises(UserError, match="optim.muon_lr.*does nothing with optim.name = adamw"):
        load_spec([], {**TINY, "optim.muon_lr": 0.1})
    # but a base file's choice gives way quietly to a later layer that makes it idle
    (tmp_path / "a.yaml").write_text("train: {steps: 1}\ndata: {fables: {zipf: 2.0}}\n")
    spec = load_spec([tmp_path / "a.yaml"], {"data.corpus": "tinystories"})
    assert spec.data.fables.zipf is None


def test_one_dial_makes_a_ladder():
    ladder = [spec_of(f"--model.n_layer={n}", "--model.aspect_ratio=48", "--model.head_size=32")
              for n in (2, 3, 4, 8)]
    assert [s.model.n_embd for s in ladder] == [96, 160, 192, 384]
    assert [s.model.n_head for s in ladder] == [3, 5, 6, 12]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: p.stem)
def test_the_resolved_spec_of_every_shipped_file_is_its_own_fixed_point(file, tmp_path):
    spec = load_spec([file])
    (tmp_path / "spec.yaml").write_text(to_yaml(spec))
    again = load_spec([tmp_path / "spec.yaml"])
    assert as_dict(again) == as_dict(spec) and identity(again) == identity(spec)
    assert file.read_text().startswith("# ")
    jsonschema.validate(yaml.safe_load(file.read_text()), widened(json_schema()))


def widened(schema):
    """PyYAML's reading of 1e-3 as text, which an editor's YAML 1.2 reads as a number."""
    text = json.dumps(schema).replace('"type": "number"', '"type": ["number", "string"]')
    return json.loads(text)


def test_the_schema_for_editors_is_current_and_refuses_a_typo():
    assert json.loads((ROOT / "experiments/schema.json").read_text()) == json_schema()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": {"n_layers": 4}}, json_schema())


def test_identity_ignores_where_a_run_is_recorded_and_nothing_else():
    base = identity(spec_of())
    assert identity(spec_of("--track.dir=x", "--track.wandb=offline", "--data.cache=y",
                            "--device.name=cpu")) == base
    assert identity(spec_of("--train.seed=1")) != base != identity(spec_of("--data.seed=1"))


def test_help_names_every_key_with_type_and_meaning():
    text = help_text()
    for key, field in fields().items():
        assert f"--{key}=" in text and field.description[:40] in text


def test_the_command_line_exits_2_with_one_line_and_needs_no_torch():
    code = ("import sys, run; c = run.main(['experiments/base.yaml', '--modle.n_layer=3']);"
            "assert 'torch' not in sys.modules; sys.exit(c)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == ("command line: modle.n_layer = '3': there is no such key (did you mean "
                           "model.n_layer?)\n")
