"""Averages and figures of measured dynamics: against the truth that made them up."""
import numpy as np
import pandas as pd
import pytest

from analysis.dynamics import dynamics_of, fieller, noise_scale, windows
from slm.errors import UserError

matplotlib = pytest.importorskip("matplotlib")
from analysis import plots  # noqa: E402

TRUE, MEAN_SQ = 3000.0, 0.02


def made_up(n=400, run="r", noise=1.0, seed=0) -> pd.DataFrame:
    """A history: |G|^2 with an error as large as itself, tr(Sigma) = 60, in batches of 1,000."""
    rng, step = np.random.default_rng(seed), np.arange(1, n + 1) * 4
    mean_sq = MEAN_SQ * (1 + noise * rng.standard_normal(n))
    variance = TRUE * MEAN_SQ * (1 + 0.05 * rng.standard_normal(n))
    rows = {"run": run, "step": step, "tokens": step * 1000.0,
            "dynamics/grad_noise_scale_tokens": variance / mean_sq,
            "dynamics/grad_mean_sq": mean_sq, "dynamics/grad_variance_tokens": variance}
    for layer in range(3):
        rows[f"dynamics/update_ratio/h.{layer}"] = 0.1 / step ** 0.5 * (1 + layer)
        rows[f"dynamics/attention_spread/h.{layer}"] = 0.9 - 0.1 * layer
        rows[f"dynamics/attention_entropy/h.{layer}"] = 3.0
    rows |= {f"dynamics/loss_at/{k}": 4 - np.log2(k) / 10 + 1 / step for k in (1, 2, 4, 8)}
    table = pd.DataFrame(rows)
    between = table[["run", "step", "tokens"]].assign(**{"step": table["step"] - 1, "val/loss": 3.})
    return pd.concat([table, between]).sort_values("step", ignore_index=True)


def test_the_noise_scale_is_a_ratio_of_means():
    history = made_up()
    table = noise_scale(history)
    assert table["n"].sum() == 400 and (table["n"] >= 8).all()
    late = table[table["n"] > 30]
    assert len(late) >= 3 and late["value"].to_numpy() == pytest.approx(TRUE, rel=0.4)
    assert ((late["low"] < TRUE) & (TRUE < late["high"])).all()
    naive = history["dynamics/grad_noise_scale_tokens"]
    assert (naive.dropna() < 0).mean() > 0.1            # what a mean of ratios would be made of
    one = dynamics_of(history).iloc[:8]
    assert table["value"][0] == pytest.approx(one["dynamics/grad_variance_tokens"].sum() /
                                              one["dynamics/grad_mean_sq"].sum())


def test_intervals_of_ratios_hold_the_truth_as_often_as_they_say():
    """Also where the denominator is hardly above its noise and the interval has no end."""
    rng = np.random.default_rng(1)
    for noise in (0.5, 3.0):
        hits, open_ended = 0, 0
        for _ in range(1500):
            b = 1 + noise * rng.standard_normal(8)
            a = 5 * (1 + 0.3 * rng.standard_normal(8)) + 0.5 * (b - 1)
            low, high = fieller(a, b)
            hits += low <= 5 <= high
            open_ended += high == np.inf
        assert 0.935 < hits / 1500 < 0.965 and (open_ended > 500) == (noise > 1)
    assert fieller(np.ones(1), np.ones(1)) == (0, np.inf)
    assert fieller(np.full(5, 6.0), np.full(5, 2.0)) == pytest.approx((3, 3))


@pytest.mark.parametrize("n", [1, 7, 15, 16, 17, 100, 5000])
def test_windows_cover_every_measurement_once(n):
    parts = windows(n)
    assert [i for p in parts for i in range(n)[p]] == list(range(n))
    assert all(p.stop - p.start >= min(8, n) for p in parts) and len(parts) < 40


def test_figure_shows_the_averages():
    fig = plots.plot_dynamics(made_up())
    noise, update, attention, position = fig.axes
    lines = {line.get_gid(): line for ax in fig.axes for line in ax.get_lines() if line.get_gid()}
    table = noise_scale(made_up())
    assert lines["noise scale"].get_xydata() == pytest.approx(table[["tokens", "value"]].to_numpy())
    batch = next(x for x in noise.get_lines() if x.get_gid() is None)
    assert batch.get_ydata()[0] == 1000 and "the batch: 1k" in [t.get_text() for t in noise.texts]
    at = lines["dynamics/update_ratio/h.2"].get_xydata()
    assert at[50:] == pytest.approx(np.c_[at[50:, 0], 0.3 / np.sqrt(at[50:, 0] / 1000)], rel=0.01)
    assert lines["dynamics/attention_spread/h.1"].get_ydata() == pytest.approx(0.8)
    first = position.get_lines()[0].get_xydata()
    early = dynamics_of(made_up()).iloc[:8]
    assert first == pytest.approx(np.c_[[1, 2, 4, 8], [early[f"dynamics/loss_at/{k}"].mean()
                                                       for k in (1, 2, 4, 8)]])
    assert "n = 400 measured steps" in fig.caption_text and len(position.get_lines()) == 5
    short = made_up(2).drop(columns=["dynamics/grad_mean_sq", "dynamics/grad_variance_tokens",
                                     "dynamics/grad_noise_scale_tokens"])
    plots.to_png(plots.plot_dynamics(short))            # a batch of one sequence, two steps
    plots.to_png(plots.plot_dynamics(made_up(1)))


def test_an_interval_that_leaves_the_axis_ends_in_an_arrow():
    unsure = made_up(6)
    unsure["dynamics/grad_mean_sq"] *= np.resize([3, 3, -1, -1], len(unsure))     # hardly above 0
    assert noise_scale(unsure)["high"][0] == np.inf
    for rows in (unsure, made_up()):
        ax, table = plots.plot_dynamics(rows).axes[0], noise_scale(rows)
        bottom, top = ax.get_ylim()
        arrows = sorted((*line.get_xdata(), *line.get_ydata()) for line in ax.get_lines()
                        if line.get_gid() == "beyond")
        assert arrows == sorted([(t, bottom) for t in table["tokens"][table["low"] < bottom]]
                                + [(t, top) for t in table["tokens"][table["high"] > top]])
    assert "arrow" in plots.plot_dynamics(rows).caption_text


def test_which_run_is_drawn_must_be_clear():
    two = pd.concat([made_up(20), made_up(20, "s"), pd.DataFrame({"run": ["t"], "step": [1]})])
    assert set(dynamics_of(two, "s")["run"]) == {"s"}
    longer = pd.concat([two, made_up(30, "u")])          # a figure takes the longest and says so
    caption = plots.plot_dynamics(longer).caption_text.replace("\xa0", " ")
    assert "u (of 3 that were measured: run= says which)" in caption and "n = 30" in caption
    for call, says in ((lambda: dynamics_of(two), "2 runs measured their dynamics: say run="),
                       (lambda: dynamics_of(two, "t"), "'t' measured no dynamics"),
                       (lambda: dynamics_of(two[["run", "step"]]), "--track.dynamics_interval"),
                       (lambda: dynamics_of([]), "load_history or load_runs"),
                       (lambda: noise_scale(made_up(20).drop(columns="dynamics/grad_mean_sq")),
                        "no noise scale")):
        with pytest.raises(UserError, match=says):
            call()
