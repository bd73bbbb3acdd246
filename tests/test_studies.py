"""The short studies: pages follow from their records, and measures from known answers."""
import importlib

import numpy as np
import pandas as pd
import pytest
from pages import assert_pictures, assert_same

from analysis.studies import STUDIES, tokens, transfer
from analysis.studies.records import records
from slm.errors import UserError
from slm.shape import PRESETS


@pytest.mark.parametrize("name", [name for name in STUDIES if records(name).is_file()])
def test_the_page_follows_from_the_records(name):
    study = importlib.import_module(f"analysis.studies.{name}")
    assert_same(study.text(), study.PAGE.name, relative=0.01)
    assert_pictures(study.PAGE.name, at_least=1)


def test_a_study_without_records_says_how_they_are_made(monkeypatch, tmp_path):
    monkeypatch.setattr("analysis.studies.records.HERE", tmp_path)
    with pytest.raises(UserError, match="python -m analysis.studies tokens --train makes it"):
        tokens.load()


def curves(corpus: str, speed: dict, noise: float = 0.0) -> pd.DataFrame:
    """Runs of losses 2 (tokens speed / 1e5)^-0.3: a setting with speed k needs 1/k of the tokens.
    The middle rate is best, and each other 10 % worse."""
    rng, rows = np.random.default_rng(0), []
    for (preset, optimizer), k in speed.items():
        for width in (32, 64):
            for lr, worse in ((2.5e-3, 1.1), (6e-3, 1.0), (1.6e-2, 1.1)):
                for seed in range(3):
                    for t in (40_960, 81_920, 163_840):
                        loss = 2 * (t * k / 1e5) ** -0.3 * worse * np.exp(rng.normal(0, noise))
                        rows.append(dict(corpus=corpus, preset=preset, optimizer=optimizer,
                                         n_embd=width, lr=lr, seed=seed, tokens=t, loss=loss,
                                         n_params=24 * width**2))
    return pd.DataFrame(rows)


def test_the_share_of_tokens_is_the_one_that_was_put_in():
    speed = {("gpt2", "adamw"): 1, ("gpt2", "muon"): 0.9, ("modern", "adamw"): 2,
             ("modern", "muon"): 5}
    table = tokens.shares(curves("fables", speed)).set_index(["preset", "optimizer"])["share"]
    assert table["modern", "adamw"].to_numpy() == pytest.approx(0.5)
    assert np.isposinf(table["gpt2", "muon"]).all()          # never comes down to it
    assert np.isneginf(table["modern", "muon"]).all()        # before the first horizon
    noisy = tokens.shares(curves("fables", speed, noise=0.01))
    row = noisy[(noisy["preset"] == "modern") & (noisy["optimizer"] == "adamw")].iloc[0]
    assert row["share"] == pytest.approx(0.5, abs=0.05) and len(row["by_seed"]) == 3


def test_switches_stand_beside_gpt2_at_their_best_rates():
    """Two settings of equal spread: half a 95 % interval is t(4) sqrt(2 s^2 / 3)."""
    shapes = {2.5: PRESETS["gpt2"], 2.0: PRESETS["gpt2"] | {"position": "rope"},
              1.5: PRESETS["modern"] | {"zero_init": False}}
    rows = [dict(shape, lr=lr, loss=mean + off + worse) for mean, shape in shapes.items()
            for lr, worse in ((1e-3, 0.3), (2e-3, 0.0), (4e-3, 0.2)) for off in (-0.1, 0, 0.1)]
    table = tokens.switch_table(pd.DataFrame(rows)).set_index("switch")
    assert list(table.index) == ["gpt2", "gpt2, position=rope", "modern, zero_init=false"]
    assert list(table["changed"]) == [0, 1, 6] and set(table["lr"]) == {2e-3}
    rope = table.loc["gpt2, position=rope"]
    half = 2.776 * np.sqrt(2 * 0.1**2 / 3)
    assert (rope["difference"], rope["low"], rope["high"]) == pytest.approx(
        (-0.5, -0.5 - half, -0.5 + half), abs=1e-3)


def test_zeros_are_compared_at_the_best_rate_of_each_side():
    """Without zeros the loss is 0.4 lower, but for Muon; short horizons don't count."""
    rows = [dict(optimizer=optimizer, n_embd=64, zero_init=zeros, lr=lr, tokens=tokens_,
                 loss=3 + worse + off - (0.4 if optimizer == "adamw" and not zeros else 0)
                 - (2 if tokens_ == 100 else 0))
            for optimizer in ("adamw", "muon") for zeros in (False, True) for tokens_ in (100, 200)
            for lr, worse in ((1e-3, 0.3), (2e-3, 0.0 if zeros else 0.1), (4e-3, 0.1 * zeros))
            for off in (-0.05, 0, 0.05)]
    table = tokens.zeros_table(pd.DataFrame(rows)).set_index("optimizer")
    assert list(table["difference"]) == pytest.approx([-0.4, 0])
    assert table.loc["adamw", "without"] == pytest.approx(2.6) and (table["with_zeros"] == 3).all()
    assert table["edge"].all()                # the best rate without zeros is the largest tried
    assert (table["low"] < table["difference"]).all()


def test_the_best_rate_of_each_width_and_what_a_narrow_models_rate_costs():
    """Parabolas in log2 lr whose minimum falls with width under sp and stays under mup."""
    rows = [dict(parametrization=kind, n_embd=width, lr=2.0**i, seed=seed,
                 loss=2 + (i - best(width)) ** 2 / 10)
            for kind, best in (("sp", lambda d: -5 - np.log2(d / 32)), ("mup", lambda d: -5))
            for width in (32, 64, 128) for i in range(-8, -3) for seed in (0, 1)]
    best = transfer.best_rates(pd.DataFrame(rows)).set_index(["parametrization", "n_embd"])
    assert list(np.log2(best.loc["sp", "lr"])) == [-5, -6, -7]
    assert best.loc[("sp", 128), "narrow_cost"] == pytest.approx(0.4 / 2)
    assert transfer.steps_moved(best.reset_index(), "sp") == 2
    assert transfer.steps_moved(best.reset_index(), "mup") == 0
    assert not best["edge"].any()
