"""Cost that grows as it should: time per step with batch and layers, memory of whole runs as
`--plan` says, the commands over many runs with the number of runs. One picture of the four."""
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import sweep
from benchmarks.child import ROOT, Child
from benchmarks.measure import Options, Reach, Row, Spread, interleave
from benchmarks.planned import memory_mb
from benchmarks.training import SEED_SHAPE

OFF_A_LINE, OFF_THE_ESTIMATE = Reach(10, at_most=True), Reach(10, at_most=True)
SEED = {**SEED_SHAPE, "vocab_size": 4096}


def off_a_line(x: list[float], y: list[float]) -> float:
    """The largest relative distance, in %, of y from a + b x: least squares of relative errors, so
    that small x count as much as large ones."""
    design = np.stack([np.ones(len(x)), np.array(x, float)], 1) / np.array(y)[:, None]
    (a, b), *_ = np.linalg.lstsq(design, np.ones(len(y)), rcond=None)
    return float(max(abs((a + b * u) / v - 1) for u, v in zip(x, y)) * 100)


def step_ms(options: Options) -> dict[str, dict[int, list[float]]]:
    """Milliseconds of a step by batch and by layers, all settings taking turns."""
    batches, layers = ((2, 4, 8), (1, 2, 3)) if options.quick else ((3, 6, 12, 24, 48),
                                                                   (1, 2, 4, 8, 16))
    shape = dict(n_layer=1, n_head=2, n_embd=32, block_size=32, vocab_size=512) \
        if options.quick else SEED
    work = "benchmarks.training:OurStep"
    sides = {("batch", b): Child(work, shape=shape, batch=b) for b in batches}
    sides |= {("layers", n): Child(work, shape={**shape, "n_layer": n}) for n in layers}
    try:
        for side in sides.values():
            side.wait()
        found = interleave(sides, options.rounds(7), warmup=2)
    finally:
        for side in sides.values():
            side.stop()
    out: dict[str, dict[int, list[float]]] = {"batch": {}, "layers": {}}
    for (what, x), results in found.items():
        out[what][x] = [1000 * r["sec"] for r in results]
    return out


class Runs:
    """load_runs and fit_law on a folder of finished runs, all copies of one with another seed,
    number of tokens and loss."""

    def __init__(self, folder: str, runs: int) -> None:
        sys.path.append(str(ROOT / "tests"))
        from run_folders import write_run
        import analysis.runs  # noqa: F401  imports are no part of a call
        import analysis.scaling  # noqa: F401
        self.folder = Path(folder) / f"runs-{runs}"
        one = write_run(Path(folder) / f"one-{runs}")
        identity = one.name.rpartition("-")[2]
        texts = {f.name: f.read_text() for f in one.iterdir() if f.is_file() and f.name[0] != "."}
        rng = np.random.default_rng(0)
        for i in range(runs):
            run = self.folder / f"x-{i:08x}"
            run.mkdir(parents=True)
            for name, text in texts.items():
                (run / name).write_text(text.replace(identity, f"{i:08x}")
                                        .replace("seed: 0", f"seed: {i}"))
        self.n, self.d = 10 ** rng.uniform(5, 7, runs), 10 ** rng.uniform(7, 9, runs)
        self.loss = (1.8 + 480 / self.n ** 0.35 + 2100 / self.d ** 0.37) * np.exp(
            0.003 * rng.standard_normal(runs))

    def __call__(self, what: str) -> dict:
        from analysis.runs import load_runs
        from analysis.scaling import fit_law
        if what == "load_runs":
            assert len(load_runs(self.folder)) == len(self.n)
        else:
            import pandas as pd
            n, d = self.n, self.d
            fit_law(pd.DataFrame({"run": np.arange(len(n)), "n_params": n, "tokens": d,
                                  "flops": 6 * n * d, "loss": self.loss}))
        return {}


