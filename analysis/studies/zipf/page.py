"""analysis/study-zipf.md and its figures, from the records beside this file."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import yaml

from analysis.studies import ROOT
from analysis.studies.records import publish
from analysis.studies.zipf import HERE, SWEEP, ideal
from analysis.studies.zipf.results import SLOW, Exponents, Study, exponents, load, step
from slm.screen import amount

SPAN_NAMES = {"all": "all horizons", "last": "the last doubling"}
RARE = 10               # tellings: facts told less often are not known to any of these models


def write() -> list[Path]:
    """Draw the figures and write study-zipf.md; the paths. Raises UserError without records."""
    from analysis.studies.zipf import figures
    study = load()
    made = {"curves": figures.curves(study), "slopes": figures.slopes(study, exponents(study)),
            "meetings": figures.meetings(study), "ranks": figures.ranks(study)}
    return publish(HERE.parent.parent / "study-zipf.md", text(study),
                   {HERE / f"{name}.png": figure for name, figure in made.items()})


def text(study: Study) -> str:
    """The page."""
    template = (HERE / "template.md").read_text(encoding="utf-8")
    return template.format(**fields(study))


def fields(study: Study) -> dict:
    """The fields of template.md."""
    runs, found = study.runs, exponents(study)
    most = max(e.facts for e in found)
    many, few = ([e for e in found if e.facts == f] for f in (most, min(e.facts for e in found)))
    even = next(e for e in many if e.zipf == 1)
    known = study.of(most, 1.0).groupby("tokens")[["stories", "known"]].mean()
    told = study.cells.groupby("run")["told"].sum()
    rare = late_rare(study)
    return {
        "n_runs": len(runs), "n_params": f"{runs['n_params'].iloc[0]:,.0f}", "slow": SLOW,
        "n_settings": settings_told(study), "most": most, "least": few[0].facts,
        "n_trunks": len(runs.groupby(["world", "facts", "zipf"])), "n_points": points(),
        "horizons": ", ".join(f"{t:,.0f}" for t in sorted(runs["tokens"].unique())),
        "n_told": f"{told.min():,.0f} to {told.max():,.0f}", "whole": whole(study, many),
        "rows": "\n".join(row(e, span) for e in found for span in SPAN_NAMES),
        "facts": follow(many, few), "steps": steps(study), "step_text": step_text(study),
        "worst": f"{min(rare):.1f} to {max(rare):.1f}, at the last horizon, for a fact that they "
                 f"were told fewer than {RARE} times",
        "rise_low": ideal.exponent(*known.iloc[:2].to_numpy().T),
        "rise_high": ideal.exponent(*known.iloc[-2:].to_numpy().T),
        "log_like": even.value["slow", "all"], "luck": luck(study)}


def points() -> int:
    """Trunks of the sweep, a grid."""
    sweep = yaml.safe_load((ROOT / SWEEP).read_text(encoding="utf-8"))
    return math.prod(len(p.get("values", [0])) for p in sweep["parameters"].values())


def settings_told(study: Study) -> str:
    facts = sorted({f for f, _ in study.settings}, reverse=True)
    zipfs = ", ".join(f"{z:g}" for z in sorted({z for _, z in study.settings}))
    worlds = study.runs["world"].nunique()
    return (f"worlds of {' and '.join(f'{f:,}' for f in facts)} subjects with z = {zipfs}"
            + (f" ({worlds} worlds each)" if worlds > 1 else ""))


def row(e: Exponents, span: str) -> str:
    def measured(column: str) -> str:
        value, half = e.value[column, span], e.half[column, span]
        return f"{value:.2f} [{value - half:.2f}, {value + half:.2f}]"
    return (f"| {e.facts:,} | {e.zipf:g} | {SPAN_NAMES[span]} | {ideal.asymptotic(e.zipf):.2f} | "
            f"{e.value['known', span]:.2f} | {e.value['slow', span]:.2f} | {measured('paid')} | "
            f"{e.value['boundary', span]:.2f} | {measured('excess')} |")


def listed(values: list[float], how: str = ".2f") -> str:
    words = [format(v, how) for v in values]
    return ", ".join(words[:-1]) + f" and {words[-1]}"


def whole(study: Study, many: list[Exponents]) -> str:
    last = study.runs[study.runs["tokens"] == study.runs["tokens"].max()]
    shares = [float((p["paid"] / p["excess"]).mean()) for e in many
              for p in [last[(last["facts"] == e.facts) & (last["zipf"] == e.zipf)]]]
    return (f"Above the floor, the loss of models of {many[0].facts:,} subjects falls with "
            f"exponents {listed([e.value['excess', 'all'] for e in many])} for z = "
            f"{listed([e.zipf for e in many], 'g')}, where endless facts would give "
            f"{listed([ideal.asymptotic(e.zipf) for e in many])}. The exponent hardly depends on "
            "the data's, and little of this loss is about facts: at the last horizon they are "
            f"{listed(shares, '.0%')} of what is left above the floor. The rest is grammar, "
            "spelling, and who is met how often.")


def values(some: list[Exponents], column: str, span: str) -> str:
    return listed([e.value[column, span] for e in some])


def inside(some: list[Exponents]) -> str:
    """How many late exponents of facts have the slow reader's in their interval."""
    hits = sum(abs(e.value["paid", "last"] - e.value["slow", "last"]) <= e.half["paid", "last"]
               for e in some)
    return f"{hits} of {len(some)}"


