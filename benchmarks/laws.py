"""How long a law takes: all 4,500 starts and 4,000 bootstraps, ours beside scipy.

The Chinchilla points (240 runs) where the reference data is at hand, else 240 synthetic runs. scipy
does a stated subset, one problem at a time as published notebooks do, and its time is scaled up:
BFGS with our analytic gradient, and L-BFGS-B with numeric gradients."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.child import Child
from benchmarks.measure import Options, Row, interleave

BOOTSTRAPS, SUBSET = 4000, 60
SCIPY = {"scipy BFGS, analytic gradient": True, "scipy L-BFGS-B, numeric gradient": False}


def points(data: Path | None):
    """Name and table of the runs that are fitted."""
    import pandas as pd

    from analysis.table import load_table
    file = (data or Path()) / "chinchilla" / "svg_extracted_data.csv"
    if file.is_file():
        table = load_table(file, n_params="Model Size", flops="Training FLOP")
        return "Chinchilla's points", table[table["loss"] < np.sort(table["loss"])[-5]]
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(18, 23, 240)), np.exp(rng.uniform(21, 26, 240))
    loss = (1.8172 + 477.8 / n ** 0.3473 + 2143.4 / d ** 0.3672) * np.exp(
        0.005 * rng.standard_normal(240))
    return "synthetic runs", pd.DataFrame({"n_params": n, "tokens": d, "loss": loss})


class Problem:
    """One design with its starts and bootstrap weights."""

    def __init__(self, data: str | None, bootstraps: int, subset: int) -> None:
        from analysis.scaling.fit import fit_point, starts
        from analysis.scaling.forms import FORMS, make_design
        self.name, table = points(Path(data) if data else None)
        self.design = make_design(FORMS["chinchilla"],
                                  {c: table[c].to_numpy() for c in ("n_params", "tokens")})
        self.log_loss, self.n = np.log(table["loss"].to_numpy()), len(table)
        rng = np.random.default_rng(0)
        self.counts = rng.multinomial(self.n, np.full(self.n, 1 / self.n), bootstraps).astype(float)
        self.fit = fit_point(self.design, self.log_loss)
        every = starts(self.design, self.log_loss)
        self.starts = len(every)
        self.some = every[rng.choice(len(every), min(subset, len(every)), replace=False)]
        self.subset = min(subset, bootstraps)

    def __call__(self, what: str, analytic: bool | None = None) -> dict:
        objectives = (self.ours if analytic is None else self.scipy)(what, analytic)
        return {"objectives": np.asarray(objectives)[:self.subset].tolist(), "name": self.name,
                "rows": self.n, "starts": self.starts}

    def ours(self, what: str, _) -> np.ndarray:
        from analysis.scaling.fit import fit_point, refit
        if what == "bootstraps":
            return refit(self.fit, weights=self.counts).f
        polish = {} if what == "starts" else {"polish": None}
        return np.array([fit_point(self.design, self.log_loss, **polish).objective])

    def scipy(self, what: str, analytic: bool) -> np.ndarray:
        from analysis.scaling.fit import huber_objective
        from scipy.optimize import minimize

        def solve(x0, weights):
            fun = huber_objective(self.design, self.log_loss, weights, self.fit.delta)
            zero = np.zeros(1, int)
            if analytic:
                return minimize(lambda t: tuple(v[0] for v in fun(t[None], zero)), x0, jac=True,
                                method="BFGS", options={"gtol": 1e-9}).fun
            return minimize(lambda t: fun(t[None], zero)[0][0], x0, method="L-BFGS-B",
                            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000}).fun

        with np.errstate(all="ignore"):
            if what == "bootstraps":
                return np.array([solve(self.fit.theta, c[None]) for c in self.counts[:self.subset]])
            return np.array([solve(x0, None) for x0 in self.some])


def rows(options: Options) -> list[Row]:
    bootstraps, subset = (200, 4) if options.quick else (BOOTSTRAPS, SUBSET)
    data = str(options.data) if options.data else None
    with Child("benchmarks.laws:Problem", data=data, bootstraps=bootstraps,
               subset=subset) as problem:
        problem.wait()
        sides = {("ours", what): lambda what=what: problem(what=what)
                 for what in ("starts", "every start", "bootstraps")}
        for name, analytic in SCIPY.items():
            for what in ("every start", "bootstraps"):
                sides[name, what] = lambda what=what, analytic=analytic: problem(
                    what=what, analytic=analytic)
        found = interleave(sides, options.rounds(3))
    return rows_of(found, bootstraps, subset)


def rows_of(found: dict[tuple[str, str], list[dict]], bootstraps: int, subset: int) -> list[Row]:
    first = found["ours", "starts"][0]
    sec = {key: [r["sec"] for r in results] for key, results in found.items()}
    out = [Row(f"the best of {first['starts']:,} starts, screened", "s", sec["ours", "starts"],
               note=f"{first['name']}, {first['rows']} rows; all tried, 256 followed to the end")]
    for what, total in (("every start", first["starts"]), ("bootstraps", bootstraps)):
        mine = found["ours", what][0]["objectives"]
        for name in SCIPY:
            solved = found[name, what][0]["objectives"]
            scaled = [s * total / len(solved) for s in sec[name, what]]
            note = f"scipy's time is scaled up from {len(solved)}"
            if what == "bootstraps":
                worst = max(abs(a / b - 1) for a, b in zip(solved, mine))
                note += f"; its optima differ from ours by at most {worst:.1e} (relative)"
            label = "every start followed" if what == "every start" else f"{total:,} bootstraps"
            out.append(Row(label, "s", sec["ours", what], scaled, name, note=note))
    return out
