"""The same runs under every way of counting parameters and FLOPs.

What N and C are is a choice, and small models with large vocabularies make it matter: with 50k
tokens and n_embd 64, block matrices are 5 % of the matrix work (slm.cost). One table shows what
the choice does to the exponents. The project's own: N = blocks and head, C = exact matrix products.
"""
from __future__ import annotations

from dataclasses import fields

import numpy as np
import pandas as pd

from analysis.scaling.optimal import SPAN, CostCurve, parametric_optimum
from analysis.scaling import fit_law
from analysis.table import usable
from slm import cost
from slm.errors import UserError
from slm.shape import GPTConfig

# name: (N of cost.count_params, C of cost.flops_per_token, who counts so)
CONVENTIONS: dict[str, tuple[str, str, str]] = {
    "matmul": ("matmul", "matmul", "blocks + head, exact FLOPs (the default here)"),
    "causal": ("matmul", "causal", "blocks + head, attention counted causally"),
    "6ND": ("total", "6N", "all parameters, C = 6 N D"),
    "nanogpt": ("total", "nanogpt", "nanoGPT, PaLM appendix B"),
    "nanochat": ("matmul", "nanochat", "weights of nn.Linear"),
    "kaplan": ("blocks", "kaplan", "Kaplan et al. 2020: blocks alone"),
    "kaplan_context": ("blocks", "kaplan_context", "the same, with attention"),
    "blocks": ("blocks", "matmul", "Kaplan's N, exact FLOPs"),
    "non_embedding": ("non_embedding", "matmul", "all but embeddings, exact FLOPs"),
    "porian": ("matmul", "porian", "Porian et al. 2024"),
    "porian_attention": ("matmul", "porian_attention", "the same, with attention"),
    "chinchilla_f": ("total", "chinchilla_f", "Hoffmann et al. 2022, appendix F"),
}
SHAPE = ("n_layer", "n_embd", "vocab_size", "block_size")


def shape_of(row: pd.Series) -> GPTConfig:
    """The GPTConfig of a row of the tidy table; columns that are not there take its defaults."""
    given = {}
    for f in fields(GPTConfig):
        value = row.get(f.name)
        if value is None or (np.isscalar(value) and pd.isna(value)):
            continue
        kind = type(f.default)
        given[f.name] = bool(value) if kind is bool else kind(value)
    given.setdefault("n_head", 1)
    return GPTConfig(**given)


def counted(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with, for every row, N_<kind> (parameters) and c_<convention> (FLOPs per token).
    Raises UserError where the shapes of the models are not in it."""
    missing = [c for c in SHAPE if c not in runs or runs[c].isna().any()]
    if missing:
        raise UserError(f"conventions need the shape of every model: no complete column "
                        f"{', '.join(missing)} in this table")
    shapes = [shape_of(row) for _, row in runs.iterrows()]
    params = {s: cost.count_params(s) for s in set(shapes)}
    flops = {s: cost.flops_per_token(s) for s in set(shapes)}
    n = {f"N_{k}": [float(params[s][k]) for s in shapes]
         for k in sorted({v[0] for v in CONVENTIONS.values()})}
    c = {f"c_{k}": [float(flops[s][k]) for s in shapes] for k in cost.flops_per_token(shapes[0])}
    return runs.assign(**n, **c)


def by_convention(runs: pd.DataFrame, level: float = 0.95, **fit_options) -> pd.DataFrame:
    """Exponents under every convention, a row each: alpha, beta, a (N* ~ C^a) and b (D* ~ C^b)
    with intervals, E, the fit's objective, and what the convention counts.

    Each convention's N is fitted anew (approach 3), as somebody who counts so would; a and b are
    the slopes of the optimum over the range of the runs' compute, counted its way. fit_options go
    to fit_law. Raises UserError as fit_law does, and without the shapes of the models."""
    kept, _ = usable(runs, ("tokens",), fit_options.get("allow_mixed", False))
    table = counted(kept)
    laws, rows = {}, []
    for name, (n_kind, c_kind, who) in CONVENTIONS.items():
        if n_kind not in laws:
            laws[n_kind] = fit_law(table,
                                   n_params=f"N_{n_kind}", level=level, **fit_options)
        law = laws[n_kind]
        n, d = table[f"N_{n_kind}"].to_numpy(), table["tokens"].to_numpy(float)
        c = table[f"c_{c_kind}"].to_numpy() * d
        curve = CostCurve.through(n, d, c)
        log_c = np.linspace(np.log(c.min()), np.log(c.max()), SPAN)
        theta = np.concatenate([law.fit.theta[None], law.resamples.theta])
        row = {"convention": name, "N": n_kind, "C": c_kind, "who": who}
        for key in ("alpha", "beta"):
            row |= {key: law.params[key], f"{key}_low": law.intervals[key][0],
                    f"{key}_high": law.intervals[key][1]}
        for key, path in zip("ab", parametric_optimum(law.fit, theta, curve, log_c)):
            slope = np.polyfit(log_c, path.T, 1)[0]
            low, high = law.resamples.interval(slope[0], slope[1:], level)
            row |= {key: slope[0], f"{key}_low": low, f"{key}_high": high}
        rows.append(row | {"E": law.params["E"], "objective": law.objective,
                           "warnings": len(law.warnings)})
    return pd.DataFrame(rows)