def follow(many: list[Exponents], few: list[Exponents]) -> str:
    return (f"What facts cost does depend on z as theory says where there are {many[0].facts:,} "
            f"subjects, and late: over the last doubling the exponents are "
            f"{values(many, 'paid', 'last')}, and those of the exact reader who needs {SLOW} "
            f"tellings {values(many, 'slow', 'last')}; {inside(many)} of these lie inside the "
            f"interval. Over all horizons ({values(many, 'paid', 'all')}) the small ones are too "
            f"large. With {few[0].facts:,} subjects it does not: "
            f"{values(few, 'paid', 'last')} over the last doubling, where that reader has "
            f"{values(few, 'slow', 'last')} ({inside(few)} inside). The exact theory has the "
            "dependence on z shrink as facts run out, but not vanish.\n\nTwo things make facts "
            "cheaper as training goes on: more of them are known, which is the theory, and those "
            "that are not known cost less, which is not in it (next section). If a fact told so "
            "often always cost what it does at the last horizon, the first alone would give "
            f"{values(many, 'boundary', 'last')} over the last doubling at {many[0].facts:,} "
            f"subjects and {values(few, 'boundary', 'last')} at {few[0].facts:,}. At z = 1 and 1.5 "
            "that is within the interval of what was measured or nearly so; at z = 2 less was "
            "measured, and there the step itself went to more tellings in the last doublings (the "
            "table below); why, is not known.\n\nThe reader who needs one telling has "
            f"{values(many, 'known', 'last')} and {values(few, 'known', 'last')}: how many "
            "meetings a learner needs does not change the exponent of endless facts, but it does "
            "that of a thousand.")


def steps(study: Study) -> str:
    """Table: the step by z and horizon, and what unknown facts cost."""
    horizons = sorted(study.runs["tokens"].unique())
    head = [f"| | {' | '.join(amount(float(f'{t:.2g}')) for t in horizons)} |",
            "|---|" + "---|" * len(horizons)]
    rows = [f"| z = {z:g}, tellings at which a fact costs what ignorance would | " + " | ".join(
        f"{step(cells_of(study, z, t)):.0f}" for t in horizons) + " |" for z in zipfs(study)]
    rows += [f"| z = {z:g}, cost of a fact told fewer than {RARE} times | " + " | ".join(
        f"{rare_cost(cells_of(study, z, t)):.1f}" for t in horizons) + " |" for z in zipfs(study)]
    return "\n".join(head + rows)


def zipfs(study: Study) -> list[float]:
    return sorted({z for _, z in study.settings})


def cells_of(study: Study, zipf: float, tokens: float):
    return study.cells[(study.cells["zipf"] == zipf) & (study.cells["tokens"] == tokens)]


def rare_cost(cells) -> float:
    """Mean share that facts told fewer than RARE times cost."""
    few = cells[(cells["meetings"] < RARE) & (cells["told"] > 0)]
    return float(np.average(few["paid"], weights=few["told"]))


def late_rare(study: Study) -> list[float]:
    last = study.runs["tokens"].max()
    return [rare_cost(cells_of(study, z, last)) for z in zipfs(study)]


def step_text(study: Study) -> str:
    found = [step(cells_of(study, z, t)) for z in zipfs(study)
             for t in sorted(study.runs["tokens"].unique())]
    ratio = study.runs["tokens"].max() / study.runs["tokens"].min()
    return ("Here the account holds at its core. Whatever the exponent and the horizon, a fact "
            f"costs less than ignorance from {np.nanmin(found):.0f} to {np.nanmax(found):.0f} "
            f"tellings on (geometric mean {np.exp(np.nanmean(np.log(found))):.0f}): within a "
            f"factor of {np.nanmax(found) / np.nanmin(found):.1f}, while tokens grow {ratio:.0f} "
            "times and the loss above the floor falls to a fifth or less. What counts for a fact "
            "is, first of all, how often it was told. It is no sharp step: it goes from about 30 "
            "tellings to about 1,000. And so the boundary between known and unknown moves to rarer "
            "subjects as training goes on, the figure below, far behind that of a reader who "
            "remembers what he is told once.")


def luck(study: Study) -> str:
    if study.runs["world"].nunique() > 1:
        return ("Two worlds of each setting, trained from the same initial weights: intervals rest "
                "on their spread, pooled over settings.")
    return ("One run of each setting: the intervals hold the errors of measuring, not the luck "
            "of a training. The study in `analysis/study-fables.md` found that seeds move the loss "
            "of such a run by 1.9%, 2 to 4% of what is above the floor here; errors of that size, "
            "if independent, move an exponent over all five horizons by ±0.03 and one over a "
            "doubling by ±0.15.")
