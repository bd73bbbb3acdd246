"""Laws of synthetic runs: intervals, predictions, clusters, forms, refusals and warnings."""
import json

import numpy as np
import pandas as pd
import pytest

from run_folders import write_run

from analysis import best_settings, fit_law, load_runs, load_table
from analysis.scaling import Law
from analysis.scaling.checks import epoch_warnings, fit_warnings
from analysis.scaling.forms import FORMS
from slm.errors import UserError

TRUE = dict(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def loss_of(n, d):
    return TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]


def ladder(n_sizes=5, n_tokens=4, noise=0.004, seed=0, **more) -> pd.DataFrame:
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e5, 1e7, n_sizes),
                                           np.geomspace(1e7, 1e9, n_tokens)))
    luck = noise * np.random.default_rng(seed).standard_normal(len(n))
    return pd.DataFrame({"run": [f"r{i}" for i in range(len(n))], "n_params": n, "tokens": d,
                         "flops": 6 * n * d, "loss": loss_of(n, d) * np.exp(luck), **more})


def checkpoints(noise=0.004, seed=0, each=6) -> pd.DataFrame:
    """Every run evaluated at several points; the run's luck is shared by its rows."""
    last = ladder(noise=0, seed=seed)
    luck = noise * np.random.default_rng(seed).standard_normal(len(last))
    rows = [last.assign(tokens=last.tokens * f, flops=last.flops * f,
                        loss=loss_of(last.n_params, last.tokens * f) * np.exp(luck))
            for f in np.geomspace(0.2, 1, each)]
    return pd.concat(rows, ignore_index=True)


def width(law, name="alpha"):
    return law.intervals[name][1] - law.intervals[name][0]


# -- what a law says -----------------------------------------------------------------------------

def test_a_law_tells_its_parameters_and_how_it_was_made():
    law = fit_law(ladder(), bootstrap=300)
    for name, value in TRUE.items():
        low, high = law.intervals[name]
        assert low < law.params[name] < high and low < value < high, name
    text = law.summary()
    for word in ("E + A / N^alpha", "20 runs", "objective", "Huber", "starts", "resamples",
                 "variable projection", "cross-validation"):
        assert word in text
    assert json.loads(json.dumps(law.to_dict()))["params"]["alpha"] == law.params["alpha"]


def test_the_same_seed_gives_the_same_law_and_row_order_does_not_matter():
    runs = ladder()
    a, b = fit_law(runs, bootstrap=200), fit_law(runs, bootstrap=200)
    assert a.intervals == b.intervals
    shuffled = fit_law(runs.sample(frac=1, random_state=3), bootstrap=200)
    for name in a.params:
        assert shuffled.params[name] == pytest.approx(a.params[name], rel=1e-5)
    assert fit_law(runs, bootstrap=200, seed=1).intervals != a.intervals


def test_intervals_shrink_with_noise_and_grow_with_level():
    assert width(fit_law(ladder(noise=0.002), bootstrap=300)) \
        < 0.7 * width(fit_law(ladder(noise=0.008), bootstrap=300))
    assert width(fit_law(ladder(), bootstrap=300, level=0.8)) \
        < width(fit_law(ladder(), bootstrap=300, level=0.95))


def test_predictions_hold_parameters_and_noise():
    law = fit_law(ladder(noise=0.006), bootstrap=500)
    p = law.predict(n_params=2e7, tokens=2e9)
    assert p.low < p.band_low < p.value < p.band_high < p.high
    assert p.value == pytest.approx(loss_of(2e7, 2e9), rel=0.02)
    many = law.predict(n_params=[1e6, 2e7], tokens=2e9)
    assert many.value.shape == (2,) and many.value[1] == pytest.approx(p.value)
    assert str(p) and str(many)
    both = law.predict(n_params=[1e6, 1e9], tokens=[1e8, 1e11])
    near, far = (both.band_high - both.band_low) / both.value
    assert near < far


