"""Do activations keep their size as the model grows? `python -m slm.coord_check`

Trains models of growing width (under mup) and of growing depth (under completep) for a few steps
with a large learning rate, and measures mean |x| of what each kind of module puts out. Where the
parametrization is right, none of it depends on size: the slope of log mean |x| against log width
(or depth) is near 0 at every step. Under sp, the control, it is not. (The coordinate check of Yang
et al. 2022, arXiv 2203.03466, appendix D.1; by depth: Dey et al. 2025, arXiv 2505.01618.)

Step 0 is the model as initialised, where muP's logits still fall as width^-1/2; step i is after i
updates. The check passes where |slope| <= 0.1 from step 2 on under the parametrization, and fails
to under sp. The least width (or depth) is the base, so that no hidden matrix has a larger learning
rate than the one given. With base width 256 and learning rate 1e-2 a model of width 64 trains its
hidden matrices at 4e-2, more than they began with; activations grow a hundredfold and chaotically,
and slopes of -0.2 to -0.9 come of that, not of the rules."""
from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Iterator

import numpy as np
import torch

from slm.errors import UserError
from slm.model import GPT
from slm.optim import make_optimizer
from slm.plot import STYLE
from slm.schema import Optim
from slm.screen import command
from slm.shape import GPTConfig

MODULES = ("embedding", "attention", "mlp", "residual", "logits")
LIMIT, FIRST_STEP = 0.1, 2
N_VOCAB, BLOCK = 256, 64             # text is read as bytes: no tokenizer to train, a small head


@dataclass(frozen=True)
class Settings:
    """What is trained. lr is that of the base shape; steps: optimiser steps."""
    seeds: int = 5
    steps: int = 10
    lr: float = 2e-3
    batch_size: int = 8
    head_size: int = 32
    tied: bool = True
    depth: int = 2                   # of the check by width
    width: int = 64                  # of the check by depth


@dataclass
class Check:
    """One parametrization along one axis. means: log mean |x|, (sizes, seeds, steps + 1, modules);
    slopes and their standard errors over seeds: (steps + 1, modules)."""
    axis: str                        # width | depth
    parametrization: str
    sizes: list[int]
    means: np.ndarray

    def __post_init__(self) -> None:
        x = np.log(self.sizes) - np.mean(np.log(self.sizes))
        of_seeds = np.tensordot(x / (x @ x), self.means, 1)      # (seeds, steps + 1, modules)
        self.slopes = of_seeds.mean(0)
        n = len(of_seeds)
        self.errors = of_seeds.std(0, ddof=1) / math.sqrt(n) if n > 1 else self.slopes * math.nan

    @property
    def worst(self) -> np.ndarray:
        """The slope furthest from 0 from FIRST_STEP on, by module, (modules,)."""
        late = self.slopes[FIRST_STEP:]
        return late[np.abs(late).argmax(0), np.arange(late.shape[1])]

    @property
    def flat(self) -> bool:
        return bool((np.abs(self.worst) <= LIMIT).all())


def shape(axis: str, parametrization: str, size: int, base: int, s: Settings) -> GPTConfig:
    """The model of one size. base: the least width (or depth) of the check."""
    width, depth = (size, s.depth) if axis == "width" else (s.width, size)
    base_width, base_depth = (base, s.depth) if axis == "width" else (s.width, base)
    return GPTConfig(n_layer=depth, n_embd=width, n_head=width // s.head_size, block_size=BLOCK,
                     vocab_size=N_VOCAB, tied=s.tied, parametrization=parametrization,
                     base_width=base_width, base_depth=base_depth)


@lru_cache(maxsize=1)
def text() -> torch.Tensor:
    """Fables as bytes, (n,) int64."""
    from slm.corpora.fables import Fables
    fables = Fables(seed=0, stories=300, val_stories=5, facts=100)
    stories = "\n".join(fables.story(i) for i in range(250))
    return torch.frombuffer(bytearray(stories.encode()), dtype=torch.uint8).long()


