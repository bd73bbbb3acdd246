"""Do 95 % intervals hold the truth 95 % of the time?

    OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py --out benchmarks/results/coverage.json

Synthetic runs from known laws, at sizes people can afford (16 to 60 runs, 0.3 to 1 % noise), fitted
by the library as a user would; counted: how often the interval of each estimator holds the true
exponent, and how often the prediction interval holds a new run at 4 to 10 times the largest
compute. With 200 trials a perfect 95 % interval counts 92 to 98 % (two standard errors).
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.scaling.optimal import compute_optimal  # noqa: E402
from analysis.scaling import Law, fit_law  # noqa: E402

TRUE = dict(E=1.8172, A=477.8, B=2143.4, alpha=0.3473, beta=0.3672)
SIZES, BUDGETS = (1e5, 1e7), (1e14, 1e16)


def true_loss(n, d):
    return TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]


def grid(n_sizes: int, n_tokens: int, tokens=(1e7, 1e9)):
    """Every size at every number of tokens: N, D."""
    n, d = np.meshgrid(np.geomspace(*SIZES, n_sizes), np.geomspace(*tokens, n_tokens))
    return n.ravel(), d.ravel()


def isoflop(n_budgets: int, n_sizes: int, spread: float = 16.0):
    """n_sizes around the optimum of each budget, `spread`-fold from smallest to largest: N, D."""
    a, b = TRUE["alpha"], TRUE["beta"]
    c = np.repeat(np.geomspace(*BUDGETS, n_budgets), n_sizes)
    best = (a * TRUE["A"] / b / TRUE["B"]) ** (1 / (a + b)) * (c / 6) ** (b / (a + b))
    n = best * np.tile(spread ** np.linspace(-0.5, 0.5, n_sizes), n_budgets)
    return n, c / 6 / n


def runs_of(n, d, loss, noise, **more) -> pd.DataFrame:
    return pd.DataFrame({"run": np.arange(len(n)), "n_params": n, "tokens": d, "flops": 6 * n * d,
                         "loss": loss * np.exp(noise), **more})


def normal(sigma):
    return lambda rng, n: sigma * rng.standard_normal(len(n))


def student(sigma):
    return lambda rng, n: sigma * rng.standard_t(3, len(n)) / np.sqrt(3)


def shrinking(sigma):
    """Five times as noisy at the smallest size as at the largest."""
    return lambda rng, n: sigma * (n / 1e6) ** -0.35 * rng.standard_normal(len(n))


def options(rng) -> dict:
    """As a user would fit, with half the resamples and fewer starts followed."""
    return {"polish": 16, "bootstrap": 1000, "seed": int(rng.integers(1 << 30))}


def inside(truth: dict, intervals: dict) -> dict:
    return {k: bool(intervals[k][0] <= v <= intervals[k][1]) for k, v in truth.items()}


def predicted(law: Law, rng, noise, n, d) -> dict:
    """Whether a new, larger run falls inside its prediction interval: 4 to 10 x the compute."""
    more = np.sqrt(rng.uniform(4, 10))
    new_n, new_d = np.array([n.max() * more]), np.array([d.max() * more])
    if law.fit.design.columns["n_params"].size and len(np.unique(n * d // 1e8)) < len(n) / 2:
        top = np.argsort(n * d)[-3:]              # isoFLOP: along the frontier
        new_n, new_d = np.array([n[top].mean() * more]), np.array([d[top].mean() * more])
    loss = true_loss(new_n, new_d) * np.exp(noise(rng, new_n))
    p = law.predict(n_params=new_n, tokens=new_d)
    return {"prediction": bool(p.low[0] <= loss[0] <= p.high[0])}


def chinchilla(design, noise):
    def trial(rng) -> dict:
        n, d = design
        law = fit_law(runs_of(n, d, true_loss(n, d), noise(rng, n)), **options(rng))
        found = inside({k: TRUE[k] for k in ("alpha", "beta", "E")}, law.intervals)
        own = inside({k: TRUE[k] for k in ("alpha", "beta")}, law.cross_intervals)
        found |= {f"varpro {k}": v for k, v in own.items()}
        return found | predicted(law, rng, noise, n, d)
    return trial


def frontier(design, noise):
    truth = TRUE["beta"] / (TRUE["alpha"] + TRUE["beta"])

    def trial(rng) -> dict:
        n, d = design
        found = compute_optimal(runs_of(n, d, true_loss(n, d), noise(rng, n)), **options(rng)).table
        return {f"approach {r.approach} {k}": bool(getattr(r, f"{k}_low") <= v
                                                   <= getattr(r, f"{k}_high"))
                for r in found.itertuples() for k, v in (("a", truth), ("b", 1 - truth))}
    return trial


def checkpoints(rng) -> dict:
    """24 runs with 6 checkpoints each, which share their run's luck."""
    n, d = grid(6, 4)
    noise = normal(0.004)(rng, n)
    last = runs_of(n, d, true_loss(n, d), noise)
    rows = [runs_of(n, d * f, true_loss(n, d * f), noise + normal(0.001)(rng, n))
            for f in np.geomspace(0.2, 1, 6)]
    law = fit_law(pd.concat(rows), **options(rng))
    found = inside({k: TRUE[k] for k in ("alpha", "beta", "E")}, law.intervals)
    return found | predicted(law, rng, normal(0.0042), last["n_params"].to_numpy(),
                             last["tokens"].to_numpy())