def test_a_known_floor_is_kept_and_narrows_the_exponents():
    free = fit_law(ladder(), bootstrap=300)
    known = fit_law(ladder(), bootstrap=300, floor=1.8)
    assert known.params["E"] == 1.8 and "E" not in known.intervals
    assert width(known) < width(free)
    assert "known" in known.summary()
    column = fit_law(ladder().assign(floor=1.8), bootstrap=300, floor="floor")
    assert column.params == known.params
    with pytest.raises(UserError, match="not above the known floor"):
        fit_law(ladder(), floor=5.0)


def test_floors_may_differ_by_run():
    runs = ladder()
    runs["floor"] = np.where(np.arange(len(runs)) % 2, 1.8, 1.1)
    runs["loss"] += runs["floor"] - 1.8
    law = fit_law(runs, bootstrap=100, floor="floor")
    assert law.params["alpha"] == pytest.approx(TRUE["alpha"], abs=0.02)
    with pytest.raises(UserError, match="floor="):
        law.predict(n_params=1e7, tokens=1e9)
    assert law.predict(n_params=1e7, tokens=1e9, floor=1.1).value == pytest.approx(3.78, abs=0.05)


# -- runs are the unit ---------------------------------------------------------------------------

def test_checkpoints_are_resampled_by_run_and_warned_of():
    """Six rows of one run tell little more than one; taken as independent they would give
    intervals 1 / sqrt(6) as wide."""
    rows = checkpoints()
    law = fit_law(rows, bootstrap=500, resampling="residuals")
    assert any("not independent" in w for w in law.warnings)
    wrong = fit_law(rows.assign(run=np.arange(len(rows))), bootstrap=500, resampling="residuals")
    assert width(law) > 1.7 * width(wrong)
    by_runs = fit_law(rows, bootstrap=500, resampling="runs")
    assert 0.4 < width(law) / width(by_runs) < 2


def test_reduced_coverage_study():
    """A small benchmarks/interval_coverage.py. Intervals from rows instead of runs hold the truth
    two times in three, and so do predictions without the noise of a run: both would fail here."""
    hits, row_hits, new_hits, band_hits = [], [], [], []
    for seed in range(30):
        rows = checkpoints(seed=100 + seed, each=4)
        options = dict(bootstrap=200, polish=8, resampling="residuals")
        law = fit_law(rows, **options)
        wrong = fit_law(rows.assign(run=np.arange(len(rows))), **options)
        for name in ("alpha", "beta"):
            hits.append(law.intervals[name][0] <= TRUE[name] <= law.intervals[name][1])
            row_hits.append(wrong.intervals[name][0] <= TRUE[name] <= wrong.intervals[name][1])
        p = law.predict(n_params=1.2e7, tokens=1.2e9)
        new = loss_of(1.2e7, 1.2e9) * np.exp(0.004 * np.random.default_rng(seed).standard_normal(8))
        new_hits += list((p.low <= new) & (new <= p.high))
        band_hits += list((p.band_low <= new) & (new <= p.band_high))
    assert np.mean(hits) >= 0.85 and np.mean(new_hits) >= 0.85
    assert np.mean(row_hits) < 0.8 and np.mean(band_hits) < 0.8


def test_held_out_coverage_is_reported():
    coverage = fit_law(ladder(6, 5), bootstrap=200).coverage
    assert coverage["cross_validation"]["n"] == 30
    assert coverage["largest"]["n"] == 6
    assert coverage["cross_validation"]["inside"] >= 24
    few = fit_law(ladder(3, 3), "L(N)", bootstrap=100).coverage
    assert "n" in few["largest"] or "skipped" in few["largest"]


# -- other forms ---------------------------------------------------------------------------------

@pytest.mark.parametrize("form, column, names", [
    ("L(N)", "n_params", ("E", "A", "alpha")), ("L(D)", "tokens", ("E", "B", "beta")),
    ("L(C)", "flops", ("E", "K", "gamma")), ("L(N) no floor", "n_params", ("A", "alpha")),
    ("L(D) no floor", "tokens", ("B", "beta")), ("L(C) no floor", "flops", ("K", "gamma"))])
