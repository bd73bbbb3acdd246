"""A law in words."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slm.screen import several

if TYPE_CHECKING:
    from analysis.scaling import Law


def span(x: np.ndarray) -> str:
    low, high = np.min(x), np.max(x)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def number(x: float) -> str:
    return f"{x:.4g}" if np.isfinite(x) else ("inf" if x > 0 else "-inf")


def estimate(law: Law, name: str) -> tuple[str, str]:
    """A parameter's value, and its interval or "known"."""
    if name not in law.intervals:
        return number(law.params[name]), "known"
    low, high = law.intervals[name]
    return number(law.params[name]), f"[{number(low)}, {number(high)}]"


def brief(law: Law) -> str:
    """A law in two lines, for repr()."""
    told = ", ".join(" ".join((name, *estimate(law, name))) for name in law.params)
    more = f"; {several(len(law.warnings), 'warning')}" if law.warnings else ""
    return (f"Law {law.form.equation} of {law.runs['run'].nunique()} runs, {law.level:.0%} "
            f"intervals{more} (summary() tells all)\n  {told}")


def summary(law: Law) -> str:
    """The page that Law.summary() prints."""
    runs, fit = law.runs, law.fit
    ranges = ", ".join(f"{label} {span(runs[c])}" for label, c in (
        ("N", "n_params"), ("D", "tokens"), ("C", "flops"), ("loss", "loss")) if c in runs)
    lines = [f"{law.form.equation}    ({law.form.source})",
             f"{runs['run'].nunique()} runs, {len(runs)} rows: {ranges}", ""]
    for name in law.params:
        value, bracket = estimate(law, name)
        limit = "   AT THE LIMIT OF ITS SEARCH" if name == "E" and law.at_limit else ""
        lines.append(f"  {name:<6} {value:>10}   {bracket}{limit}")
    huber = f"Huber(delta = {fit.delta:g})" if np.isfinite(fit.delta) else "least squares"
    lines += ["", f"objective {law.objective:.6g}: sum of {huber} on log loss; {fit.n_starts:,} "
              f"starts, {fit.n_polished:,} followed, {fit.share_at_optimum:.0%} of them to the "
              "optimum",
              f"scatter about the law: {law.resamples.noise.scale:.2%} of the loss (mean residual: "
              "luck of the runs and misfit of the form together)"]
    lines += law.notes
    if law.cross_check:
        lines.append("variable projection finds " + ", ".join(
            f"{k} {number(v)}" for k, v in law.cross_check.items()))
    names = {"cross_validation": "5-fold cross-validation", "largest": "the largest fifth predicted"
             " from the rest"}
    for key, label in names.items():
        c = law.coverage[key]
        lines.append(f"held out, {label}: " + (c["skipped"] if "skipped" in c else
                     f"{c['inside']} of {c['n']} inside {c['level']:.0%} intervals, mean error "
                     f"{c['error']:.2%}"))
    return "\n".join(lines + [f"warning: {w}" for w in law.warnings])