def batches(seed: int, s: Settings) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets, (b, t) each: the same for every size."""
    ids, generator = text(), torch.Generator().manual_seed(seed)
    while True:
        start = torch.randint(len(ids) - BLOCK - 1, (s.batch_size,), generator=generator)
        at = start[:, None] + torch.arange(BLOCK)
        yield ids[at], ids[at + 1]


def watch(model: GPT, sizes: dict[str, list[float]], axis: str) -> None:
    """Let every forward pass add mean |x| of each module's output to `sizes`.

    By width it is the mean over blocks. By depth it is the last block: blocks differ, and their
    mean is a Riemann sum over depth, whose error, as 1 / n_layer, would look like a slope."""
    def record(name: str):
        return lambda module, args, out: sizes[name].append(out.detach().abs().mean().item())

    model.drop.register_forward_hook(record("embedding"))
    for block in model.h if axis == "width" else model.h[-1:]:
        block.attn.register_forward_hook(record("attention"))
        block.mlp.register_forward_hook(record("mlp"))
    model.h[-1].register_forward_hook(record("residual"))


def train(config: GPTConfig, seed: int, s: Settings, axis: str) -> np.ndarray:
    """log mean |x| of each module's output before each step and after the last, (steps + 1,
    modules)."""
    model = GPT(config, torch.Generator().manual_seed(seed))
    optim = Optim(lr=s.lr, schedule="constant", grad_clip=0.0)
    optimizer = make_optimizer(model, optim, "cpu")
    sizes: dict[str, list[float]] = {name: [] for name in MODULES}
    watch(model, sizes, axis)
    data, rows = batches(seed, s), []
    for step in range(s.steps + 1):
        x, y = next(data)
        logits = model(x)
        sizes["logits"].append(logits.detach().abs().mean().item())
        rows.append([math.log(max(np.mean(sizes[name]), 1e-30)) for name in MODULES])
        for values in sizes.values():
            values.clear()
        if step < s.steps:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
            optimizer.step()
    return np.array(rows)


def check(axis: str, parametrization: str, sizes: list[int], s: Settings = Settings(),
          say=lambda line: None) -> Check:
    """Train every size with every seed. axis: 'width' | 'depth'; sizes: at least two, the least is
    the base; say: told how long each size took."""
    means = []
    for size in sorted(sizes):
        started = time.monotonic()
        config = shape(axis, parametrization, size, min(sizes), s)
        means.append([train(config, seed, s, axis) for seed in range(s.seeds)])
        say(f"{parametrization}, {axis} {size}: {time.monotonic() - started:.1f} s")
    return Check(axis, parametrization, sorted(sizes), np.array(means))


def report(c: Check) -> str:
    """Slopes by module and step, and whether they are flat."""
    head = f"{c.parametrization}, slope of log mean |x| against log {c.axis} at steps 0.."
    lines = [f"{head}{len(c.slopes) - 1} (standard error at the last)"]
    for i, name in enumerate(MODULES):
        numbers = " ".join(f"{slope:6.2f}" for slope in c.slopes[:, i])
        lines.append(f"  {name:<10}{numbers}  ± {c.errors[-1, i]:.2f}")
    i = int(np.abs(c.worst).argmax())
    lines.append(f"  from step {FIRST_STEP} on at most {abs(c.worst[i]):.2f} ({MODULES[i]}): "
                 + ("flat" if c.flat else f"not flat (limit {LIMIT})"))
    return "\n".join(lines)


def draw(checks: list[Check], path: Path) -> None:
    """The grid: a row for each check, a column for each module, a line for each step."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure                 # without pyplot: no display, no state
    n = checks[0].means.shape[2]                                 # steps + 1
    # without viridis' yellow end, which white paper swallows
    colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.87, n)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(MODULES), 2.5 * len(checks)), layout="constrained")
        axes = figure.subplots(len(checks), len(MODULES), squeeze=False, sharey="col")
        for row, c in zip(axes, checks):
            draw_row(row, c, colours)
        for ax in axes[0]:  # at least a factor of ten, so that what is nearly flat looks flat
            low, high = ax.get_ylim()
            spare = max(1.0, math.sqrt(10 * low / high))
            ax.set_ylim(low / spare, high * spare)
            plain_decades(ax)
        steps = BoundaryNorm(np.arange(n + 1) - 0.5, n)          # a colour for each step
        figure.colorbar(ScalarMappable(steps, colours), ax=axes, label="step", shrink=0.6,
                        ticks=range(0, n, -(-n // 12)))
        figure.savefig(path, dpi=110)


def draw_row(axes, c: Check, colours) -> None:
    """One check: mean |x| against size for each module, colours(i) at step i."""
    means = c.means.mean(1)                                      # (sizes, steps + 1, modules)
    for i, (ax, name) in enumerate(zip(axes, MODULES)):
        for step in range(means.shape[1]):
            ax.plot(c.sizes, np.exp(means[:, step, i]), "o-", ms=3, lw=1, color=colours(step))
        ax.set(xscale="log", yscale="log", xlabel=c.axis)
        ax.set_xticks(c.sizes, map(str, c.sizes))
        ax.xaxis.minorticks_off()
        flat = abs(c.worst[i]) <= LIMIT
        ax.set_title(f"{name}, slope up to {c.worst[i]:+.2f}", fontsize=9, loc="left",
                     fontweight="bold", color="black" if flat else "#b00020")
    axes[0].set_ylabel(f"{c.parametrization}\nmean |x|")


def plain_decades(ax) -> None:
    """Ticks 0.01, 0.1, 1 on a log axis, with 0.03 and 0.3 between them where these are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 300 * low else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def as_dict(checks: list[Check], s: Settings) -> dict:
    """Settings and slopes as plain data."""
    return {"settings": vars(s), "limit": LIMIT, "from_step": FIRST_STEP, "modules": MODULES,
            "checks": [{"axis": c.axis, "parametrization": c.parametrization, "sizes": c.sizes,
                        "flat": c.flat, "slopes": c.slopes.round(4).tolist(),
                        "errors": c.errors.round(4).tolist()} for c in checks]}


def numbers(text: str) -> list[int]:
    values = sorted({int(part) for part in text.split(",")})
    if len(values) < 2 or values[0] < 1:
        raise ValueError
    return values


def main(arguments: list[str] | None = None) -> int:
    """`python -m slm.coord_check`: 0 where each parametrization is flat and sp is not, else 1."""
    parser = argparse.ArgumentParser(
        "python -m slm.coord_check", allow_abbrev=False,
        description="Train growing models for a few steps; do activations keep their size?")
    parser.add_argument("--parametrization", default="mup,completep", help="mup: by width, "
                        "completep: by depth (default: both)")
    parser.add_argument("--widths", type=numbers, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--depths", type=numbers, default=[2, 4, 8, 16, 32])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=2e-3, help="of the base shape")
    parser.add_argument("--head_size", type=int, default=32)
    parser.add_argument("--untied", action="store_true", help="a head of its own")
    parser.add_argument("--out", type=Path, default=Path("coord_check.png"),
                        help="the grid; slopes go beside it as .json")
    args = parser.parse_args(arguments)
    try:
        axes = chosen(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    s = Settings(args.seeds, args.steps, args.lr, head_size=args.head_size, tied=not args.untied)
    checks, passed = [], True
    for parametrization, axis, sizes in axes:
        for name, wanted in ((parametrization, True), ("sp", False)):
            c = check(axis, name, sizes, s, say=lambda line: print(line, flush=True))
            print(report(c) + f": {'as it should be' if c.flat == wanted else 'WRONG'}\n")
            checks.append(c)
            passed &= c.flat == wanted
    draw(checks, args.out)
    args.out.with_suffix(".json").write_text(json.dumps(as_dict(checks, s), indent=1) + "\n")
    print(f"{args.out}: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


def chosen(args: argparse.Namespace) -> list[tuple[str, str, list[int]]]:
    """(parametrization, axis, sizes) of the checks asked for. Raises UserError."""
    known = {"mup": ("width", args.widths), "completep": ("depth", args.depths)}
    names = args.parametrization.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"--parametrization {name}: should be mup, completep or both, as in "
                            "mup,completep (sp is the control of each)")
    odd = [w for w in args.widths if w % args.head_size]
    if odd or Settings.width % args.head_size:
        raise UserError(f"--head_size {args.head_size}: should divide every width "
                        f"({odd or Settings.width})")
    if args.steps < FIRST_STEP or args.seeds < 1:
        raise UserError(f"--steps {args.steps} --seeds {args.seeds}: should be at least "
                        f"{FIRST_STEP} and 1")
    return [(name, *known[name]) for name in names]


if __name__ == "__main__":
    command(main)