def test_laws_of_one_variable(form, column, names):
    x = np.repeat(np.geomspace(1e5, 1e8, 8), 2)
    floor = 0.0 if "no floor" in form else 1.5
    loss = (floor + 60 * x ** -0.35) * np.exp(0.003 * np.random.default_rng(0).standard_normal(16))
    runs = pd.DataFrame({"run": range(16), "n_params": 1e6, "tokens": 1e8, "flops": 1e15,
                         "loss": loss}).assign(**{column: x})
    law = fit_law(runs, form, bootstrap=300)
    assert tuple(law.params) == names
    low, high = law.intervals[names[-1]]
    assert low < 0.35 < high
    p = law.predict(**{column: 1e9})
    assert p.low < floor + 60 * 1e9 ** -0.35 < p.high


def test_repeated_data_knows_what_epochs_are_worth():
    n, u, e = (v.ravel() for v in np.meshgrid(np.geomspace(1e5, 1e7, 4), [1e6, 1e7, 5e7],
                                              [1.0, 4.0, 16.0, 64.0]))
    worth = u * (1 + 15 * (1 - np.exp(-(e - 1) / 15)))
    runs = pd.DataFrame({"run": range(len(n)), "n_params": n, "tokens": u * e, "unique_tokens": u,
                         "flops": 6 * n * u * e, "loss": loss_of(n, worth)})
    law = fit_law(runs, "repeated_data", bootstrap=50)
    assert law.params["R_D"] == pytest.approx(15, rel=0.01)
    once = law.predict(n_params=1e7, tokens=1e9, unique_tokens=1e9).value
    often = law.predict(n_params=1e7, tokens=1e9, unique_tokens=1e7).value
    assert once == pytest.approx(loss_of(1e7, 1e9), rel=1e-3) and often > once
    flags = [w for w in fit_law(runs, bootstrap=50).warnings if "more than 4 times" in w]
    assert len(flags) == 1 and flags[0].startswith("24 of 48 runs") and "(up to 64)" in flags[0]
    assert "form repeated_data" in flags[0]              # and with it, or below 4, no flag
    new = runs[runs.tokens <= 4 * runs.unique_tokens]
    assert not any("4 times" in w for w in law.warnings)
    assert not epoch_warnings(new, FORMS["chinchilla"])


def test_a_ladder_of_run_folders_that_repeats_its_data_is_flagged(tmp_path):
    """Training data of run_folders: a million tokens. 8 horizons, 5 of them beyond 4 epochs."""
    for width in (16, 32, 64):
        for times in (1, 2, 3, 4, 6, 8, 12, 24):
            write_run(tmp_path, loss_of(12 * width**2 + 512 * width, 1e6 * times),
                      model__n_embd=width, train__tokens=times * 1_310_720,
                      train__batch_tokens=2**18)
    runs = load_runs(tmp_path)
    assert runs["epochs"].max() == pytest.approx(24 * 1.31072)
    flag = next(w for w in fit_law(runs, bootstrap=20).warnings if "4 times" in w)
    assert flag.startswith("15 of 24 runs")


def test_any_column_can_be_n():
    runs = ladder().assign(N_total=lambda r: 3 * r.n_params)
    law, plain = fit_law(runs, bootstrap=50, n_params="N_total"), fit_law(runs, bootstrap=50)
    assert law.params["alpha"] == pytest.approx(plain.params["alpha"], rel=1e-3)
    with pytest.raises(UserError, match="no such column"):
        fit_law(runs, n_params="N_nothing")


# -- what is refused, and what is warned of ------------------------------------------------------