def one_variable(form: str, column: str, count: int, sigma: float):
    """L(N), L(D), L(C): `count` values over three decades, two seeds each."""
    scale, exponent = {"n_params": ("A", "alpha"), "tokens": ("B", "beta"),
                       "flops": ("K", "gamma")}[column]
    power, size, floor = 0.35, 60.0, 0.0 if "no floor" in form else 1.5

    def trial(rng) -> dict:
        x = np.repeat(np.geomspace(1e5, 1e8, count), 2)
        runs = pd.DataFrame({"run": np.arange(len(x)), "n_params": 1e6, "tokens": 1e8,
                             "flops": 1e15, "loss": (floor + size * x ** -power)
                             * np.exp(normal(sigma)(rng, x))})
        runs[column] = x
        law = fit_law(runs, form, **options(rng))
        truth = {exponent: power, scale: size} | ({"E": floor} if floor else {})
        loss = (floor + size * 8e8 ** -power) * np.exp(sigma * rng.standard_normal())
        p = law.predict(**{column: 8e8})
        return inside(truth, law.intervals) | {"prediction": bool(p.low <= loss <= p.high)}
    return trial


def overtraining(rng) -> dict:
    """Gadre et al.: 30 runs, 5 budgets x 6 tokens-per-parameter ratios."""
    m, c = (v.ravel() for v in np.meshgrid(np.geomspace(5, 640, 6), np.geomspace(1e14, 1e17, 5)))
    n = np.sqrt(c / 6 / m)
    eta, a, b = 0.16, 160.0, 130.0
    loss = 1.8 + (a * m ** eta + b * m ** -eta) * c ** -eta
    law = fit_law(runs_of(n, m * n, loss, normal(0.005)(rng, n)), "overtraining", **options(rng))
    return inside({"eta": eta, "E": 1.8}, law.intervals)


def repeated(rng) -> dict:
    """Muennighoff et al.: 48 runs, 4 sizes x 3 data sets x 1, 4, 16, 64 epochs."""
    n, u, e = (v.ravel() for v in np.meshgrid(np.geomspace(*SIZES, 4), np.geomspace(1e6, 3e7, 3),
                                              [1.0, 4.0, 16.0, 64.0]))
    worth = u * (1 + 15.0 * (1 - np.exp(-(e - 1) / 15.0)))
    runs = runs_of(n, u * e, true_loss(n, worth), normal(0.005)(rng, n), unique_tokens=u)
    law = fit_law(runs, "repeated_data", **options(rng))
    return inside({"alpha": TRUE["alpha"], "beta": TRUE["beta"], "R_D": 15.0}, law.intervals)


def known_floor(rng) -> dict:
    n, d = grid(5, 4)
    law = fit_law(runs_of(n, d, true_loss(n, d), normal(0.005)(rng, n)), floor=TRUE["E"],
                  **options(rng))
    return inside({k: TRUE[k] for k in ("alpha", "beta")}, law.intervals) \
        | predicted(law, rng, normal(0.005), n, d)


