"""optim.lr: auto, from the spec to the table, and the law behind it: fitted to made-up runs whose
law is known, and read back."""
import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from run_folders import spec_of, write_run
from tiny import only_run, write_spec

import run
from analysis import fit_lr_law, load_runs
from analysis.lr_law import main
from slm.errors import ImpossiblePoint, UserError
from slm.lr_law import STEP_LAW, read_law
from slm.plan import describe, make_plan
from slm.spec import as_dict, identity

LAW = "0.004 N^-0.5 D^0.25 [matmul, adamw, sp, N 1..1e+09, D 1..1e+09]"
RATES = tuple(np.geomspace(2.5e-4, 3.2e-2, 8))


def trials(noise=0.0, sizes=(1e6, 4e6, 1.6e7), horizons=(1e7, 1e8), rates=RATES, seed=0, **more):
    """Runs whose best rate is 1.5 N^-0.5 D^0.1 in every cell, by a parabola in its logarithm."""
    rng, rows = np.random.default_rng(seed), []
    for n in sizes:
        for d in horizons:
            best = 1.5 * n ** -0.5 * d ** 0.1
            for lr in rates:
                loss = 3 * math.exp(0.02 * math.log(lr / best) ** 2 + noise * rng.normal())
                rows.append(dict(run=f"{n:g}-{d:g}-{lr:g}", n_params=n, tokens=d, flops=6 * n * d,
                                 lr=lr, loss=loss, optimizer="adamw", parametrization="sp", **more))
    return pd.DataFrame(rows)


# -- the law -------------------------------------------------------------------------------------

def test_step_law_by_hand():
    """1.79 * (1e9)^-0.713 * (1e11)^0.307 = 1.79 * 10^(-6.417 + 3.377) = 1.79 * 10^-3.04."""
    assert STEP_LAW.rate({"blocks": 10**9}, 1e11) == pytest.approx(1.79 * 10**-3.04, rel=1e-12)
    # N is attention and MLP alone: row 1 of the runs in the authors' repository step-law/steplaw
    from slm.cost import count_params
    from slm.shape import PRESETS, GPTConfig
    shape = GPTConfig(n_layer=7, n_head=15, n_embd=960, d_ff=9368, block_size=2048,
                      vocab_size=65536, **PRESETS["llama"])
    assert count_params(shape)["blocks"] == 214_663_680


def test_a_law_without_noise_is_found_exactly():
    fit = fit_lr_law(trials(), bootstrap=50)
    assert (fit.law.n, fit.law.d, fit.law.scale) == pytest.approx((-0.5, 0.1, 1.5), rel=1e-6)
    assert fit.law.n_range == (1e6, 1.6e7) and fit.law.count == "matmul"
    assert read_law(str(fit.law)).rate({"matmul": 10**6}, 1e7) == pytest.approx(
        1.5 * 1e-3 * 10**0.7, rel=1e-9)


def test_intervals_hold_the_truth_as_often_as_they_say_and_seeds_shrink_them():
    def studies(seeds):
        return [fit_lr_law(pd.concat([trials(0.004, seed=10 * i + s).assign(seed=float(s))
                                      for s in range(seeds)]), bootstrap=200) for i in range(30)]
    one, four = studies(1), studies(4)
    for name, truth in (("n", -0.5), ("d", 0.1)):
        for fits in (one, four):
            held = sum(f.intervals[name][0] < truth < f.intervals[name][1] for f in fits)
            assert 25 <= held, (name, held)              # of 30 at 95 %
        widths = [np.mean([np.ptp(f.intervals[name]) for f in fits]) for fits in (one, four)]
        assert 0.35 * widths[0] < widths[1] < 0.7 * widths[0]        # a half: sqrt(4)


def test_a_cell_with_its_best_at_the_edge_is_left_out_and_said():
    runs = trials(horizons=(1e7, 1e8, 1e9))
    best = 1.5 * 1.6e7 ** -0.5 * 1e9 ** 0.1
    cut = runs[(runs.n_params < 1.6e7) | (runs.tokens < 1e9) | (runs.lr < best / 2)]
    fit = fit_lr_law(cut, bootstrap=50)
    assert (fit.law.n, fit.law.d) == pytest.approx((-0.5, 0.1), rel=1e-6)
    text = fit.summary()
    assert "8 of 9 cells" in text and "is the highest tried" in text and "widen the range" in text
    assert len(fit.to_dict()["left_out"]) == 1