@pytest.mark.parametrize("change, message", [
    (lambda r: r.iloc[:0], "the table is empty"),
    (lambda r: r.iloc[:1], "needs at least 7 runs; there is 1"),
    (lambda r: r.iloc[:5], "needs at least 7 runs.*what these runs can tell: .*no floor"),
    (lambda r: r.assign(n_params=1e6), r"all runs have n_params = 1e\+06.*L\(D\)"),
    (lambda r: r[r.tokens.isin(sorted(set(r.tokens))[:2])], "only 2 different values of tokens"),
    (lambda r: r.assign(loss=np.nan), "none of 20 rows has a validation loss"),
    (lambda r: r.drop(columns="loss"), "no column loss"),
    (lambda r: r.drop(columns="tokens"), "no column tokens"),
    (lambda r: r.assign(loss="n/a"), "loss is 'n/a'"),
    (lambda r: r.assign(tokenizer=["gpt2", "bpe:512"] * 10), "not comparable.*allow_mixed=True"),
    (lambda r: r.assign(corpus=["fables"] * 19 + ["tinystories"]), "2 kinds of corpus"),
    (lambda r: r.assign(eval_tokens=[4000.0] * 12 + [20000.0] * 8),
     r"eval_tokens 4,000, 20,000.*not comparable.*runs\[runs.eval_tokens == 4000\], --where"),
    (lambda r: r.assign(floor=[0.41] * 12 + [0.42] * 8), "floor 0.41, 0.42.*not comparable"),
    (lambda r: r.assign(horizon_tokens=2 * r.tokens, schedule="cosine", reason="time limit of 3 s"),
     r"20 of 20 rows left out: stopped short .*not decayed \(time limit of 3 s\)"),
    (lambda r: r.assign(status="diverged"), "no usable run: 20 of 20 rows left out: diverged"),
    (lambda r: r.to_dict(), "DataFrame"),
])
def test_tables_that_are_refused(change, message):
    with pytest.raises(UserError, match=message) as e:
        fit_law(change(ladder()), bootstrap=20)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("options, message", [
    (dict(form="chinchila"), "there are chinchilla"), (dict(resampling="rows"), "there are auto"),
    (dict(form="L(N) no floor", floor=1.0), "has no floor"),
    (dict(floor="floor"), "no column floor"), (dict(bootstrap=0), "bootstrap=0: should be 2"),
    (dict(level=95), "level=95: should lie between 0 and 1"), (dict(delta=0), "delta=0: should be"),
    (dict(floor=-1), "floor=-1: a known floor is"), (dict(polish=0), "polish=0: should be 1"),
    (dict(form="repeated_data"), "no column unique_tokens")])
def test_options_that_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        fit_law(ladder(), **{"bootstrap": 20, **options})


def test_predictions_that_are_refused():
    law = fit_law(ladder(), bootstrap=20)
    for bad, message in ((dict(n_params=1e6), "needs tokens"),
                         (dict(n_params=-1, tokens=1e8), "positive")):
        with pytest.raises(UserError, match=message):
            law.predict(**bad)


def test_rows_left_out_are_told():
    runs = ladder(6, 4)
    runs.loc[0, "loss"], runs.loc[1, "loss"] = np.nan, np.inf
    runs["status"] = ["finished"] * 22 + ["diverged", "preempted"]
    law = fit_law(runs, bootstrap=50)
    assert len(law.runs) == 20
    told = " ".join(law.notes)
    assert "diverged" in told and "preempted" in told and "2 of 24 rows left out: without" in told


def test_runs_that_stopped_short_are_left_out_unless_nothing_was_to_decay():
    """A step of rounding is none; of checkpoints the last row decides."""
    runs = ladder(6, 4).assign(horizon_tokens=lambda r: r.tokens + 400.0, batch_tokens=512.0)
    runs.loc[[3, 7], "horizon_tokens"] *= 1.5
    runs["schedule"] = "cosine"
    law = fit_law(runs, bootstrap=20)
    assert len(law.runs) == 22 and any(n.startswith("2 of 24 rows left out: stopped short")
                                       for n in law.notes)
    assert len(fit_law(runs.assign(schedule="constant"), bootstrap=20).runs) == 24
    rows = checkpoints().assign(horizon_tokens=lambda r: r.groupby("run").tokens.transform("max"))
    assert len(fit_law(rows, bootstrap=20).runs) == len(rows)


@pytest.mark.parametrize("more, message", [
    (dict(eval_mode="windows", block_size=[64.0, 128.0] * 10), "block_size 64, 128"),
    (dict(eval_tokens=[4e3, 2e4] * 10), "not comparable")])
def test_evaluations_that_differ_are_told(more, message):
    law = fit_law(ladder(**more), bootstrap=20, allow_mixed="eval_tokens" in more)
    assert any(message in n for n in law.notes)


