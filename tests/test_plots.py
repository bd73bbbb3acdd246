"""What the figures show is what the tables and laws say."""
import io
import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import compute_optimal, fit_law
from slm.errors import UserError

matplotlib = pytest.importorskip("matplotlib")
from analysis import plots  # noqa: E402
from analysis.comparison.noise import seed_noise  # noqa: E402
from analysis.plots.base import ORDERED, Decades, clustered, plain  # noqa: E402
from analysis.plots.runs import law_value  # noqa: E402

E, A, B, ALPHA, BETA = 1.8, 480.0, 2100.0, 0.35, 0.37


def loss_of(n, d):
    return E + A / n ** ALPHA + B / d ** BETA


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """IsoFLOP budgets around the optimum, the last one too small; two seeds in part; two lost."""
    rng, rows = np.random.default_rng(0), []
    for k, c in enumerate(np.geomspace(1e14, 1e16, 5)):
        best = (ALPHA * A / BETA / B) ** (1 / (ALPHA + BETA)) * (c / 6) ** (BETA / (ALPHA + BETA))
        for n in best * 12 ** np.linspace(-0.5, 0.5, 5) / (15 if k == 4 else 1):
            for seed in range(2 if k == 1 else 1):
                d = c / 6 / n
                loss = loss_of(n, d) * np.exp(0.003 * rng.standard_normal())
                rows.append({"run": f"r{len(rows)}", "n_params": n, "tokens": d, "flops": c,
                             "loss": loss, "seed": seed, "status": "finished", "lr": 0.01,
                             "time_sec": c / 1e12, "floor": 1.8})
    rows += [dict(rows[0], run="bad$\\frac", status="diverged", loss=np.nan),
             dict(rows[1], run="cut", status="crashed")]
    table = pd.DataFrame(rows)
    table.attrs["filter"] = "n_layer >= 2"
    return table


@pytest.fixture(scope="module")
def frontier(runs):
    return compute_optimal(runs, bootstrap=100, draws=40, polish=64)


@pytest.fixture(scope="module")
def law(frontier):
    return frontier.law


def marked(fig, gid, ax=0):
    """(x, y) of the markers with that gid."""
    lines = [line for line in fig.axes[ax].get_lines() if line.get_gid() == gid]
    return np.array([(x, y) for line in lines for x, y in zip(*line.get_data())]).reshape(-1, 2)


def points(ax):
    """All scattered points of the axes, (n, 2)."""
    return np.concatenate([np.ma.getdata(c.get_offsets()) for c in ax.collections
                           if isinstance(c, matplotlib.collections.PathCollection)])


def texts(fig):
    return " ".join(t.get_text() for t in fig.findobj(matplotlib.text.Text))


def test_isoflop_minima_are_the_frontiers(frontier):
    table = frontier.isoflop
    for x in ("n_params", "tokens"):
        fig = plots.isoflop(frontier, x)
        inside = table[(table.approach == "2") & ~table.on_edge]
        assert sorted(marked(fig, "minimum")[:, 0]) == pytest.approx(sorted(inside[x]))
        by_line = table[(table.approach == "2i") & ~table.on_edge]
        assert sorted(marked(fig, "interpolated")[:, 0]) == pytest.approx(sorted(by_line[x]))
        edge = marked(fig, "edge")
        assert len(edge) == 1 and edge[0, 0] == pytest.approx(
            frontier.law.runs[x].iloc[-5:].agg("max" if x == "n_params" else "min"))
        assert sorted(points(fig.axes[0])[:, 0]) == pytest.approx(sorted(frontier.law.runs[x]))
    assert "1 with the minimum on the edge" in fig.caption_text and "on the edge" in texts(fig)


