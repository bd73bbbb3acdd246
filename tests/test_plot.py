"""loss.png shows what metrics.jsonl says, whatever state the run is in."""
import json
import random

import pytest

from slm.plot import draw_losses, limits, plot_run, series, smooth

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread  # noqa: E402


def write(folder, rows, **summary):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "summary.json").write_text(json.dumps({"name": "run", **summary}))
    return folder


def curve(n, key="train/loss", **more):
    return [{"step": i, "tokens": 64 * i, key: 2 + 7 / (1 + i), "lr": 1e-3, **more}
            for i in range(1, n + 1)]


CASES = {
    "nothing": [],
    "one point": curve(1),
    "train only": curve(100),
    "val only": curve(3, "val/loss"),
    "with floor": curve(50) + [{"step": 50, "tokens": 3200, "val/loss": 2.1, "val/floor": 1.9}],
    "not finite": curve(30) + [{"step": 31, "tokens": 1984, "train/loss": None, "lr": None}],
    "all not finite": [{"step": 1, "tokens": 64, "train/loss": None}],
    "constant": [{"step": i, "tokens": i, "train/loss": 0.0, "lr": 0.0} for i in range(5)],
    "no tokens": [{"step": i, "train/loss": 3.0 / i} for i in range(1, 9)],
}


@pytest.mark.parametrize("name", CASES)
def test_every_run_gives_a_picture(tmp_path, name):
    path = plot_run(write(tmp_path, CASES[name], status="diverged", val_loss_se=None))
    assert path == tmp_path / "loss.png"
    height, width, _ = imread(path).shape
    assert (width, height) == (1080, 810)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl",
                                                          "summary.json"]


def test_a_half_written_folder_gives_a_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 64, "train/loss": 2.0}\n{"ste')
    assert plot_run(tmp_path).stat().st_size > 1000


def test_of_a_step_done_twice_the_last_line_counts_and_gaps_are_left_out():
    rows = curve(4) + [{"step": 4, "tokens": 256, "train/loss": 9.0}, {"step": 5, "tokens": 320},
                       {"step": 6, "tokens": 384, "train/loss": None}]
    tokens, values = series(rows, "train/loss")
    assert tokens == [64, 128, 192, 256] and values[-1] == 9.0 and values[0] == 2 + 7 / 2


def test_smoothing_keeps_a_line_a_line_and_ignores_a_spike():
    line = [10 - 0.1 * i for i in range(60)]
    assert smooth(line, 9) == pytest.approx(line)
    spiked = line[:30] + [50.0] + line[31:]
    assert max(abs(a - b) for a, b in zip(smooth(spiked, 9), line)) < 0.2
    assert smooth([3.0], 5) == [3.0]


def test_what_is_drawn_is_what_was_recorded():
    axes = Figure().subplots()
    train = (list(range(100)), [3.0] * 100)
    draw_losses(axes, train, ([0, 50, 99], [4.0, 3.2, 3.1]), 1.25)
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert list(drawn["validation"].get_ydata()) == [4.0, 3.2, 3.1]
    floor = next(line for label, line in drawn.items() if label.startswith("floor 1.2500"))
    assert set(floor.get_ydata()) == {1.25}
    assert "train, smoothed" in drawn and axes.get_legend() is not None


def test_the_axis_shows_what_is_learned_late():
    """The fall from ln V and a spike may leave it; no validation point after the first 5 % may."""
    random.seed(0)
    tokens = list(range(0, 10_000, 10))
    train = [2 + 8 / (1 + t / 20) + random.gauss(0, 0.02) for t in tokens]
    train[500] = 40.0
    val = (tokens[::50], [v + 0.05 for v in train[::50]])
    val[1][10] = train[501]
    low, high = limits([(tokens, train), val], 1.7)
    assert low < 1.7 and high < 4
    assert all(low < v < high for t, v in zip(*val) if t > 500)
    assert limits([([0, 1], [9.0, 8.0]), ([], [])], None) == pytest.approx((7.95, 9.05))


def drawn(folder, monkeypatch):
    """The figure of a run, and all it says."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: (
        figures.append(self), save(self, *args, **options)))
    plot_run(folder)
    return figures[0], [t.get_text() for t in figures[0].findobj(lambda a: hasattr(a, "get_text"))]


def test_a_run_that_diverged_shows_where(tmp_path, monkeypatch):
    rows = [{"step": 0, "tokens": 0, "val/loss": 6.9},
            {"step": 10, "tokens": 640, "train/loss": None, "lr": 1.0}]
    figure, words = drawn(write(tmp_path, rows, status="diverged"), monkeypatch)
    assert "diverged at step 10" in words and figure.axes[0].get_xlim()[1] >= 640
    assert [640, 640] in [list(line.get_xdata()) for line in figure.axes[0].get_lines()]
    _, words = drawn(write(tmp_path, rows, status="finished"), monkeypatch)
    assert "diverged at step 10" not in words


def test_the_legend_says_what_a_training_point_is(tmp_path, monkeypatch):
    for n in (3, 100):
        _, words = drawn(write(tmp_path, curve(n)), monkeypatch)
        assert "train, each point the mean since the last" in words