@pytest.mark.parametrize("more, message", [
    (dict(lr=1e-3), "not tuned per size"),
    (dict(warmup_tokens=1e6), "warm-up is longer than N tokens in 8 of 20"),
])
def test_training_that_bends_a_law_is_warned_of(more, message):
    assert any(message in w for w in fit_law(ladder(**more), bootstrap=20).warnings)
    if "lr" in more:
        good = fit_law(ladder(**more, parametrization="mup"), bootstrap=20)
        assert not any(message in w for w in good.warnings)


def test_learning_rates_at_the_edge_are_warned_of_and_the_best_is_kept():
    runs = pd.concat([ladder(seed=i).assign(lr=lr, loss=lambda r: r.loss * cost)
                      for i, (lr, cost) in enumerate([(1e-4, 1.1), (1e-3, 1.05), (1e-2, 1.0)])])
    runs["run"] = range(len(runs))
    warnings = " ".join(fit_law(runs, bootstrap=20).warnings)
    assert "several learning rates" in warnings
    assert "at the edge of those tried in 20 of 20" in warnings
    assert (best_settings(runs)["lr"] == 1e-2).all() and len(best_settings(runs)) == 20


def test_ill_identified_fits_say_so():
    narrow = ladder()
    narrow["n_params"] = narrow["n_params"] ** 0.02 * 1e6
    narrow["loss"] = loss_of(narrow.n_params, narrow.tokens) * np.exp(
        0.004 * np.random.default_rng(0).standard_normal(20))
    warnings = " ".join(fit_law(narrow, bootstrap=100).warnings)
    assert "ill-conditioned" in warnings and "don't" in warnings
    straight = ladder(noise=0.001)
    straight["loss"] -= 1.79999 * np.ones(20)
    floorless = fit_law(straight, bootstrap=100)
    assert any("not above zero" in w or "E is ill" in w for w in floorless.warnings)
    mixed = fit_law(ladder(), "L(N)", bootstrap=50)
    assert any("mixes both" in w for w in mixed.warnings)