def test_the_star_is_the_extrapolated_optimum(frontier):
    fig = plots.optimum(frontier, at=1e18)
    best = frontier.optimum(1e18).iloc[0]
    for ax, column in zip(fig.axes, ("n_params", "tokens")):
        star = next(line for line in ax.get_lines() if line.get_marker() == "*")
        assert star.get_xydata()[0] == pytest.approx([1e18, best[column]])
        bars = [c for c in ax.collections if isinstance(c, matplotlib.collections.LineCollection)]
        assert bars[0].get_segments()[0][:, 1] == pytest.approx(
            [best[f"{column}_low"], best[f"{column}_high"]])
        for gid in ("minima 2", "minima 2i"):
            name = gid.split()[1]
            rows = frontier.isoflop[frontier.isoflop.approach == name]
            assert sorted(marked(fig, gid, fig.axes.index(ax))[:, 1]) == \
                pytest.approx(sorted(rows[column]))
    row = frontier.table.set_index("approach").loc["3"]
    assert f"a = {row.a:.3f} [{row.a_low:.3f}, {row.a_high:.3f}]" in texts(fig)
    with pytest.raises(UserError, match="positive"):
        plots.optimum(frontier, at=-1)


@pytest.mark.parametrize("x", ["n_params", "tokens", "flops", "time_sec"])
def test_every_usable_run_is_a_point_and_the_caption_counts_them(runs, law, x):
    for given in (None, law) if x == "tokens" else (law,):
        fig = plots.loss_vs(runs, x, given)
        good = runs[runs.status == "finished"]
        drawn = points(fig.axes[0])
        have = {tuple(np.round(np.log(p), 9)) for p in drawn}
        assert {tuple(np.round(np.log(p), 9)) for p in good[[x, "loss"]].to_numpy()} <= have
        said = fig.caption_text
        for word in ("n = 30 runs, 2 seeds", "where n_layer >= 2", "2 of 32 rows left out: "
                     "1 diverged, 1 crashed"):
            assert word in said and word in " ".join(texts(fig).replace("\xa0", " ").split())
        assert ("law of 30 runs" in said) == (given is not None and x != "time_sec")
    if x == "flops":            # the best of each budget, as long as it is better than all before
        best = good.groupby("flops")["loss"].min()
        hollow = [c for c in fig.axes[0].collections if len(c.get_facecolors()) == 0]
        assert np.ma.getdata(hollow[0].get_offsets())[:, 1] == pytest.approx(
            best[best <= best.cummin()])


def test_laws_are_drawn_where_they_predict(law):
    n, d = np.array([1e6, 3e7]), np.array([1e8, 2e9])
    assert law_value(law, n, d, 6 * n * d) == pytest.approx(law.predict(n_params=n, tokens=d).value)
    by_size = fit_law(law.runs, "L(D)", bootstrap=30, polish=8)
    line = plots.loss_vs(law.runs, "tokens", by_size).axes[0].get_lines()[0]
    assert line.get_ydata() == pytest.approx(by_size.predict(tokens=line.get_xdata()).value)


def test_contours_run_where_the_law_has_their_level(frontier):
    fig = plots.contours(frontier.law, frontier)
    lines = next(c for c in fig.axes[0].collections if hasattr(c, "levels"))
    for level, path in zip(lines.levels, lines.get_paths()):
        if len(path.vertices):
            n, d = path.vertices[:, 0], path.vertices[:, 1]
            assert law_value(frontier.law, n, d, 6 * n * d) == pytest.approx(level, rel=0.01)
    red = fig.axes[0].get_lines()[0]
    found = frontier.optimum(6 * red.get_xdata() * red.get_ydata())
    assert red.get_xdata() == pytest.approx(found["n_params"], rel=1e-3)
    with pytest.raises(UserError, match="law of N and D"):
        plots.contours(fit_law(frontier.law.runs, "L(D)", bootstrap=30, polish=8))


def test_residuals_and_the_noise_of_seeds(law, runs):
    fig = plots.residuals(law)
    r = 100 * law.fit.residuals()
    for ax, column in zip(fig.axes, ("n_params", "tokens", "flops")):
        assert sorted(points(ax)[:, 1]) == pytest.approx(sorted(r))
        band = next(p for p in ax.patches)
        assert band.get_y() == pytest.approx(-200 * seed_noise(runs).log_sd)
    assert points(fig.axes[3])[:, 1] == pytest.approx(np.sort(r))
    alone = fit_law(runs[runs.seed == 0], bootstrap=30, polish=8)
    assert "no runs that differ in their seed alone" in plots.residuals(alone).caption_text