def commands_sec(options: Options) -> dict[str, dict[int, list[float]]]:
    """Seconds of the verbs of a sweep and of the analysis, by the number of runs."""
    counts = (20, 40) if options.quick else (30, 100, 300, 1000)
    out: dict[str, dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        looks = {}
        for n in counts:
            folder = Path(place) / str(n)
            folder.mkdir()
            sweep.finished_sweep(folder, n)
            looks[n] = folder
        found = interleave({n: lambda n=n: sweep.verbs_sec(looks[n], n) for n in counts},
                           options.rounds(3))
        for n, results in found.items():
            for verb in results[0]:
                out.setdefault(f"sweep {verb}", {})[n] = [r[verb] for r in results]
        children = {n: Child("benchmarks.growth:Runs", folder=place, runs=n) for n in counts}
        try:
            for what in ("load_runs",) if options.quick else ("load_runs", "fit_law"):
                found = interleave({n: lambda n=n: children[n](what=what)["sec"] for n in counts},
                                   options.rounds(3), warmup=0 if options.quick else 1)
                out[what] = found
        finally:
            for child in children.values():
                child.stop()
    return out


def rows(options: Options) -> list[Row]:
    steps, memory, commands = step_ms(options), memory_mb(options), commands_sec(options)
    out = []
    for what, by in steps.items():
        out.append(line_row(f"step against {what}", by, "ms"))
    for label, (measured, estimate) in memory.items():
        out.append(Row(f"memory of {label}", "% off", [100 * abs(measured / estimate - 1)],
                       reach=OFF_THE_ESTIMATE,
                       note=f"{measured:,.0f} MB resident, --plan says {estimate:,.0f} MB"))
    out += [line_row(f"{what} against runs", by, "s") for what, by in commands.items()]
    if options.plot:
        draw(steps, memory, commands, options.plot)
        out[-1].note += f"; drawn in {options.plot.name}"
    return out


def line_row(what: str, by: dict[int, list[float]], unit: str) -> Row:
    medians = {x: Spread.of(values).median for x, values in by.items()}
    text = ", ".join(f"{x:,}: {y:.3g}" for x, y in medians.items())
    return Row(what, "% off", [off_a_line(list(medians), list(medians.values()))],
               reach=OFF_A_LINE, note=f"farthest from a straight line; {unit} at {text}")


def draw(steps: dict, memory: dict, commands: dict, file: Path) -> None:
    """Four panels: step against batch and layers, memory against its estimate, commands."""
    from analysis.plots.base import BLUE, GREEN, ORANGE, PURPLE, RED, canvas, style, to_png
    with style():
        figure, axes = canvas(None, 2, 2, height=6.4)
        for ax, (what, unit) in zip(axes, (("batch", "sequences of 128 tokens"),
                                           ("layers", "layers"))):
            curve(ax, steps[what], "median, quartiles", BLUE, line=True)
            ax.set(xlabel=unit, ylabel="ms per step", xlim=(0, None), ylim=(0, None),
                   xticks=list(steps[what]), title=f"A step against {what}")
        wanted = OFF_THE_ESTIMATE.value
        axes[2].axvspan(-wanted, wanted, color=BLUE, alpha=0.12, linewidth=0)
        for i, (label, (measured, estimate)) in enumerate(memory.items()):
            off = 100 * (measured / estimate - 1)
            axes[2].plot(off, i, "o", color=BLUE)
            axes[2].annotate(f"{label}: {measured:,.0f} MB", (off, i), (0, 4), fontsize=7.5,
                             textcoords="offset points", ha="center", va="bottom")
        axes[2].set(title="Memory over what --plan says", ylim=(len(memory) - 0.5, -0.9),
                    xlabel=f"% (shaded: within {wanted:g} %)", yticks=[])
        reach = max(np.abs(axes[2].get_xlim()).max(), 1.5 * wanted)
        axes[2].set_xlim(-reach, reach)
        for (what, by), colour in zip(commands.items(), (BLUE, ORANGE, GREEN, RED, PURPLE)):
            curve(axes[3], by, what, colour)
        axes[3].set(title="Commands against runs", xlabel="runs", ylabel="seconds", xscale="log",
                    yscale="log")
        counts = sorted({n for by in commands.values() for n in by})
        axes[3].set_xticks(counts, [f"{n:,}" for n in counts])
        axes[3].xaxis.minorticks_off()
        axes[3].yaxis.set_major_formatter("{x:g}")
        axes[3].yaxis.set_minor_formatter("")
        for ax in (axes[0], axes[1], axes[3]):
            ax.legend()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(to_png(figure, dpi=120))


def curve(ax, by: dict[int, list[float]], label: str, colour: str, line: bool = False) -> None:
    """Medians with quartiles; line: and the straight line through them, from 0."""
    spreads = [Spread.of(values) for values in by.values()]
    x, y = np.array(list(by)), np.array([s.median for s in spreads])
    error = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    ax.errorbar(x, y, yerr=error, fmt="o" if line else "o-", capsize=3, label=label, color=colour)
    if line:
        b, a = np.polyfit(x, y, 1, w=1 / y)
        ax.plot([0, x.max()], [a, a + b * x.max()], "k-", lw=1, label="straight line")
