"""Batch, learning rate and decay that follow the horizon: each by hand, off by default, and from
the spec to the table."""
import json
import math

import pytest
import yaml
from run_folders import spec_of
from sweep_fakes import sweep, workplace
from tiny import final_weights, metrics, only_run, write_spec

import run
from analysis import load_runs
from slm.errors import ImpossiblePoint, UserError
from slm.plan import describe, make_plan
from slm.rules import round_batch
from slm.spec import as_dict, load_spec
from slm.sweep.points import Sweep

# batch 1024 tokens = 32 sequences of 32, tuned at 20,480 tokens; D = 16 times that: 327,680
RULES = dict(train__batch_rule="power_lines", train__reference_tokens=20_480,
             optim__lr_rule="sqrt_batch", optim__decay_rule="horizon")


def plan_of(folder, **changes):
    return make_plan(spec_of(folder, **changes), 512)


def test_all_rules_by_hand(tmp_path):
    """16^0.383 = 2^1.532 = 2.8918: 32 -> 92.54 sequences, of 80 and 96 (three bits) nearer 96.
    lr times sqrt(96 / 32) = sqrt(3), decay times sqrt(3) / 16, 327,680 / 3072 = 106.67 steps."""
    plan = plan_of(tmp_path, **RULES, train__tokens=327_680, optim__lr=0.003, optim__name="muon",
                   optim__muon_lr=0.02, optim__weight_decay=0.1)
    assert plan.batch_size == 96 and plan.tokens_per_step == 3072 and plan.steps == 107
    assert plan.optim.lr == pytest.approx(0.003 * math.sqrt(3), rel=1e-12)
    assert plan.optim.muon_lr == pytest.approx(0.02 * math.sqrt(3), rel=1e-12)
    assert plan.optim.weight_decay == pytest.approx(0.1 * math.sqrt(3) / 16, rel=1e-12)
    lines = dict(x.split(None, 1) for x in describe(
        spec_of(tmp_path, **RULES, train__tokens=327_680), plan).splitlines())
    assert lines["batch"].startswith("1,024 -> 3,072 tokens") and "2.892" in lines["batch"]
    assert lines["lr"].startswith("0.003 -> 0.005196") and lines["muon_lr"].startswith("0.02 -> ")
    assert lines["weight_decay"].startswith("0.1 -> 0.01083")


@pytest.mark.parametrize("rule, batch, lr, decay", [
    (dict(train__batch_rule="power_lines"), 96, 0.003, 0.1),
    (dict(train__batch_rule="power_lines", optim__lr_rule="sqrt_batch"), 96, 0.003 * 3**0.5, 0.1),
    (dict(optim__decay_rule="horizon"), 32, 0.003, 0.1 / 16), ({}, 32, 0.003, 0.1)])
def test_each_rule_alone_changes_its_own(rule, batch, lr, decay, tmp_path):
    reference = {"train__reference_tokens": 20_480} if rule else {}
    plan = plan_of(tmp_path, **rule, **reference, train__tokens=327_680, optim__lr=0.003)
    now = plan.batch_size, plan.optim.lr, plan.optim.weight_decay
    assert now == (batch, pytest.approx(lr, rel=1e-12), pytest.approx(decay, rel=1e-12))
    assert len(plan.rules) == len(rule)


def test_at_the_reference_horizon_the_run_is_the_tuned_one(tmp_path):
    """However odd its batch: 13 sequences are no number of three significant bits."""
    base = dict(train__tokens=20_480, train__batch_tokens=13 * 32)
    plain, ruled = plan_of(tmp_path, **base), plan_of(tmp_path, **base, **RULES)
    assert (ruled.batch_size, ruled.steps, ruled.optim.lr, ruled.optim.weight_decay) == \
        (plain.batch_size, plain.steps, plain.optim.lr, plain.optim.weight_decay)


@pytest.mark.parametrize("wanted, base, batch", [
    (0.2, 8, 1), (1.4, 8, 1), (7.6, 1, 8), (9.4, 1, 10), (37.0, 12, 40), (92.5, 32, 96),
    (13.2, 13, 13), (1000.0, 8, 1024), (5.0, 1, 5)])
def test_batches_are_round(wanted, base, batch):
    assert round_batch(wanted, base) == batch


@pytest.mark.parametrize("horizon", [dict(train__flops=1e11), dict(train__tokens_per_param=10.0),
                                     dict(train__epochs=2.0)])
def test_every_horizon_in_tokens_serves(horizon, tmp_path):
    spec = spec_of(tmp_path, train__tokens=None, **horizon, **RULES)
    plan = make_plan(spec, 512, 100_000)
    n = 12 * 16**2 + 512 * 16
    tokens = {"train__flops": 1e11 / plan.flops_per_token["matmul"],
              "train__tokens_per_param": 10 * n, "train__epochs": 200_000}[list(horizon)[0]]
    wanted = 32 * (tokens / 20_480) ** 0.383
    assert plan.batch_size == round_batch(wanted, 32) != 32
    assert plan.steps == round(tokens / plan.tokens_per_step)
    assert plan.optim.weight_decay == pytest.approx(
        0.1 * math.sqrt(plan.batch_size / 32) * 20_480 / tokens, rel=1e-12)


def test_warm_up_in_tokens_counts_the_effective_batch(tmp_path):
    plan = plan_of(tmp_path, **RULES, train__tokens=327_680, optim__warmup_tokens=30_720)
    assert plan.warmup_steps == 10


BOTH = {"train.batch_rule": "power_lines", "train.reference_tokens": 1000, "train.tokens": 50_000}