@pytest.mark.parametrize("runs, says", [
    (trials(rates=RATES[:2]), "2 learning rates, needs 3"),
    (trials(sizes=(1e6,), horizons=(1e7,)), "1 of 1 cells"),
    (pd.concat([trials(sizes=(n,), horizons=(20 * n,)) for n in (1e6, 2e6, 4e6, 8e6)]),
     "vary together.*over=N"),
    (pd.concat([trials(), trials(seed=1).assign(optimizer="muon")]), "2 kinds of optimizer"),
    (trials().drop(columns="lr"), "no column lr")])
def test_runs_that_give_no_law_are_refused_in_one_line(runs, says):
    with pytest.raises(UserError, match=says) as e:
        fit_lr_law(runs, bootstrap=50)
    assert "\n" not in str(e.value)


def test_one_axis_alone_and_other_settings():
    line = pd.concat([trials(sizes=(n,), horizons=(20 * n,)) for n in (1e6, 2e6, 4e6, 8e6)])
    fit = fit_lr_law(line, over="N", bootstrap=50)
    assert fit.law.n == pytest.approx(-0.4, rel=1e-6) and fit.law.d == 0     # -0.5 + 0.1
    worse = trials().assign(batch_tokens=2048.0, loss=lambda r: r.loss * 1.1 * r.lr ** 0.05)
    both = fit_lr_law(pd.concat([trials().assign(batch_tokens=1024.0), worse]), bootstrap=50)
    assert both.law.n == pytest.approx(-0.5, rel=1e-6)
    assert any("those with the settings of the cell's best run" in n for n in both.notes)


# -- the command and the spec --------------------------------------------------------------------

