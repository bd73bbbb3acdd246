"""What can be wrong with a fit though it ran: refusals and warnings, each one line."""
from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.scaling.forms import AXIS, FORMS, Form
from slm.errors import UserError

EPOCHS = 4            # up to here repeated data are nearly new (Muennighoff et al. 2023, section 6)
SPARE_RUNS = 2        # runs beyond the number of parameters, or nothing says how large noise is


def check_options(level: float, bootstrap: int = 2000, floor: float | str | None = None,
                  delta: float = 1e-3, polish: int | None = None) -> None:
    """Raises UserError for an option of fit_law that makes no sense."""
    faults = {
        f"level={level}: should lie between 0 and 1, as 0.95": not 0 < level < 1,
        f"bootstrap={bootstrap}: should be 2 or more resamples; 2000 is usual": bootstrap < 2,
        f"delta={delta}: should be above 0 (np.inf for least squares)": not delta > 0,
        f"polish={polish}: should be 1 or more starts (None: all)":
            polish is not None and polish < 1,
        f"floor={floor}: a known floor is a number of nats per token, 0 or more":
            isinstance(floor, (int, float)) and not 0 <= floor < np.inf}
    for line, bad in faults.items():
        if bad:
            raise UserError(line)


def check_enough(form: Form, runs: pd.DataFrame, known_floor: bool) -> None:
    """Raises UserError where the form can't be told from these runs, naming one that could."""
    n_runs, p = runs["run"].nunique(), len(form.params(known_floor))
    reason = ""
    if n_runs < p + SPARE_RUNS:
        reason = f"{form.name} has {p} parameters and needs at least {p + SPARE_RUNS} runs; " \
                 f"there {'is' if n_runs == 1 else 'are'} {n_runs}"
    least = 3 if form.floor and not known_floor else 2
    for column in [AXIS[e] for e in form.exponents]:
        distinct = runs[column].nunique()
        if not reason and distinct < least:
            what = f"all runs have {column} = {runs[column].iloc[0]:g}" if distinct == 1 else \
                f"only {distinct} different values of {column}"
            reason = f"{what}: {form.name} needs at least {least}"
    if not reason:
        return
    fits = [f.name for f in FORMS.values() if f is not form and could_fit(f, runs, known_floor)]
    raise UserError(reason + (f"; what these runs can tell: {', '.join(fits[:4])}" if fits else
                              "; no form can be fitted to these runs"))


def could_fit(form: Form, runs: pd.DataFrame, known_floor: bool) -> bool:
    """Whether check_enough would let this form through (and its columns are there)."""
    if form.extra or any(c not in runs for c in form.needs):
        return False
    known_floor = known_floor and form.floor
    least = 3 if form.floor and not known_floor else 2
    return (runs["run"].nunique() >= len(form.params(known_floor)) + SPARE_RUNS
            and all(runs[AXIS[e]].nunique() >= least for e in form.exponents))


def table_warnings(runs: pd.DataFrame, form: Form) -> list[str]:
    """What the table alone shows."""
    lines = [] if len(runs) == runs["run"].nunique() else [
        f"{len(runs)} rows of {runs['run'].nunique()} runs: checkpoints of one run are not "
        "independent (and their learning rate may not have decayed); resampled by run"]
    for seen, other in (("n_params", "tokens"), ("tokens", "n_params")):
        spread = runs[other].max() / runs[other].min() if other in runs else 1
        if form.needs == (seen,) and spread > 1.1:
            lines.append(f"{form.name} over runs whose {other} differ {spread:.3g}-fold: its "
                         "exponent mixes both")
    return lines + lr_warnings(runs) + warmup_warnings(runs) + epoch_warnings(runs, form)


def lr_warnings(runs: pd.DataFrame) -> list[str]:
    """Learning rates that were not tuned for each size (Porian et al. 2024: the largest single
    cause of wrong exponents after counting), or tuned at the edge of what was tried."""
    if "lr" not in runs or runs["lr"].notna().sum() < 2 or runs["n_params"].nunique() < 2:
        return []
    lines = []
    sp = "parametrization" not in runs or (runs["parametrization"].fillna("sp") == "sp").any()
    if runs["lr"].nunique() == 1 and sp:
        lines.append(f"one learning rate ({runs['lr'].iloc[0]:g}) for all sizes under the standard "
                     "parametrization: it was not tuned per size, exponents may be off")
    tried = runs.groupby(["n_params", "tokens"])["lr"].nunique()
    if (tried > 1).any():
        lines.append(f"{int((tried > 1).sum())} cells (N, D) hold several learning rates, all "
                     "fitted: best_settings(runs) keeps each cell's best")
        means = runs.groupby(["n_params", "tokens", "lr"])["loss"].mean().reset_index()
        best = means.loc[means.groupby(["n_params", "tokens"])["loss"].idxmin()]
        ends = means.groupby(["n_params", "tokens"])["lr"].agg(["min", "max", "nunique"])
        best = best.set_index(["n_params", "tokens"]).join(ends)
        on_edge = (best["lr"] == best["min"]) | (best["lr"] == best["max"])
        n_edge = int((on_edge & (best["nunique"] > 2)).sum())
        if n_edge:
            lines.append(f"the best learning rate lies at the edge of those tried in {n_edge} of "
                         f"{len(best)} cells: widen the range")
    return lines