def test_bootstrap_pairs_hold_every_parameter(law):
    fig = plots.bootstrap_pairs(law)
    names = {ax.get_xlabel() for ax in fig.axes} - {""}
    assert names == {"E", "log10 A", "log10 B", "α", "β"}
    low, high = law.intervals["alpha"]
    assert f"α = {law.params['alpha']:.3f} [{low:.3f}, {high:.3f}]" in texts(fig)
    law = replace(law)                                  # an interval and estimate beyond the draws
    law.intervals = {**law.intervals, "E": (-np.inf, 2.5)}
    law.fit = replace(law.fit, theta=law.fit.theta - np.eye(5)[0])
    axis = plots.bootstrap_pairs(law).axes[0]
    low, high = axis.get_xlim()
    assert low < law.fit.params["E"] and high >= 2.5
    box = axis.patches[-1].get_bbox()
    assert low <= box.x0 < box.x1 <= high
    with pytest.raises(UserError, match="10 resamples"):
        plots.bootstrap_pairs(fit_law(law.runs, bootstrap=5, polish=8))


def test_conventions_are_a_staircase_with_our_own_marked():
    rows = pd.DataFrame({"convention": ["matmul", "kaplan", "6ND"], "who": ["us", "Kaplan", "$x$"],
                         "a": [0.51, 0.9, 0.6], "alpha": [0.3, 0.2, 0.25], "beta": 0.4})
    for name in ("a", "alpha", "beta"):
        rows = rows.assign(**{f"{name}_low": rows[name] - 0.1, f"{name}_high": rows[name] + 0.1})
    rows.loc[1, "a_high"] = np.inf
    fig = plots.conventions(rows)
    assert list(marked(fig, "a")[:, 0]) == [0.9, 0.6, 0.51] and fig.axes[0].yaxis_inverted()
    assert list(marked(fig, "alpha", 1)[:, 0]) == [0.2, 0.25, 0.3]
    bold = [t.get_text() for t in fig.axes[0].get_yticklabels() if t.get_fontweight() == "bold"]
    assert bold == ["matmul: us"]
    plots.to_svg(fig)


def test_intervals_of_conventions_end_on_their_axes_or_say_that_they_go_on():
    names = [f"c{i}" for i in range(6)]
    rows = pd.DataFrame({"convention": names, "who": names, "a": 0.4, "alpha": 0.3, "beta": 0.25,
                         "a_low": 0.2, "a_high": 0.6, "alpha_low": 0.2, "alpha_high": 0.4,
                         "beta_low": -0.3, "beta_high": 0.8})
    rows.loc[0, ["beta_low", "beta_high", "alpha_high"]] = -9.0, np.inf, 9.0
    fig = plots.conventions(rows)
    for ax, name in zip(fig.axes, ("a", "alpha", "beta")):
        left, right = ax.get_xlim()
        sound = rows[1:]
        assert left < sound[f"{name}_low"].min() and right > sound[f"{name}_high"].max()
    assert len(marked(fig, "beyond", 2)) == 2 and len(marked(fig, "beyond", 1)) == 1
    assert len(marked(fig, "beyond")) == 0 and "cut where there is an arrow" in fig.caption_text
    assert fig.axes[0].get_xticks().max() <= 0.7                 # none under the numbers


def test_legends_lie_on_no_run(frontier):
    for fig in (plots.optimum(frontier, at=1e17), plots.contours(frontier.law, frontier)):
        fig.draw_without_rendering()
        for ax in (ax for ax in fig.axes if ax.get_legend() is not None):
            box = ax.get_legend().get_window_extent()
            assert not any(box.contains(*ax.transData.transform(p)) for p in points(ax))
            assert not box.overlaps(ax._left_title.get_window_extent())