def test_from_runs_to_a_file_to_a_run(tmp_path, capsys):
    for width in (16, 32, 64):
        for tokens in (20_480, 81_920):
            for lr in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2):
                loss = 3 + 0.05 * math.log(lr / 4e-3) ** 2
                write_run(tmp_path / "runs", loss, model__n_embd=width, train__tokens=tokens,
                          optim__lr=lr)
    out = tmp_path / "law.json"
    assert main([str(tmp_path / "runs"), "--out", str(out), "--bootstrap=50"]) == 0
    assert "6 of 6 cells" in capsys.readouterr().out
    spec = spec_of(tmp_path, optim__lr="auto", optim__lr_law=str(out))
    plan = make_plan(spec, 512)
    assert plan.optim.lr == pytest.approx(4e-3, rel=1e-3)
    # the law itself is in the spec, so that the file may go; another law is another run
    out.unlink()
    again = spec_of(tmp_path, **{k.replace(".", "__"): v for k, v in
                                 {"optim.lr": "auto", "optim.lr_law": spec.optim.lr_law}.items()})
    assert as_dict(again) == as_dict(spec)
    other = spec_of(tmp_path, optim__lr="auto", optim__lr_law=LAW)
    assert len({identity(s) for s in (spec, other, spec_of(tmp_path, optim__lr="auto"))}) == 3
    assert main([str(tmp_path / "gone")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_sweeps_agent_may_ask_for_a_law_or_for_no_rule(tmp_path, monkeypatch):
    """What is asked is compared with the resolved spec, where the file has become the law."""
    from slm.mirror import check_swept
    fit_file, asked = tmp_path / "law.json", tmp_path / "asked.yaml"
    fit_file.write_text(json.dumps(fit_lr_law(trials(), bootstrap=50).to_dict()))
    spec = spec_of(tmp_path, optim__lr="auto", optim__lr_law=str(fit_file))
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(asked))
    for law, lines in ((str(fit_file), 0), (LAW, 1), ("step-law", 1)):
        asked.write_text(yaml.safe_dump({"optim.lr": {"value": "auto"},
                                         "optim.lr_law": {"value": law},
                                         "train.batch_rule": {"value": "none"}}))
        assert len(check_swept(as_dict(spec))) == lines


def test_the_effective_rate_is_printed_recorded_and_in_the_table(tmp_path, capsys):
    spec = write_spec(tmp_path, optim__lr="auto", optim__lr_law=LAW, model__dropout=0.0)
    assert run.main([str(spec)]) == 0
    folder = only_run(tmp_path)
    rate = 0.004 * (12 * 16**2 + 512 * 16) ** -0.5 * (20 * 128) ** 0.25
    printed = capsys.readouterr().out
    assert f"lr auto -> {rate:.4g} (0.004 N^-0.5 D^0.25, optim.lr_law; N = 11,264 matmul" in printed
    facts = json.loads((folder / "summary.json").read_text())
    assert facts["optim"]["lr"] == pytest.approx(rate, rel=1e-12) and "auto" in facts["rules"]["lr"]
    assert yaml.safe_load((folder / "spec.yaml").read_text())["optim"]["lr"] == "auto"
    row = load_runs(tmp_path / "runs", spec_keys=["optim.lr"]).iloc[0]
    assert row["lr"] == facts["optim"]["lr"] and row["optim.lr"] == "auto"
    logged = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 0 < max(r.get("lr", 0) for r in logged) <= rate * (1 + 1e-12)
    (folder / "summary.json").unlink()                     # its facts lost: not known any more
    assert math.isnan(load_runs(tmp_path / "runs").iloc[0]["lr"])


def test_the_plan_says_how_far_outside_of_its_range_a_law_is_used(tmp_path):
    spec = spec_of(tmp_path, optim__lr="auto")
    plan = make_plan(spec, 512)
    rate = STEP_LAW.rate({"blocks": 12 * 16**2}, 20_480)
    assert plan.optim.lr == rate and spec.optim.lr_law == "step-law"
    line = next(x for x in describe(spec, plan).splitlines() if x.startswith("lr "))
    assert f"auto -> {rate:.4g}" in line and "2503.04715" in line and "the smallest fitted" in line


@pytest.mark.parametrize("values, says", [
    ({"optim.lr": "atuo"}, "optim.lr = 'atuo': should be a number > 0 or auto"),
    ({"optim.lr": True}, "should be a number > 0 or auto"),
    ({"optim.lr": -1}, "should be a number > 0 or auto"),
    ({"optim.lr": "auto", "optim.lr_law": "gone.json"}, "gone.json': .*no such file"),
    ({"optim.lr": "auto", "optim.lr_law": "broken.json"}, "the file is no JSON"),
    ({"optim.lr": "auto", "optim.lr_law": "half.json"}, "the file holds no d"),
    ({"optim.lr": "auto", "optim.lr_law": LAW.replace("adamw", "sgd")}, "optimizer is 'sgd'"),
    ({"optim.lr_law": "x.json"}, "does nothing with optim.lr = 0.001 .needs auto")])
def test_wrong_values_give_one_line(values, says, tmp_path, monkeypatch):
    from slm.spec import load_spec
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"scale": 1')
    (tmp_path / "half.json").write_text('{"scale": 1, "n": 0}')
    with pytest.raises(UserError, match=says) as e:
        load_spec([], {"train.steps": 5, **values})
    assert not isinstance(e.value, ImpossiblePoint) and "\n" not in str(e.value)


@pytest.mark.parametrize("values, says", [
    ({"model.parametrization": "mup"}, "holds for model.parametrization = sp, not mup"),
    ({"optim.name": "muon"}, "holds for optim.name = adamw, not muon")])
def test_a_law_is_refused_where_it_does_not_hold(values, says, tmp_path):
    from slm.spec import load_spec
    with pytest.raises(ImpossiblePoint, match=says):
        load_spec([], {"train.steps": 5, "optim.lr": "auto", **values})
    fitted = LAW.replace("adamw, sp", f"{values.get('optim.name', 'adamw')}, "
                                      f"{values.get('model.parametrization', 'sp')}")
    assert load_spec([], {"train.steps": 5, "optim.lr": "auto", "optim.lr_law": fitted, **values})
