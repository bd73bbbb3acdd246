"""Smoothing, seed noise, effects and the table of best settings, against closed forms and scipy."""
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.comparison import compare, effects, seed_noise, smooth, smooth_curves
from slm.errors import UserError


def grid(seeds=(0, 1, 2), noise=0.01, rng=0, tokens=(1e6,), loss=None, **more) -> pd.DataFrame:
    """layers x heads x width x tokens x seeds; loss(row) plus noise."""
    rng = np.random.default_rng(rng)
    rows = [dict(n_layer=L, n_head=h, n_embd=d, tokens=t, seed=s, n_params=12.0 * L * d * d,
                 flops=1.0, head_size=d // h, **more)
            for L, h, d, t, s in product((2, 4), (1, 2), (64, 128, 256), tokens, seeds)]
    table = pd.DataFrame(rows).assign(run=[f"r{i}" for i in range(len(rows))])
    loss = loss or (lambda r: 3 - 0.05 * np.log2(r.n_layer) - 0.1 * np.log2(r.n_embd))
    return table.assign(loss=loss(table) + noise * rng.standard_normal(len(table)))


# -- smoothing -----------------------------------------------------------------------------------

def test_smoothing_is_exact_on_lines_and_leaves_gaps():
    rng = np.random.default_rng(0)
    x = rng.permutation(np.concatenate([rng.uniform(0, 50, 400), [60, 75, 300]]))
    y = 3 - 0.2 * x
    y[[5, 17]] = np.nan, np.inf
    out = smooth(y, x, bandwidth=0.03)
    assert np.isnan(out[[5, 17]]).all()
    good = np.isfinite(y)
    assert np.allclose(out[good], y[good], atol=1e-9)          # the lone points and both ends too
    assert np.allclose(smooth([1.0, 2, 3, 4]), [1, 2, 3, 4]) and smooth([5.0])[0] == 5
    assert np.allclose(smooth([1.0, 3, 2], x=[7, 7, 7]), 2) and smooth([]).size == 0


def test_smoothing_is_weighted_least_squares_at_every_point():
    rng = np.random.default_rng(1)
    x, y = np.sort(rng.uniform(0, 1, 300)), rng.standard_normal(300)
    out = smooth(y, x, bandwidth=0.2)
    reach = 0.2 * (x[-1] - x[0])
    for i in (0, 1, 60, 255, 256, 299):
        w = np.clip(1 - (np.abs(x - x[i]) / reach) ** 3, 0, None) ** 3
        line = np.polyfit(x, y, 1, w=np.sqrt(w))
        assert out[i] == pytest.approx(np.polyval(line, x[i]), abs=1e-8)


def test_smoothing_does_not_lie_at_the_ends():
    """On a falling curve an average over the same window lies far off at the first point."""
    tokens = np.arange(1, 1001.0)
    truth, errors = 2 + 300 / (tokens + 100), []
    for seed in range(10):
        y = truth + 0.02 * np.random.default_rng(seed).standard_normal(1000)
        errors.append([(smooth(y, tokens, 0.05) - truth)[[0, -1]],
                       (smooth(y, np.log(tokens), 0.1) - truth)[[0, -1]]])
    plain, logged = np.mean(errors, 0)
    assert abs(plain[0]) < 0.05 and np.abs([plain[1], *logged]).max() < 0.015
    assert abs(y[:50].mean() - truth[0]) > 0.5


def test_smoothing_every_run_of_a_history():
    history = pd.DataFrame({"run": ["a"] * 5 + ["b"] * 4, "step": [0, 1, 2, 3, 4, 0, 1, 2, 3],
                            "tokens": [0.0, 1, 2, 4, 8, 1, 2, 4, 8],
                            "train/loss": [np.nan, 3, 2, 1, 0, 5, 5, 5, 5]})
    curves = smooth_curves(history, log_x=True, bandwidth=0.5)
    assert curves["run"].tolist() == ["a"] * 4 + ["b"] * 4
    assert np.allclose(curves["smooth"], [3, 2, 1, 0, 5, 5, 5, 5])     # lines in log tokens
    for bad, message in ((history.iloc[:0], "empty"), (history.drop(columns="tokens"), "tokens")):
        with pytest.raises(UserError, match=message):
            smooth_curves(bad)
    with pytest.raises(UserError, match="bandwidth"):
        smooth([1, 2], bandwidth=0)
    with pytest.raises(UserError, match="equally long"):
        smooth([1, 2], x=[1])


# -- noise ---------------------------------------------------------------------------------------

def test_seed_noise_is_the_pooled_standard_deviation():
    runs = grid().drop(index=[0, 1, 7])                        # cells of one, two and three seeds
    noise = seed_noise(runs)
    groups = [g["loss"].to_numpy() for _, g in runs.groupby(["n_layer", "n_head", "n_embd"])]
    dof = sum(len(g) - 1 for g in groups)
    squares = sum((len(g) - 1) * g.var(ddof=1) for g in groups if len(g) > 1)
    assert noise.dof == dof == 21 and noise.n_cells == 11 and noise.n_runs == 32
    assert noise.sd == pytest.approx(np.sqrt(squares / dof))
    low, high = stats.chi2.interval(0.95, dof)
    assert (noise.low, noise.high) == pytest.approx((np.sqrt(squares / high),
                                                     np.sqrt(squares / low)))
    assert noise.log_sd == pytest.approx(0.01 / 2.2, rel=0.5) and "21 degrees" in str(noise)


def test_what_is_no_replicate_is_not_taken_for_one():
    runs = grid(seeds=(0, 1))
    assert not seed_noise(runs[runs.seed == 0]).known
    assert not seed_noise(runs.drop(columns="seed")).known
    assert not seed_noise(runs.assign(lr=np.arange(len(runs)) * 1e-4)).known
    hidden = pd.concat([runs, runs.assign(run=runs.run + "b", loss=runs.loss + 1)])  # same seeds
    noise = seed_noise(hidden)
    assert not noise.known and "12 settings hold runs of one seed" in noise.notes[0]
    twice = seed_noise(hidden.assign(identity=list(range(24)) * 2))    # the same runs again
    assert twice.sd == seed_noise(runs).sd
    assert any("agree exactly" in n for n in seed_noise(grid(noise=0)).notes)
    wide = grid(seeds=range(8), noise=0)
    wide["loss"] += np.random.default_rng(0).standard_normal(96) * np.where(wide.n_layer == 2, 1e-3,
                                                                            0.1)
    assert any("Bartlett" in n for n in seed_noise(wide).notes)


# -- effects -------------------------------------------------------------------------------------

def test_balanced_effects_are_differences_of_means():
    runs = grid(rng=1, loss=lambda r: 3 - 0.05 * np.log2(r.n_layer) - 0.1 * np.log2(r.n_embd)
                + 0.06 * ((r.n_layer == 4) & (r.n_embd == 256)))
    found = effects(runs)
    mean = runs["loss"].mean()
    for _, row in found.levels.iterrows():
        assert row.effect == pytest.approx(runs[runs[row.factor] == row.level].loss.mean() - mean)
    by = runs.groupby(["n_layer", "n_embd"])["loss"].mean()
    both = found.interactions[found.interactions.term == "n_layer x n_embd"]
    for _, row in both.iterrows():
        sides = [runs[runs.n_layer == row.level_a].loss.mean(),
                 runs[runs.n_embd == row.level_b].loss.mean()]
        assert row.effect == pytest.approx(by[row.level_a, row.level_b] - sum(sides) + mean)
    terms = found.terms.set_index("term")
    squares = sum(12 * (g.loss.mean() - mean) ** 2 for _, g in runs.groupby("n_embd"))
    assert terms.loc["n_embd", "sum_sq"] == pytest.approx(squares)
    noise = seed_noise(runs)
    f = squares / 2 / noise.sd ** 2
    assert terms.loc["n_embd", "F"] == pytest.approx(f)
    assert terms.loc["n_embd", "p"] == pytest.approx(stats.f.sf(f, 2, noise.dof))
    assert terms.loc["n_layer x n_embd", "verdict"].startswith("clear")
    assert terms.loc["n_head", "verdict"].startswith("inside seed noise")
    d = found.doubling.set_index("factor").loc["n_layer"]
    two = runs[runs.n_layer == 4].loss.mean() - runs[runs.n_layer == 2].loss.mean()
    assert d.effect == pytest.approx(two)
    assert d.se == pytest.approx(noise.sd * np.sqrt(2 / 18))
    assert found.terms["share"].sum() <= 1 and "inside seed noise" in found.summary()


def test_unbalanced_effects_by_another_coding():
    """Sums of squares do not depend on how factors are coded, if each level sums to zero: here by
    fitting cell means and constraining them."""
    runs = grid(seeds=(0, 1, 2)).drop(index=[0, 1, 9, 10, 20]).reset_index(drop=True)
    found = effects(runs, factors=("n_layer", "n_embd"))
    runs["cell"] = runs.groupby(["n_layer", "n_embd", "n_head"]).ngroup()
    # the mean of a level over equally weighted cells of (layer, width) within blocks of n_head
    x = pd.get_dummies(runs[["n_layer", "n_embd"]].astype(str).agg("-".join, axis=1)).astype(float)
    heads = (runs.n_head == 2).to_numpy(float)[:, None]
    beta = np.linalg.lstsq(np.hstack([x, heads]), runs.loss, rcond=None)[0][:6]
    cell = pd.Series(beta, index=pd.MultiIndex.from_tuples(
        [tuple(map(int, c.split("-"))) for c in x.columns]))
    for _, row in found.levels.iterrows():
        level = 0 if row.factor == "n_layer" else 1
        want = cell[cell.index.get_level_values(level) == row.level].mean() - cell.mean()
        assert row.effect == pytest.approx(want)
    assert any("at equal n_head" in n for n in found.notes)


def test_other_settings_are_held_fixed_or_named():
    runs = grid(tokens=(1e6, 4e6), loss=lambda r: 3 - 0.3 * np.log2(r.tokens / 1e6)
                - 0.1 * np.log2(r.n_embd))
    runs = runs[(runs.tokens < 2e6) | (runs.n_embd > 64)]       # small ones never trained long
    d = effects(runs).doubling.set_index("factor").loc["n_embd"]
    assert d.low < -0.1 < d.high and d.se < 0.01
    tuned = effects(runs.assign(lr=1 / runs.n_embd))
    assert any("going along with these factors: lr" in n for n in tuned.notes)
    with pytest.raises(UserError, match="n_layer and n_embd can't be told apart"):
        effects(runs[runs.n_embd == runs.n_layer * 32])
    partly = effects(runs[(runs.n_layer == 2) | (runs.n_embd < 256)])
    assert any("not told: n_layer x n_embd" in n for n in partly.notes)


def test_without_replicates_noise_is_not_invented():
    runs = grid(seeds=(0,))
    found = effects(runs)
    assert found.yardstick == "residual" and found.dof == 2 and not found.noise.known
    assert "upper estimate" in found.summary() and "inside seed noise" not in found.summary()
    assert found.terms.set_index("term").loc["n_head", "verdict"].startswith("open")
    two = effects(runs[runs.n_head == 1], factors=("n_layer", "n_embd"))
    assert two.dof == 2 and any("interactions stand in" in n for n in two.notes)
    none = effects(runs[(runs.n_head == 1) & (runs.n_layer == 2)])
    assert none.yardstick == "none" and "noise unknown" in none.summary()
    assert none.terms["p"].isna().all()


def test_seeds_alone_are_called_noise():
    """Of 10 studies without any effect, few find one: family-wise error is near 5 %."""
    clear = worse = 0
    for rng in range(10):
        runs = grid(rng=rng, loss=lambda r: 2.0).drop(index=[0, 4, 5])
        found = compare(runs)
        clear += found.effects.terms["verdict"].str.startswith("clear").any()
        worse += found.table["verdict"].str.startswith("worse").any()
    assert clear <= 3 and worse <= 3


# -- best settings -------------------------------------------------------------------------------

def test_best_settings_as_tukey_tells_them():
    runs = grid(noise=0.03, lr=1e-3)
    runs = runs[runs.n_head == 1]
    found = compare(runs)
    t = found.table
    keys = ["n_layer", "n_embd"]
    means = runs.groupby(keys)["loss"].agg(["mean", "std", "size"]).sort_values("mean")
    assert np.allclose(t[["mean", "sd", "n_seeds"]], means.to_numpy())
    assert [tuple(r) for r in t[keys].to_numpy()] == list(means.index)
    assert "lr" not in t and t["setting"][0] == "n_layer=4 n_embd=256"
    p = stats.tukey_hsd(*[g.loss for _, g in runs.groupby(keys)]).pvalue
    order = list(runs.groupby(keys).groups)
    best = order.index(means.index[0])
    for _, row in t.iloc[1:].iterrows():
        worse = p[best, order.index(tuple(row[keys]))] < 0.05
        assert row.verdict.startswith("worse by" if worse else "same within noise")
        assert (row.low > 0) == worse
    assert {"best", "same within noise"} < set(t["verdict"]) and len(set(t["verdict"])) > 2
    text = found.summary()
    assert "6 settings, 18 runs" in text and "seed noise: sd" in text and "doubling n_embd" in text


def test_best_within_each_cell_and_without_replicates():
    runs = grid(seeds=(0,), tokens=(1e6, 4e6)).assign(seed=np.nan)
    found = compare(runs.assign(corpus="fables"), within=("tokens", "corpus"))
    assert (found.table["corpus"] == "fables").all() and "fables" not in found.table["setting"][0]
    assert (found.table["difference"] == 0).sum() == 2
    assert found.table["verdict"].str.contains("noise unknown").all()
    assert found.table.groupby("tokens")["mean"].min().tolist() == \
        runs.groupby("tokens")["loss"].min().tolist()
    assert "unknown" in found.summary()


def test_tokenizers_compare_by_bits_per_byte():
    runs = grid(tokenizer="gpt2", corpus="fables", val_sha256="a")
    other = runs.assign(run=runs.run + "b", loss=runs.loss * 0.6, tokenizer="bpe:512",
                        val_sha256="b")
    both = pd.concat([runs.assign(bits_per_byte=1.2), other.assign(bits_per_byte=1.1)])
    both["bits_per_byte"] += 1e-3 * np.random.default_rng(0).standard_normal(len(both))
    both = both[both.n_head == 1]
    found = compare(both)
    assert found.column == "bits_per_byte" and "not comparable" in found.notes[0]
    assert found.table["tokenizer"][0] == "bpe:512" and "(bits/byte)" in found.summary()
    with pytest.raises(UserError, match="not comparable"):
        compare(both, column="loss")
    with pytest.raises(UserError, match="bits_per_byte"):
        compare(both.drop(columns="bits_per_byte"))
    with pytest.raises(UserError, match="several validation sets"):
        compare(runs.assign(val_sha256=["a", "b"] * 18))
    with pytest.raises(UserError, match="2 kinds of corpus"):
        compare(runs.assign(corpus=["fables", "files"] * 18))
    few = runs.iloc[:6].assign(corpus=["fables", "files"] * 3)
    mixed = compare(few, allow_mixed=True)
    assert any("2 kinds of corpus" in n for n in mixed.notes)


@pytest.mark.parametrize("change, message", [
    (lambda r: r.iloc[:0], "the table is empty"), (lambda r: r.iloc[:1], r"one usable run \(r0\)"),
    (lambda r: r.assign(loss=np.nan), "none of 36 rows has a validation loss"),
    (lambda r: r.assign(status="diverged"), "no usable run: 36 of 36 rows left out: diverged"),
    (lambda r: r.drop(columns="loss"), "no column loss"), (lambda r: "runs/", "DataFrame")])
def test_tables_that_can_not_be_compared(change, message):
    with pytest.raises(UserError, match=message) as e:
        compare(change(grid()))
    assert "\n" not in str(e.value)


def test_odd_rows_are_told_and_odd_factors_leave_the_table():
    runs = grid(status="finished")
    runs.loc[0, "status"], runs.loc[1, "loss"] = "crashed", np.nan
    early = runs.iloc[[5]].assign(tokens=5e5, loss=9.0)         # a checkpoint on the way
    runs = pd.concat([runs, early])
    found = compare(runs)
    told = " ".join(found.notes)
    assert "crashed" in told and "without a finite" in told and "its last is taken" in told
    assert found.table["n_seeds"].sum() == 34 and found.table["mean"].max() < 5
    short = compare(runs.assign(horizon_tokens=2 * runs.tokens))     # stopped early: compared, told
    assert short.table["n_seeds"].sum() == 34 and "stopped short" in " ".join(short.notes)
    assert len(repr(short)) < 300 and "34 runs by loss" in repr(short)
    alone = compare(runs.drop(columns=["n_layer", "n_head", "n_embd"]))
    assert alone.effects is None and any("no column n_layer" in n for n in alone.notes)
    with pytest.raises(UserError, match="each has one value"):
        effects(runs[(runs.n_layer == 2) & (runs.n_head == 1) & (runs.n_embd == 64)])
    with pytest.raises(UserError, match="within: no column nothing"):
        compare(runs, within=("nothing",))


def test_one_odd_run_does_not_cost_the_effects_of_a_grid():
    runs = grid(seeds=(0,), tokens=(1e6, 4e6), group="grid")
    odd = runs.iloc[:1].assign(run="odd", group=None, n_layer=8, n_head=8, n_embd=512, loss=1.0)
    with_odd, alone = effects(pd.concat([runs, odd])), effects(runs)
    for name in ("terms", "levels", "doubling"):
        pd.testing.assert_frame_equal(getattr(with_odd, name), getattr(alone, name))
    said = [n for n in with_odd.notes if n not in alone.notes]
    assert len(said) == 1 and "24 of 25 runs, those with group grid" in said[0]
    assert "left out: odd, with which n_layer and n_head and n_embd can't be told" in said[0]
    assert said[0] in compare(pd.concat([runs, odd])).summary()


def test_a_name_that_is_not_there_is_an_error_with_the_nearest():
    runs = grid(seeds=(0,))
    for given in ({"factors": ("n_layr",)}, {"within": ("n_layr",)}):
        with pytest.raises(UserError, match="no column n_layr in this table; did you mean n_laye"):
            compare(runs, **given)
    with pytest.raises(UserError, match="did you mean n_layer"):
        effects(runs, ("n_layr",))


@pytest.mark.parametrize("seeds, within", [((0,), ("tokens",)), ((0, 1), ())])
def test_a_summary_is_a_table(seeds, within):
    """Every column begins, or ends, at one place; tokens are written as people say them."""
    runs = grid(seeds=seeds, tokens=(199_680.0, 2e6))
    text = compare(runs, within=within).summary()
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    head = next(line for line in lines if line.split()[:2] == ["loss", "seeds"])
    rows = [line for line in lines if "n_embd=" in line]
    assert len(rows) == (16 if within else 8)
    starts = {name: head.index(name) for name in ("verdict", "setting")}
    for row in rows:
        for at in starts.values():
            assert row[at - 1] == " " and row[at] != " ", row
        assert row[:starts["verdict"]].split()[-1] == str(len(seeds))
        assert re.search("tokens=(200k|2M)( |$)", row), row


def test_amounts_that_three_digits_do_not_tell_apart_are_written_out():
    runs = grid(seeds=(0,), tokens=(1_000_000.0, 1_001_000.0))
    assert set(re.findall(r"tokens=(\S+)", " ".join(compare(runs).table["setting"]))) == {
        "1,000,000", "1,001,000"}
