"""Sweep files: every kind of fault is said in words, with the line and the mend, all at once."""
import math
import statistics

import pytest
import yaml
from sweep_fakes import ROOT, sweep, workplace

from slm.errors import UserError
from slm.sweep import bandit, command, space
from slm.sweep.file import read_sweep, yaml_number
from slm.sweep.points import Sweep

LR = {"optim.lr": {"values": [1.0e-3, 2.0e-3]}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def faults(place, text: str) -> str:
    """What is said of a sweep file with this text (beside a sound base spec)."""
    workplace(place, LR)
    (place / "s.yaml").write_text(text)
    with pytest.raises(UserError) as e:
        Sweep("s.yaml").points()
    return str(e.value)


HEAD = """program: run.py
method: grid
command: ["${env}", "${interpreter}", "${program}", base.yaml, "${args}"]
"""


@pytest.mark.parametrize("text, said", [
    (HEAD + "parameters:\n  model.n_layers: {values: [1]}", ["line 5", "mean model.n_layer?"]),
    (HEAD + "parameters:\n  n_head: {values: [1]}", ["no such key", "model.n_head"]),
    (HEAD + "parameters:\n  model.n_head: {values: [two]}", ["'two' should be an integer > 0"]),
    (HEAD + "parameters:\n  model.dropout: {values: [1.5]}", ["should be a number >= 0 and < 1"]),
    (HEAD + "parameters:\n  optim.lr: {values: [1e-4]}", ["line 5", "1e-4 as text", "1.0e-4"]),
    (HEAD + "parameters:\n  train.tokens: {value: 1.5e8}", ["1.5e8 as text", "write 1.5e+8"]),
    (HEAD + "parameters:\n  model: {values: [{n_layer: 2, n_heads: 2}]}", ["model.n_heads"]),
    (HEAD + "parameters:\n  train.seed: {values: []}", ["grid would be empty"]),
    (HEAD + "parameters: {}", ["parameters", "missing or empty"]),
    (HEAD + "parameters:\n  optim.lr: {min: 0.1, max: 0.2}", ["a grid can't enumerate uniform"]),
    (HEAD + "parameters:\n  optim.lr: {min: 2, max: 1}", ["min = 2 should be less than max = 1"]),
    (HEAD + "parameters:\n  optim.lr: {vales: [1.0]}", ["values:, or min: and max:"]),
    (HEAD + "parameters:\n  train.seed: {min: 0, max: 999999}", ["1,000,000 points", "run_cap"]),
    (HEAD + "run_cap: many\nparameters:\n  train.seed: {values: [1]}", ["whole number > 0"]),
    (HEAD + "epochs: 3\nparameters:\n  train.seed: {values: [1]}", ["no such key", "parameters:"]),
    (HEAD + "early_stop: {type: hyperband}\nparameters:\n  train.seed: {values: [1]}",
     ["line 4", "no such key (did you mean early_terminate?)"]),
    (HEAD + "metrics_: {name: x}\nparameters:\n  train.seed: {values: [1]}", ["mean metric?"]),
    (HEAD + "job: x\nparameters:\n  train.seed: {values: [1]}", ["W&B's own services"]),
    (HEAD + "metric: {name: val_loss}\nparameters:\n  train.seed: {values: [1]}",
     ["no such metric (did you mean val/loss?)"]),
    (HEAD + "early_terminate: {type: hyperband, min_iter: 3}\n"
     "parameters:\n  train.seed: {value: 1}", ["metric: missing: early_terminate needs it"]),
    (HEAD + "early_terminate: {type: median, min_iter: 3}\nparameters:\n  train.seed: {value: 1}",
     ["should be hyperband"]),
    (HEAD.replace("grid", "random") + "parameters:\n  train.seed: {values: [1]}",
     ["run_cap: missing", "for ever"]),
    (HEAD.replace("grid", "bayes") + "run_cap: 3\nparameters:\n  train.seed: {values: [1]}",
     ["metric: missing: bayes needs it"]),
    (HEAD.replace("grid", "gird") + "parameters:\n  train.seed: {values: [1]}", ["'gird'"]),
    (HEAD.replace("base.yaml", "bas.yaml") + "parameters:\n  train.seed: {values: [1]}",
     ["line 3", "bas.yaml: there is no such spec", "base.yaml"]),
    (HEAD.replace("run.py", "train.py", 1) + "parameters:\n  train.seed: {values: [1]}",
     ["train.py: there is no such file"]),
    (HEAD.replace('"${args}"', '"--lr=${args}"') + "parameters:\n  train.seed: {values: [1]}",
     ["leaves a macro literal", 'has no "${args}"']),
    (HEAD.replace('"${args}"', '"${args}", "${seed}"') + "parameters:\n  train.seed: {values: [1]}",
     ["knows no macro ${seed}"]),
    (HEAD.replace('"${args}"', '"${args}", "${envvar:NOT_THERE}"')
     + "parameters:\n  train.seed: {values: [1]}", ["NOT_THERE is not set"]),
    (HEAD.replace('"${args}"', '"${args}", --train.seed=3')
     + "parameters:\n  train.seed: {values: [1]}", ["swept, and given in the command"]),
    (HEAD.replace("base.yaml, ", "") + "parameters:\n  train.seed: {values: [1]}", ["base spec"]),
    (HEAD + "parameters:\n  device.name: {value: cuda:1}", ["no GPU is visible"]),
    (HEAD + "parameters:\n  train.seed: {value: 1}\n  train.seed: {value: 2}", ["given twice"]),
    (HEAD + "parameters:\n  data.tokenizer: {value: gpt3}", ["unknown tokenizer 'gpt3'"]),
    (HEAD + "parameters:\n  optim.muon_lr: {values: [0.1]}", ["does nothing with optim.name"]),
])
def test_a_fault_is_said_in_words(place, text, said):
    from slm.sweep import machine
    workplace(place, LR)
    (place / "s.yaml").write_text(text)
    with pytest.raises(UserError) as e:
        points = Sweep("s.yaml").points()
        machine.check_device({p.spec.device.name for p in points if p.spec})
    for words in said:
        assert words in str(e.value)


def test_all_faults_come_at_once(place):
    text = HEAD + ("parameters:\n  model.n_layers: {values: [1]}\n  optim.lr: {values: [1e-3]}\n"
                   "  train.seed: {values: []}\nmetric: {name: loss}\nrun_cap: 0\n")
    assert len(faults(place, text).splitlines()) == 5


@pytest.mark.parametrize("verb", ["check", "plan", "run", "status", "slurm"])
def test_bad_input_ends_with_2_before_anything_starts(place, verb):
    workplace(place, {"model.n_layers": {"values": [1]}})
    code, said = sweep(place, verb, "s.yaml")
    assert (code, said.count("\n")) == (2, 1) and "did you mean model.n_layer" in said
    assert not (place / "runs").exists() and not (place / "starts.txt").exists()


@pytest.mark.parametrize("verb", ["check", "plan", "run", "slurm"])
def test_a_sweep_without_a_point_to_train_is_refused(place, verb):
    workplace(place, {"model.n_embd": {"values": [33, 35]}})
    code, said = sweep(place, verb, "s.yaml")
    assert (code, said.count("\n")) == (2, 1) and "s.yaml: none of 2 points can be" in said
    assert "33 is not divisible" in said and "35 is not divisible" in said
    assert not (place / "runs").exists()
    workplace(place, {"model.n_embd": {"values": [16384]}, "model.n_layer": {"value": 64}})
    if verb in ("plan", "run"):
        code, said = sweep(place, verb, "s.yaml")
        assert code == 2 and "none of 1 point can be trained: needs about" in said
        assert not (place / "runs").exists()


def test_missing_files_and_options_are_said_in_words(place):
    workplace(place, LR)
    for args, said in [(("run", "nope.yaml"), "there is no such file (YAML files there: base.yaml"),
                       (("run", "s.yaml", "--runs-per-gpu", "2"), "no GPU is visible"),
                       (("run", "s.yaml", "--point", "9"), "the sweep has 2 points"),
                       (("run", "s.yaml", "--train.sedd=1"), "did you mean train.seed"),
                       (("run", "s.yaml", "other.yaml"), "other.yaml: not understood"),
                       (("agents", "not-a-path"), "ENTITY/PROJECT/ID")]:
        code, text = sweep(place, *args)
        assert code == 2 and said in text and "Traceback" not in text, text


def test_a_run_folder_that_is_half_written_is_refused(place):
    workplace(place, LR)
    first = Sweep("s.yaml").points()[0].folder
    first.mkdir(parents=True)
    (first / "spec.yaml").write_text("")
    code, text = sweep(place, "run", "s.yaml")
    assert code == 2 and first.name in text and "remove that folder" in text
    assert not (place / "starts.txt").exists()


@pytest.mark.parametrize("text", ["1e-4", "1E5", "-2e3", "1.5e8", "1_000e3", ".5e2"])
def test_the_number_to_write_instead_is_one_to_yaml(text):
    assert isinstance(yaml.safe_load(text), str)
    assert yaml.safe_load(yaml_number(text)) == float(text)


def test_arguments_are_those_of_wandbs_own_agent():
    """The same values through wandb's create_sweep_command_args."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {("optim.lr",): 3e-4, ("model", "n_layer"): 4, ("model", "tied"): True,
              ("track.tags",): ["a", "b"], ("sample.top_k",): None, ("device.malloc",): False}
    given = command.nested(values)
    theirs = utils.create_sweep_command_args({"args": {k: {"value": v} for k, v in given.items()}})
    for name in set(command.ARGS) - {"args_json_file"}:
        assert command.ARGS[name](given) == theirs[name], name


@pytest.mark.parametrize("macro", ["args", "args_no_hyphens", "args_no_equals", "args_json",
                                   "args_json_file", "args_append_hydra", "args_override_hydra"])
def test_every_way_of_passing_values_gives_the_same_run(place, macro):
    path = workplace(place, {"optim": {"parameters": {"lr": {"value": 1.0e-5}}},
                             "model.tied": {"value": False}, "track.tags": {"value": ["x", "y"]}})
    text = path.read_text().replace("${args}", "${" + macro + "}")
    path.write_text(text)
    spec = Sweep(path).points()[0].spec
    assert (spec.optim.lr, spec.model.tied, spec.track.tags) == (1e-5, False, ["x", "y"])


def test_quantiles_draw_from_the_distribution():
    """Against the moments of each distribution, over a fine even grid of quantiles."""
    def draws(**p):
        assert space.problems(p) == []
        return [space.quantile(p, (i + 0.5) / 10_000) for i in range(10_000)]

    assert statistics.mean(draws(min=1.0, max=3.0)) == pytest.approx(2, abs=1e-3)
    assert set(draws(min=1, max=4)) == {1, 2, 3, 4}
    logs = [math.log(x) for x in draws(distribution="log_uniform_values", min=1e-4, max=1e-2)]
    assert statistics.mean(logs) == pytest.approx(math.log(1e-3), abs=1e-3)
    assert max(logs) - min(logs) == pytest.approx(math.log(100), abs=1e-2)
    normal = draws(distribution="normal", mu=2, sigma=0.5)
    assert statistics.mean(normal) == pytest.approx(2, abs=1e-3)
    assert statistics.stdev(normal) == pytest.approx(0.5, abs=1e-2)
    assert set(draws(distribution="q_uniform", min=0, max=8, q=4)) == {0, 4, 8}
    weighted = draws(values=["a", "b"], probabilities=[0.9, 0.1])
    assert weighted.count("a") == 9000


def test_hyperband_stops_as_wandbs_engine_does():
    """The example in the documentation of wandb/sweeps' hyperband_stopping.py: bands 1 and 2 of
    max_iter 5, eta 2, s 2, five runs, b and c below the best half where they stand."""
    stop = {"type": "hyperband", "max_iter": 5, "eta": 2, "s": 2, "strict": True}
    histories = {"a": [10, 9], "b": [10, 10], "c": [10, 8, 8], "d": [10, 7, 7], "e": [10, 6, 6]}
    assert bandit.bands(stop) == [1, 2]
    assert set(bandit.to_stop(histories, ["b", "c", "d"], stop)) == {"b"}
    assert bandit.bands({"min_iter": 3, "eta": 2})[:4] == [3, 6, 12, 24]
    assert bandit.bands({"max_iter": 27, "s": 2}) == [3, 9]


def test_a_history_grows_with_its_file_and_starts_over_when_that_is_shortened(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = bandit.History(path, "val/loss", maximize=False)
    assert history.read() == []
    path.write_text('{"val/loss": 3}\n{"train/loss": 9}\n{"val/loss": 2}\n{"val/lo')
    assert history.read() == [3, 2]
    path.write_text('{"val/loss": 3}\n{"train/loss": 9}\n{"val/loss": 2}\n{"val/loss": null}\n')
    assert history.read() == [3, 2]
    path.write_text('{"val/loss": 5}\n')
    assert history.read() == [5]


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_sweep_is_sound(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    points = Sweep(file).points()
    assert points and not any(p.dropped for p in points)
    assert file.read_text().startswith("#"), "opens with the question it answers and its cost"


def test_the_name_of_a_sweep_is_its_files(place):
    assert read_sweep(workplace(place, LR)).name == "s"
    assert read_sweep(workplace(place, LR, name="My sweep: two")).name == "My-sweep-two"