SMALL = dict(E=0.42, A=280.0, B=99.0, alpha=0.494, beta=0.318)


def small(floor: float | None):
    """A first sweep on two cores: 9 sizes over one decade, 4 horizons over less than one, noise
    3 %, far above the floor, which such runs hardly show."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(2e4, 2e5, 9), np.geomspace(2e4, 1.6e5, 4)))
    loss = SMALL["E"] + SMALL["A"] / n ** SMALL["alpha"] + SMALL["B"] / d ** SMALL["beta"]

    def trial(rng) -> dict:
        law = fit_law(runs_of(n, d, loss, normal(0.03)(rng, n)), floor=floor,
                      **options(rng))
        return inside({k: SMALL[k] for k in ("alpha", "beta", "E") if k in law.intervals},
                      law.intervals)
    return trial


SCENARIOS = {
    "chinchilla, grid 5 x 4, noise 0.3 %": chinchilla(grid(5, 4), normal(0.003)),
    "chinchilla, isoflop 5 x 8, noise 1 %": chinchilla(isoflop(5, 8), normal(0.01)),
    "chinchilla, grid 8 x 7, noise 0.5 %, heavy tails": chinchilla(grid(8, 7), student(0.005)),
    "chinchilla, isoflop 5 x 8, noise 5-fold over sizes": chinchilla(isoflop(5, 8),
                                                                     shrinking(0.004)),
    "chinchilla, 24 runs x 6 checkpoints": checkpoints,
    "chinchilla, known floor, grid 5 x 4": known_floor,
    "frontier, isoflop 5 x 8, noise 0.5 %": frontier(isoflop(5, 8), normal(0.005)),
    "frontier, grid 8 x 6, noise 0.3 %": frontier(grid(8, 6), normal(0.003)),
    "L(N), 8 sizes x 2 seeds, noise 0.5 %": one_variable("L(N)", "n_params", 8, 0.005),
    "L(D), 8 budgets x 2 seeds, noise 0.5 %": one_variable("L(D)", "tokens", 8, 0.005),
    "L(C), 10 budgets x 2 seeds, noise 1 %": one_variable("L(C)", "flops", 10, 0.01),
    "L(N) no floor, 8 sizes x 2 seeds": one_variable("L(N) no floor", "n_params", 8, 0.005),
    "L(D) no floor, 8 budgets x 2 seeds": one_variable("L(D) no floor", "tokens", 8, 0.005),
    "L(C) no floor, 10 budgets x 2 seeds": one_variable("L(C) no floor", "flops", 10, 0.01),
    "overtraining, 5 x 6": overtraining,
    "repeated_data, 4 x 3 x 4": repeated,
    "small sweep, 9 x 4 over a decade, noise 3 %": small(None),
    "small sweep, floor known": small(SMALL["E"]),
}


def count(name: str, trials: int, seed: int = 0) -> dict[str, float]:
    """Share of trials in which each quantity's truth was inside, for one scenario."""
    rows = [SCENARIOS[name](np.random.default_rng([seed, i])) for i in range(trials)]
    return {k: float(np.mean([r[k] for r in rows if k in r]))
            for k in dict.fromkeys(k for r in rows for k in r)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = [n for n in SCENARIOS if args.only in n]
    started, result = time.time(), {}
    with ProcessPoolExecutor(args.processes) as pool:
        for name, shares in zip(names, pool.map(
                count, names, [args.trials] * len(names), [args.seed] * len(names))):
            result[name] = shares
            print(f"{name}: " + ", ".join(f"{k} {v:.1%}" for k, v in shares.items()), flush=True)
            if args.out:
                write(args, round(time.time() - started), result)


def write(args: argparse.Namespace, seconds: int, coverage: dict) -> None:
    """The outcome so far: a study that is interrupted keeps what it has."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({
        "what": "share of trials in which the 95 % interval held the truth",
        "trials": args.trials, "seed": args.seed, "seconds": seconds, "coverage": coverage},
        indent=1) + "\n")


if __name__ == "__main__":
    main()