def warmup_warnings(runs: pd.DataFrame) -> list[str]:
    """Porian et al. 2024, section 3.2: warm-up longer than about N tokens spoils small models."""
    if "warmup_tokens" not in runs or "n_params" not in runs:
        return []
    long = runs[runs["warmup_tokens"] > runs["n_params"]]
    return [f"warm-up is longer than N tokens in {long['run'].nunique()} of {runs['run'].nunique()}"
            " runs: it bends the law at small sizes"] if len(long) else []


def epoch_warnings(runs: pd.DataFrame, form: Form) -> list[str]:
    """Repeated data in a form that does not know of it. Up to EPOCHS is nearly as good as new."""
    if form.extra or "unique_tokens" not in runs or "tokens" not in runs:
        return []
    epochs = runs["tokens"] / runs["unique_tokens"]
    often = runs["run"][epochs > EPOCHS].nunique()
    return [f"{often} of {runs['run'].nunique()} runs saw their data more than {EPOCHS} times (up "
            f"to {epochs.max():.3g}), where a token seen again is worth less than a new one: "
            "form repeated_data (--form=repeated_data) is the law for that (Muennighoff et al. "
            "2023, arXiv 2305.16264)"] if often else []


def misfit(law) -> tuple[float, float] | None:
    """(by how much the form misses the means of replicates, what a seed moves a run), as shares of
    the loss, where the former is more than luck; else None, also where nothing was replicated.

    The F test of lack of fit against pure error (Fisher 1922; Draper and Smith, section 2.1): runs
    that share all that the form reads differ by luck alone, whatever the true law is."""
    from scipy import stats
    residuals = pd.Series(law.fit.residuals())
    needs = [law.runs[c] for c in law.form.needs]
    one_row = not law.runs["run"].duplicated().any()       # checkpoints are no replicates
    groups = residuals.groupby([c.to_numpy() for c in needs])
    cells, n, p = groups.ngroups, len(residuals), len(law.fit.theta)
    if not one_row or n - cells < 3 or cells <= p:
        return None
    means, counts = groups.mean(), groups.size()
    pure = float(((residuals - groups.transform("mean")) ** 2).sum() / (n - cells))
    lack = float((counts * means ** 2).sum() / (cells - p))
    if pure <= 0 or stats.f.sf(lack / pure, cells - p, n - cells) > 1e-3:
        return None
    return float(np.sqrt((means ** 2).sum() / (cells - p))), float(np.sqrt(pure))


def floor_warnings(law) -> list[str]:
    """A fitted floor that the runs do not determine, or that is none."""
    if "E" not in law.fit.design.names:
        return []
    value = law.params["E"]
    known = "floor" in law.runs and law.runs["floor"].notna().all()
    remedy = ("each run here carries its known floor: fit_law(runs, floor=\"floor\"), --floor=floor"
              if known else "say a known floor (floor=) or fit a form without floor")
    only = "the other intervals hold only for floors above it"
    if law.at_limit:
        return [f"the floor ended at the limit of its search, {value:.3g}: these runs do not "
                f"determine it, and {only}; {remedy}"]
    piled = [f"the floor ended at the limit of its search in {law.resamples.at_limit:.0%} of the "
             f"resamples: these runs set it no lower end, and {only}; {remedy}"]
    return piled if law.resamples.piled else [] if value > 0 else [
        f"the floor came out at {value:.3g}, not above zero: these runs don't show one; {remedy}"]


def fit_warnings(law) -> list[str]:
    """What the fit shows: bounds hit, parameters that the runs don't determine, a form that misses.

    law: analysis.scaling.Law, with params, intervals, fit and resamples."""
    lines, form = [], law.form
    if law.misfit:
        missed, seeds = law.misfit
        lines.append(f"the form misses these runs by {missed:.1%} of their loss, seeds move "
                     f"them by {seeds:.1%}: over this range they follow another law, and "
                     "intervals hold only for what the form says; leave out the smallest budgets, "
                     "or compare forms")
    lines += floor_warnings(law)
    for name in form.exponents:
        if not 0.005 < law.params[name] < 2.5:
            lines.append(f"{name} = {law.params[name]:.3g} is outside any known law: its term is "
                         "not determined by these runs")
    for name in form.exponents + (["E"] if "E" in law.intervals and law.params["E"] > 0 else []):
        low, high = law.intervals[name]
        value = law.params[name]
        if not (np.isfinite(low) and np.isfinite(high)) or high - low > max(value, 1e-9):
            lines.append(f"{name} is ill-identified: {value:.3g} with interval [{low:.3g}, "
                         f"{high:.3g}]; a wider range of sizes or tokens would pin it")
    if law.condition > 1e5:
        lines.append(f"ill-conditioned: the least determined direction of {', '.join(law.params)} "
                     f"is {law.condition:.1g} times looser than the best (parameters trade off)")
    for name in form.exponents if law.cross_check else ():
        low, high = law.intervals[name]
        room = high - low + 1e-3 * abs(law.params[name])
        other = law.cross_check[name]
        if other <= 0 < law.params[name] or not low - room < other < high + room:
            lines.append(f"variable projection finds {name} = {other:.3g}, far "
                         f"from {law.params[name]:.3g} [{low:.3g}, {high:.3g}]: outliers, or a "
                         "law that these runs don't determine")
    if law.fit.share_at_optimum < 0.01:
        lines.append("hardly any start reached the optimum: it may not be the deepest")
    if law.resamples.converged < 0.95:
        lines.append(f"{1 - law.resamples.converged:.0%} of the resamples did not converge")
    return lines
