"""The coordinate check passes muP and CompleteP, fails sp and a broken rule; the --plan table."""
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tiny import ROOT

import run
from slm import parametrization
from slm.coord_check import Check, Settings, check, draw, main, report, train
from slm.parametrization import group_of
from slm.shape import GPTConfig

# Wide ratios and a few seeds: the largest slope is then 0.06, with a standard error of 0.03.
SMALL = Settings(seeds=3, steps=3, batch_size=2, width=64)
ONE = replace(SMALL, seeds=1)


def test_mup_is_flat_in_width_and_not_where_a_rule_is_missing(monkeypatch):
    assert check("width", "mup", [64, 384], SMALL).flat

    def without_lr_rule(config):
        return {group: replace(rule, lr=1.0) for group, rule in rules(config).items()}
    rules = parametrization.rules
    monkeypatch.setattr(parametrization, "rules", without_lr_rule)
    broken = check("width", "mup", [64, 256], ONE)
    assert not broken.flat and max(broken.worst) > 0.5


def test_completep_is_flat_in_depth():
    assert check("depth", "completep", [4, 16], replace(SMALL, lr=1e-3)).flat


@pytest.mark.parametrize("axis, sizes", [("width", [64, 256]), ("depth", [4, 16])])
def test_sp_is_not(axis, sizes):
    control = check(axis, "sp", sizes, ONE)
    assert not control.flat and abs(control.worst).max() > 0.5


def test_slopes_are_those_of_a_known_power_law():
    """Sizes that follow size^p, with p of its own for each seed, step and module."""
    rng = np.random.default_rng(0)
    sizes, p = [64, 128, 512], rng.normal(size=(4, 5, 5))
    means = np.log(sizes)[:, None, None, None] * p + rng.normal(size=p.shape)
    c = Check("width", "mup", sizes, means)
    np.testing.assert_allclose(c.slopes, p.mean(0))
    np.testing.assert_allclose(c.errors, p.std(0, ddof=1) / 2)
    late = c.slopes[2:]
    assert sorted(abs(c.worst)) == pytest.approx(sorted(abs(late).max(0))) and not c.flat
    assert report(c).endswith("not flat (limit 0.1)")


def test_what_is_measured_is_the_output_of_each_module():
    config = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=64, vocab_size=256)
    first = train(config, 0, replace(SMALL, steps=0), "width")[0]
    embedding, attention, mlp, residual, logits = np.exp(first)
    # token and position, each of std 0.02; the head reads a normalised stream of 64 numbers
    assert embedding == pytest.approx(math.sqrt(2 / math.pi * 2) * 0.02, rel=0.05)
    assert logits == pytest.approx(math.sqrt(2 / math.pi * 64) * 0.02, rel=0.1)
    assert max(attention, mlp) < embedding < residual < embedding + 2 * (attention + mlp)


def test_the_command_draws_the_grid_and_says_in_its_exit_code(tmp_path, capsys):
    out = tmp_path / "plots" / "grid.png"
    args = ["--widths=64,128", "--seeds=1", "--steps=2", "--parametrization=mup", f"--out={out}"]
    code = main(args)
    text = capsys.readouterr().out
    saved = json.loads(out.with_suffix(".json").read_text())
    assert [c["parametrization"] for c in saved["checks"]] == ["mup", "sp"]
    assert code == (0 if [c["flat"] for c in saved["checks"]] == [True, False] else 1)
    assert f"grid.png: {'FAILED' if code else 'passed'}" in text and out.stat().st_size > 10_000
    for wrong, says in ((["--parametrization=sp"], "should be mup, completep or both"),
                        (["--head_size=48"], "should divide every width"),
                        (["--steps=1"], "at least 2")):
        assert main(wrong) == 2 and says in capsys.readouterr().err


def test_the_colour_bar_tells_the_colours_of_the_lines(tmp_path, monkeypatch):
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: figures.append(self))
    steps = 3
    draw([Check("width", "mup", [64, 128], np.zeros((2, 1, steps + 1, 5)))], tmp_path / "x.png")
    *panels, bar = figures[0].axes
    mesh = next(c for c in bar.collections if isinstance(c, QuadMesh))
    for ax in panels:
        assert [to_rgba(line.get_color()) for line in ax.get_lines()] == [
            tuple(mesh.to_rgba(float(i))) for i in range(steps + 1)]
    assert set(bar.get_yticks()) <= set(range(steps + 1))


def test_the_plan_shows_what_the_parametrization_changes(capsys):
    spec = [str(ROOT / "experiments/base.yaml"), "--plan", "--model.n_embd=256", "--model.n_head=4"]
    assert run.main([*spec, "--model.parametrization=completep", "--model.base_width=64",
                     "--model.base_depth=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert any("completep: width 4 x base_width, depth 2 x base_depth" in line for line in lines)
    assert "0.0005 (x0.25)" in rows["matrix"] and "0.4 (x4)" in rows["matrix"]
    assert "0.01 (x0.5)" in rows["matrix"] and "1.25e-09 (x0.125)" in rows["matrix"]
    assert rows["projection"].endswith("residual 0.5") and "logits 0.25" in rows["embedding"]
    assert set(rows) >= {group_of(name) for name in ("wte.weight", "h.0.ln_1.weight", "ln_f.bias")}
    assert run.main(spec) == 0
    assert "groups      sp: every" in capsys.readouterr().out