def small(seed: int) -> pd.DataFrame:
    """A first sweep: a decade of sizes, less of tokens, noise of 3 %, far above the floor."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(2e4, 2e5, 9), np.geomspace(2e4, 1.6e5, 4)))
    loss = (0.42 + 280 / n ** 0.494 + 99 / d ** 0.318) * np.exp(
        0.03 * np.random.default_rng(seed).standard_normal(36))
    return pd.DataFrame({"run": range(36), "n_params": n, "tokens": d, "loss": loss, "floor": 0.42})


@pytest.fixture(scope="module")
def small_laws() -> dict[int, Law]:
    """By seed: a floor at its limit (4), one that its resamples pile at (5), neither (1), and, by
    the sign of the seed, the same with the floor known."""
    return {sign * seed: fit_law(small(seed), bootstrap=200, polish=16,
                                 floor="floor" if sign < 0 else None)
            for seed in (1, 4, 5) for sign in (1, -1)}


def test_no_interval_excludes_its_estimate_or_reaches_what_can_not_be(small_laws):
    for law in small_laws.values():
        for name, (low, high) in law.intervals.items():
            assert low <= law.params[name] <= high and np.isfinite(high), name
            assert low >= 0 or name == "E"
            assert name != "E" or low > -law.runs["loss"].min() / 2 or low == -np.inf
        p = law.predict(n_params=1e5, tokens=1e6)
        assert p.low <= p.band_low <= p.value <= p.band_high <= p.high
    turned = [not small_laws[k].resamples.percentiles for k in (1, 4, 5, -1, -4)]
    assert turned == [True, False, False, True, False]


def test_a_floor_at_the_limit_of_its_search_is_told_loudly(small_laws):
    law, piled, clear = (small_laws[k] for k in (4, 5, 1))
    assert law.intervals["E"][0] == -np.inf and law.to_dict()["intervals"]["E"][0] is None
    assert "AT THE LIMIT OF ITS SEARCH" in law.summary() and "limit" in law.notes[-1]
    told, = (w for w in law.warnings if "limit of its search" in w)
    assert "do not determine it" in told and 'fit_law(runs, floor="floor")' in told
    assert any("% of the resamples" in w and "no lower end" in w for w in piled.warnings)
    assert not any("limit of its search" in w for w in [*clear.warnings, *clear.notes])
    law.runs = law.runs.drop(columns="floor")
    assert any("say a known floor (floor=)" in w for w in fit_warnings(law))


def test_a_second_estimator_with_an_exponent_below_zero_is_warned_of(small_laws):
    law = small_laws[1]
    law.cross_check = {**law.params, "beta": -0.01}
    law.intervals = {**law.intervals, "beta": (0.0, 2 * law.params["beta"])}
    assert any("finds beta = -0.01" in w for w in fit_warnings(law))


def test_a_law_is_two_lines_in_a_notebook():
    law = fit_law(ladder(), bootstrap=50, floor=1.8)
    first, second = repr(law).split("\n")
    low, high = law.intervals["alpha"]
    assert law.form.equation in first and "20 runs" in first and "E 1.8 known" in second
    assert f"alpha {law.params['alpha']:.4g} [{low:.4g}, {high:.4g}]" in second


# -- tables from anywhere ------------------------------------------------------------------------

def test_load_table_maps_columns_of_files(tmp_path):
    runs = ladder()
    theirs = pd.DataFrame({"params": runs.n_params, "D": runs.tokens, "final": runs.loss,
                           "loss": -1.0, "name": runs.run})
    theirs.to_csv(tmp_path / "t.csv", index=False)
    theirs.to_parquet(tmp_path / "t.parquet")
    for source in (tmp_path / "t.csv", tmp_path / "t.parquet", theirs):
        table = load_table(source, n_params="params", loss="final", run="name")
        assert list(table.columns[:5]) == ["run", "n_params", "tokens", "flops", "loss"]
        assert np.allclose(table[["loss", "flops"]], runs[["loss", "flops"]])
        assert table.attrs["notes"] == ["compute taken as C = 6 N D"]
    assert fit_law(table, bootstrap=20).notes[0] == "compute taken as C = 6 N D"


def test_load_table_says_what_is_wrong(tmp_path):
    (tmp_path / "bad.csv").write_text('N,D,loss,name\n1,2,3,"a\nb"\n\n1,2,x,c\n')
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "t.txt").write_text("1")
    for call, message in ((lambda: load_table(tmp_path / "no.csv"), "no such file"),
                          (lambda: load_table(tmp_path / "bad.csv"), "loss is 'x' in line 5;"),
                          (lambda: load_table(ladder(), n_params="n_params", flops="C"),
                           "no column 'C' for flops"),
                          (lambda: load_table(ladder(), n_parms="n_params"),
                           "n_parms: .*did you mean n_params"),
                          (lambda: load_table(ladder(), n_params="tokens", tokens="tokens"),
                           "can't be both n_params and tokens"),
                          (lambda: load_table(tmp_path / "empty.csv"), "can't be read"),
                          (lambda: load_table(tmp_path / "t.txt"), "a .csv or .parquet"),
                          (lambda: load_table(ladder()), "no column 'N' for n_params"),
                          (lambda: load_table(pd.DataFrame({"N": [1], "loss": [2]})), "tokens=")):
        with pytest.raises(UserError, match=message):
            call()


def test_a_form_that_misses_more_than_seeds_do_is_warned_of():
    """Replicates tell luck from lack of fit: the true form passes, a wrong one does not."""
    rng = np.random.default_rng(3)
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e5, 1e7, 5), np.geomspace(1e7, 1e9, 4)))
    n, d = np.tile(n, 3), np.tile(d, 3)
    true = 1.8 + 400 / n ** 0.35 + 2000 / d ** 0.37
    told = {}
    for name, loss in (("true", true), ("bent", true * (1 + 0.1 * (d < 2e7)))):
        runs = pd.DataFrame({"run": np.arange(len(n)), "n_params": n, "tokens": d,
                             "flops": 6 * n * d,
                             "loss": loss * np.exp(0.003 * rng.standard_normal(len(n)))})
        told[name] = [w for w in fit_law(runs, bootstrap=50).warnings if "misses these runs" in w]
    assert not told["true"] and len(told["bent"]) == 1
    seeds = float(told["bent"][0].split("seeds move them by ")[1].split("%")[0])
    assert 0.2 <= seeds <= 0.4                # per cent: 0.3 it is, found beside the misfit