def test_an_interval_without_ends_is_called_so(frontier, monkeypatch):
    table = frontier.table_at(1e17)
    one = table["approach"] == "2"
    table.loc[one, ["a_low", "a_high"]] = -np.inf, np.inf
    monkeypatch.setattr(type(frontier), "table_at", lambda self, at: table)
    said = texts(plots.optimum(frontier, at=1e17))
    assert "interval not determined" in said and "∞" not in said


def test_held_out_runs_stand_beside_their_prediction(law):
    n, d = np.array([3e7, 1e7]), np.array([3e9, 1e9])
    held = pd.DataFrame({"run": ["good", "bad"], "n_params": n, "tokens": d, "flops": 6 * n * d,
                         "loss": loss_of(n, d) * [1, 1.2]})
    fig = plots.extrapolation(law, held)
    assert "1 of 2 held-out runs inside" in fig.caption_text
    assert sorted(marked(fig, "held out")[:, 1]) == pytest.approx(sorted(held["loss"]))
    p = law.predict(n_params=n, tokens=d)
    for error in 100 * (held["loss"] / p.value - 1):
        assert f"{error:+.2f} %" in texts(fig)
    caps = [line for line in fig.axes[0].get_lines() if line.get_marker() == "_"]
    stars = [line for line in fig.axes[0].get_lines() if line.get_gid() == "held out"]
    assert min(c.get_markersize() for c in caps) > max(s.get_markersize() for s in stars)
    fig.draw_without_rendering()
    bars = [bar.get_window_extent() for bar in fig.axes[1].patches]
    labels = [t.get_window_extent() for t in fig.axes[1].texts]
    assert len(labels) == len(bars) == 2 and not any(t.overlaps(b) for t in labels for b in bars)
    with pytest.raises(UserError, match="run r0 was fitted"):
        plots.extrapolation(law, law.runs.head(3))


def sweep(best, tried=7, lost=()):
    rows = [{"run": f"{w}-{i}-{s}", "n_params": 1e5 * w, "tokens": 1e6, "n_embd": w, "seed": s,
             "lr": 2.0 ** -i, "status": "diverged" if (w, i) in lost else "finished",
             "loss": np.nan if (w, i) in lost else 3 + 0.1 * (i - b) ** 2 + 0.001 * s - w / 100}
            for w, b in best.items() for i in range(tried) for s in range(2)]
    return pd.DataFrame(rows)


