"""How long a law takes: all 4,500 starts and 4,000 bootstraps, ours beside scipy, in one run.

    python benchmarks/bench_laws.py --out benchmarks/results/laws.json

The Chinchilla points (240 runs) where the reference data is at hand (SLM_REFERENCE_DATA or
../shared/data), else 240 synthetic runs. scipy does a stated subset, one problem at a time, and
its time is scaled up: BFGS with our analytic gradient, and L-BFGS-B with numeric gradients as in
the published notebook.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from scipy.optimize import minimize

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from analysis import load_table  # noqa: E402
from analysis.fit import Fit, fit_point, huber_objective, refit, starts  # noqa: E402
from analysis.forms import FORMS, make_design  # noqa: E402

BOOTSTRAPS, SUBSET = 4000, 60


def points() -> tuple[str, pd.DataFrame]:
    folder = Path(os.environ.get("SLM_REFERENCE_DATA", ROOT.parent / "shared" / "data"))
    file = folder / "chinchilla" / "svg_extracted_data.csv"
    if file.is_file():
        table = load_table(file, n_params="Model Size", flops="Training FLOP")
        return "Chinchilla points", table[table["loss"] < np.sort(table["loss"])[-5]]
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(18, 23, 240)), np.exp(rng.uniform(21, 26, 240))
    loss = (1.8172 + 477.8 / n ** 0.3473 + 2143.4 / d ** 0.3672) * np.exp(
        0.005 * rng.standard_normal(240))
    return "synthetic runs", pd.DataFrame({"n_params": n, "tokens": d, "loss": loss})


def timed(what):
    started = time.perf_counter()
    result = what()
    return time.perf_counter() - started, result


def scipy_seconds(fit: Fit, problems, analytic: bool) -> tuple[float, np.ndarray]:
    """Seconds and objectives of (start, weights) problems, one scipy call each."""
    def solve(x0, weights):
        fun = huber_objective(fit.design, fit.log_loss, weights, fit.delta)
        zero = np.zeros(1, int)
        if analytic:
            return minimize(lambda t: tuple(v[0] for v in fun(t[None], zero)), x0, jac=True,
                            method="BFGS", options={"gtol": 1e-9}).fun
        return minimize(lambda t: fun(t[None], zero)[0][0], x0, method="L-BFGS-B",
                        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000}).fun

    with np.errstate(all="ignore"):
        return timed(lambda: np.array([solve(*p) for p in problems]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name, table = points()
    design = make_design(FORMS["chinchilla"], {c: table[c].to_numpy() for c in
                                               ("n_params", "tokens")})
    log_loss = np.log(table["loss"].to_numpy())
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), BOOTSTRAPS)
    counts = counts.astype(float)

    fit_sec, fit = timed(lambda: fit_point(design, log_loss))
    every_sec, every = timed(lambda: fit_point(design, log_loss, polish=None))
    boot_sec, boot = timed(lambda: refit(fit, weights=counts))

    x0 = starts(design, log_loss)
    some = rng.choice(len(x0), SUBSET, replace=False)
    rows = {"ours: starts screened, 256 followed": fit_sec, "ours: every start followed": every_sec,
            "ours: bootstraps": boot_sec, "ours: full fit and bootstraps": fit_sec + boot_sec}
    for label, analytic in (("scipy BFGS, analytic gradient", True),
                            ("scipy L-BFGS-B, numeric gradient", False)):
        sec, _ = scipy_seconds(fit, [(x0[i], None) for i in some], analytic)
        rows[f"{label}: every start (scaled from {SUBSET})"] = sec / SUBSET * len(x0)
        sec, found = scipy_seconds(fit, [(fit.theta, c[None]) for c in counts[:SUBSET]], analytic)
        rows[f"{label}: bootstraps (scaled from {SUBSET})"] = sec / SUBSET * BOOTSTRAPS
        print(f"{label}: objectives of the bootstraps differ from ours by at most "
              f"{np.abs(found / boot.f[:SUBSET] - 1).max():.1e} (relative)")
    result = {
        "data": f"{name}, {len(table)} rows", "starts": len(x0), "bootstraps": BOOTSTRAPS,
        "objective": fit.objective, "objective_every_start": every.objective,
        "share_of_all_starts_at_optimum": every.share_at_optimum,
        "seconds": {k: round(v, 3) for k, v in rows.items()},
        "machine": {"cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                    else os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS", "all"),
                    "processor": processor(), "python": platform.python_version(),
                    "numpy": np.__version__, "scipy": scipy.__version__,
                    "load": round(os.getloadavg()[0], 2)}}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")),
                platform.processor())


if __name__ == "__main__":
    main()