@pytest.mark.parametrize("values, says", [
    ({"train.batch_rule": "power_lines", "train.tokens": 9}, "needs train.reference_tokens"),
    ({"train.reference_tokens": 9, "train.tokens": 9},
     "does nothing with train.batch_rule = none .* and optim.decay_rule = none"),
    ({"optim.lr_rule": "sqrt_batch", "train.tokens": 9}, "lr_rule.*does nothing with train.batch_"),
    ({**BOTH, "train.batch_rule": "power_line"}, "should be power_lines"),
    ({**BOTH, "optim.schedule": "wsd", "optim.warmup_tokens": 500, "train.branches": [20_000]},
     "train.batch_rule would give every branch settings of its own horizon"),
    ({"train.tokens": 50_000, "optim.lr": "auto", "optim.schedule": "wsd",
      "optim.warmup_tokens": 500, "train.branches": [20_000]}, "optim.lr = auto would give every")])
def test_what_makes_no_sense_is_refused_in_one_line(values, says):
    with pytest.raises(UserError, match=says) as e:
        load_spec([], values)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("values, says", [
    ({**BOTH, "train.tokens": None, "train.steps": 5}, "the batch would follow from itself"),
    ({**BOTH, "optim.lr_rule": "sqrt_batch", "optim.lr": "auto"}, "leave one of them out")])
def test_what_can_not_go_together_is_an_impossible_point(values, says):
    with pytest.raises(ImpossiblePoint, match=says):
        load_spec([], values)


def test_a_batch_that_processes_can_not_share_is_refused(tmp_path):
    spec = spec_of(tmp_path, **RULES, train__tokens=327_680)
    assert make_plan(spec, 512, world=8).micro_batch == 12
    with pytest.raises(UserError, match="3072 by train.batch_rule.*96 sequences.*5 processes"):
        make_plan(spec, 512, world=5)


def test_a_rule_of_a_base_file_can_be_switched_off_and_leaves_no_trace(tmp_path):
    (tmp_path / "a.yaml").write_text("".join(f"{k.replace('__', '.')}: {v}\n"
                                             for k, v in RULES.items()) + "train.tokens: 5000\n")
    on = load_spec([tmp_path / "a.yaml"])
    off = load_spec([tmp_path / "a.yaml"], {"train.batch_rule": "none", "optim.decay_rule": "none"})
    plain = load_spec([], {"train.tokens": 5000, "track.name": "a"})
    assert on.train.reference_tokens == 20_480 and as_dict(off) == as_dict(plain)


def test_a_sweeps_plan_shows_what_is_trained_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rules = {k.replace("__", "."): {"value": v} for k, v in RULES.items()}
    path = workplace(tmp_path, {"train.tokens": {"values": [20_480, 327_680]},
                                "model.block_size": {"value": 32}, "optim.lr": {"value": 0.003},
                                "train.batch_tokens": {"value": 1024}, **rules})
    assert [p.plan.batch_size for p in Sweep(path).points()] == [32, 96]
    code, out = sweep(tmp_path, "plan", str(path), "--slots=1")
    assert code == 0 and all(x in out for x in ("batch now", "3,072", "lr now", "0.0052"))
    points = json.loads(sweep(tmp_path, "plan", str(path), "--json")[1])["points"]
    assert [p["batch_tokens"] for p in points] == [1024, 3072]
    assert points[1]["lr"] == pytest.approx(0.003 * 3**0.5)


def test_a_run_has_the_effective_values_in_its_summary_and_in_the_table(tmp_path, capsys):
    """batch 128 = 4 sequences tuned at 1280 tokens; D = 5120: 4 * 4^0.383 = 6.80 -> 7 sequences."""
    spec = write_spec(tmp_path, train__steps=None, train__tokens=5120, model__dropout=0.0,
                      optim__lr=3e-3, **{**RULES, "train__reference_tokens": 1280})
    assert run.main([str(spec)]) == 0
    folder, lr, decay = only_run(tmp_path), 3e-3 * math.sqrt(7 / 4), 0.1 * math.sqrt(7 / 4) / 4
    printed = capsys.readouterr().out
    assert "batch 128 -> 224 tokens (power_lines" in printed and "weight_decay 0.1 -> " in printed
    facts = json.loads((folder / "summary.json").read_text())
    assert facts["batch"]["tokens"] == 224 and facts["horizon"]["steps"] == 23
    assert facts["optim"]["lr"] == pytest.approx(lr) and facts["steps_done"] == 23
    assert facts["optim"]["weight_decay"] == pytest.approx(decay)
    assert set(facts["rules"]) == {"batch", "lr", "weight_decay"}
    row = load_runs(tmp_path / "runs").iloc[0]
    assert (row["batch_tokens"], row["lr"], row["weight_decay"]) == (224, lr, decay)
    # and it is what trained: the same run with these numbers said outright, weight for weight
    (tmp_path / "plain").mkdir()
    plain = write_spec(tmp_path / "plain", train__steps=23, train__batch_tokens=224, optim__lr=lr,
                       optim__weight_decay=decay, model__dropout=0.0)
    assert run.main([str(plain), f"--data.cache={tmp_path / 'data'}"]) == 0
    a, b = final_weights(folder), final_weights(only_run(tmp_path / "plain"))
    assert all((a[k] == b[k]).all() for k in a)
    assert metrics(folder)[-1]["val/loss"] == metrics(only_run(tmp_path / "plain"))[-1]["val/loss"]
    resolved = yaml.safe_load((folder / "spec.yaml").read_text())
    assert resolved["train"]["batch_tokens"] == 128 and resolved["optim"]["lr"] == 3e-3