def test_the_best_learning_rate_is_marked_and_edges_are_flagged():
    fig = plots.lr_curves(sweep({64: 3, 128: 6, 256: 1}, lost={(256, 0)}))
    assert sorted(marked(fig, "optimum")[:, 0]) == [2.0 ** -3, 2.0 ** -1]   # 256: diverged beyond
    assert marked(fig, "edge optimum")[:, 0] == [2.0 ** -6]
    assert "at the edge of the rates tried: width 128" in fig.caption_text
    crosses = [line for line in fig.axes[0].get_lines() if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [1.0, 1.0]         # both seeds
    both = pd.concat([sweep({64: 3}).assign(parametrization=p) for p in ("mup", "sp")])
    assert len(plots.lr_curves(both).axes) == 2
    with pytest.raises(UserError, match="two learning rates"):
        plots.lr_curves(sweep({64: 0}, tried=1))


def test_heat_maps_show_the_means_of_seeds():
    rows = [{"run": f"{h}{d}{w}{s}", "n_head": h, "n_layer": d, "n_embd": w, "tokens": 1e6,
             "n_params": 1e5, "seed": s, "status": "finished",
             "loss": 4 - 0.1 * h - 0.2 * d - w / 200 + 0.01 * s}
            for h in (1, 2) for d in (1, 2, 4) for w in (32, 64) for s in range(2)]
    rows[0]["status"] = rows[1]["status"] = "diverged"
    runs = pd.DataFrame(rows)
    fig = plots.heat_maps(runs)
    good = runs[runs.status == "finished"].groupby(["n_head", "n_layer", "n_embd"])["loss"].mean()
    for ax, h in zip(fig.axes, (1, 2)):
        for i, d in enumerate((1, 2, 4)):
            for j, w in enumerate((32, 64)):
                cell = float(np.ma.filled(ax.images[0].get_array(), np.nan)[i, j])
                want = good.get((h, d, w), np.nan)
                assert cell == pytest.approx(want, nan_ok=True)
    best = [p for ax in fig.axes for p in ax.patches]
    assert len(best) == 1 and (best[0].get_x(), best[0].get_y()) == (0.5, 1.5)   # 64 wide, 4 layers
    assert best[0].axes is fig.axes[1] and "2 of 24 rows left out: 2 diverged" in fig.caption_text


def test_curves_are_smoothed_and_lost_runs_end_in_a_cross(runs):
    from analysis.comparison import smooth
    tokens = np.arange(1, 101) * 1000.0
    rng = np.random.default_rng(0)
    history = pd.concat([pd.DataFrame({"run": name, "tokens": tokens, "val/loss": np.nan,
                                       "train/loss": 3 + 50 / np.sqrt(tokens) + level +
                                       0.05 * rng.standard_normal(100)})
                         for name, level in (("r0", 0), ("bad$\\frac", 20))])
    fig = plots.loss_curves(history, runs)
    curve = history[history.run == "r0"]["train/loss"].to_numpy()
    want = smooth(curve, np.log(tokens))
    lines = [line.get_xydata() for line in fig.axes[0].get_lines()]
    assert [x for x in lines if len(x) > 20][1][[0, -1]] == pytest.approx(    # behind it: as it is
        np.array([[tokens[0], want[0]], [tokens[-1], want[-1]]]))
    assert fig.axes[0].get_ylim()[1] < 6                    # not squashed by the one that diverged
    assert "n = 2 runs, 1 of them not finished" in fig.caption_text
    with pytest.raises(UserError, match="no run has a loss curve"):
        plots.loss_curves(history.assign(**{"train/loss": np.nan}), runs)


def test_texts_and_names_are_printed_as_they_are(runs):
    text = "Once $x_{ \\frac \x00 & <b> " + "word " * 200
    samples = pd.DataFrame({"run": ["r0", "r1"], "step": 5, "tokens": 1e6, "prompt": "Once $",
                            "text": text})
    fig = plots.samples_table(samples, runs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert b"<svg" in plots.to_svg(fig)
    assert "…" in texts(fig) and "2 of 2 runs" in fig.caption_text
    assert plain("a$b\\c\n") == r"a\$b/c "


def test_no_figure_leaves_a_trace_and_axes_may_be_given(runs, law):
    import matplotlib.pyplot as plt
    before = dict(matplotlib.rcParams)
    plots.residuals(law)
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before
    own, ax = plt.subplots()
    assert plots.loss_vs(runs, "tokens", ax=ax) is own and len(points(ax)) == 30
    plt.close(own)
    with pytest.raises(ValueError, match="4 axes, 1 were given"):
        plots.residuals(law, ax=ax)
    fig = plots.loss_vs(runs, "tokens")
    assert matplotlib.image.imread(io.BytesIO(fig._repr_png_())).shape[1] == 880
    said = plots.without_caption(fig)
    assert said.startswith("each point a run") and said[:30] not in texts(fig)


def test_axes_say_numbers_as_people_do_and_colours_survive_grey_print(runs):
    fig = plots.loss_vs(runs, "flops")
    fig.draw_without_rendering()
    labels = [t.get_text() for t in fig.axes[0].get_xticklabels()]
    assert "1e15" in labels and all(re.fullmatch(r"\d(\.\d)?e1[3-7]", t) for t in labels if t)
    assert list(Decades().tick_values(8e5, 1.2e8)) == [1e6, 1e7, 1e8]
    assert list(Decades().tick_values(2e6, 2e7)) == [2e6, 5e6, 1e7, 2e7]
    grey = ORDERED(np.linspace(0, 1, 9))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) > 0.05).all()
    assert clustered([100, 103, 1000, 1050, 98]) == pytest.approx(
        [100.31] * 2 + [1024.7] * 2 + [100.31], rel=1e-4)
