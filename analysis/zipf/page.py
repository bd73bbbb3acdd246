"""analysis/study-zipf.md and its figures, from the records beside this file."""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.runs import load_runs
from analysis.zipf import CELLS, HERE, RUNS, ideal
from analysis.zipf.measure import octave
from slm.corpora.fables import Fables
from slm.errors import UserError

KEYS = ("data.fables.seed", "data.fables.facts", "data.fables.zipf")
LEVEL = 0.95
LATE = 3                # horizons that count as late: the last three


@dataclass
class Study:
    """runs: a row for each run, with

        world, facts, zipf  what it was trained on
        stories             that it has seen (tokens over tokens a story)
        excess              nats a story above the floor
        paid, paid_se       of these for facts; rest: excess - paid
        known               nats a story that the ideal reader pays after as many stories
        meetings            tellings from which on an ideal reader of equal cost would know a fact

    cells: what runs pay by fact and octave of ranks (measure.py), with the expected number of
    `meetings` of each. rates: by (world, facts, zipf), of ideal.rates."""
    runs: pd.DataFrame
    cells: pd.DataFrame
    rates: dict[tuple, np.ndarray]

    @property
    def settings(self) -> list[tuple[int, float]]:
        """(facts, zipf), many facts first."""
        return sorted({(int(f), z) for f, z in zip(self.runs["facts"], self.runs["zipf"])},
                      key=lambda s: (-s[0], s[1]))

    def of(self, facts: int, zipf: float) -> pd.DataFrame:
        """The runs of a setting, by tokens."""
        here = self.runs[(self.runs["facts"] == facts) & (self.runs["zipf"] == zipf)]
        return here.sort_values(["world", "tokens"])


@lru_cache(maxsize=None)
def rates(world: int, facts: int, zipf: float) -> np.ndarray:
    return ideal.rates(Fables(world, facts=facts, zipf=zipf))


def load() -> Study:
    """Raises UserError: no records, or runs that were not measured."""
    runs = load_runs(RUNS, spec_keys=KEYS).rename(columns=dict(zip(KEYS, ("world", "facts",
                                                                          "zipf"))))
    cells = pd.read_csv(CELLS)
    missing = set(runs["run"]) ^ set(cells["run"])
    if missing:
        raise UserError(f"{CELLS}: {sorted(missing)[0]} is there or in {RUNS}, not in both: "
                        "python -m analysis.zipf --train measures what is missing")
    runs = runs.astype({"world": int, "facts": int})
    texts = [json.loads((RUNS / name / "summary.json").read_text())["data"] for name in runs["run"]]
    a_story = {part: np.array([d[part]["tokens"] / d[part]["documents"] for d in texts])
               for part in ("train", "val")}
    runs["stories"] = runs["tokens"] / a_story["train"]
    runs["excess"] = (runs["loss"] - runs["floor"]) * a_story["val"]
    keys = list(zip(runs["world"], runs["facts"], runs["zipf"]))
    by_key = {key: rates(*key) for key in keys}
    parts = []
    for i, (name, key) in enumerate(zip(runs["run"], keys)):
        part = weighed(cells[cells["run"] == name], by_key[key], runs["stories"][i])
        runs.loc[i, "paid"] = (part["nats"] * part["paid"]).sum()
        runs.loc[i, "paid_se"] = np.sqrt((part["nats"] ** 2 * part["se"] ** 2).sum())
        runs.loc[i, "known"] = ideal.cost(by_key[key], runs["stories"][i])
        runs.loc[i, "meetings"] = ideal.meetings(by_key[key], runs["stories"][i], runs["paid"][i])
        parts.append(part.assign(facts=key[1], zipf=key[2], tokens=runs["tokens"][i]))
    runs["rest"] = runs["excess"] - runs["paid"]
    return Study(runs, pd.concat(parts, ignore_index=True), by_key)


def weighed(cells: pd.DataFrame, rate: np.ndarray, stories: float) -> pd.DataFrame:
    """The cells of a run, one for every fact and octave, with

    nats      a story that a reader pays there who knows no fact (exact)
    meetings  how often such a fact was told in so many stories, on average over its tellings

    A cell without a telling, or with one alone, is taken to be like its octave."""
    place = octave(np.arange(len(rate)))
    rows = []
    for f, fact in enumerate(ideal.FACTS):
        for j in range(place.max() + 1):
            r = rate[place == j, f]
            rows.append({"fact": fact, "octave": j, "nats": ideal.VALUE_NATS[f] * r.sum(),
                         "meetings": stories * (r ** 2).sum() / r.sum()})
    out = pd.DataFrame(rows).merge(cells, how="left", on=["fact", "octave"])
    thin = ~(out["told"] > 1)
    pooled = {j: part for j, part in out[~thin].groupby("octave")}
    for i in np.flatnonzero(thin):
        like = pooled[out["octave"][i]]
        w = like["told"] / like["told"].sum()
        out.loc[i, ["paid", "se"]] = (w * like["paid"]).sum(), np.sqrt((w * like["se"] ** 2).sum())
    return out.assign(told=out["told"].fillna(0), run=cells["run"].iloc[0])


# -- exponents -------------------------------------------------------------------------------------

@dataclass
class Exponents:
    """Of one setting over some horizons: means over worlds, and half the width of their interval.

    asymptotic: infinitely many facts; ideal: the exact reader who knows a fact once told; likewise
    slow: one who needs `meetings` tellings, as many as the models' last cost amounts to; facts,
    total, rest: of the runs; half: of the interval of each of these."""
    facts: int
    zipf: float
    asymptotic: float
    ideal: float
    slow: float
    meetings: float
    measured: dict[str, float]
    half: dict[str, float]


MEASURED = {"paid": "facts", "excess": "all", "rest": "rest"}


def exponents(study: Study, last: int | None = None) -> list[Exponents]:
    """The exponents of every setting, over the `last` horizons (default: all).

    Intervals: the two worlds of a setting differ by luck; how much, is pooled over settings."""
    slopes: dict[tuple, dict[str, list[float]]] = {}
    for key in study.settings:
        worlds = [part.iloc[-(last or len(part)):] for _, part in study.of(*key).groupby("world")]
        slopes[key] = {c: [ideal.exponent(w["stories"], w[c]) for w in worlds]
                       for c in (*MEASURED, "known")}
        needed = float(np.exp(np.mean([np.log(w["meetings"].iloc[-1]) for w in worlds])))
        slopes[key] |= {"needed": [needed], "slow": [ideal.exponent(w["stories"], [
            ideal.cost(study.rates[w["world"].iloc[0], *key], n, needed) for n in w["stories"]])
            for w in worlds] if np.isfinite(needed) else [np.nan]}
    half = {c: pooled_half([s[c] for s in slopes.values()]) for c in MEASURED}
    return [Exponents(*key, ideal.asymptotic(key[1]), np.mean(s["known"]), np.mean(s["slow"]),
                      s["needed"][0], {c: np.mean(s[c]) for c in MEASURED},
                      {c: half[c][i] for c in MEASURED})
            for i, (key, s) in enumerate(slopes.items())]


def pooled_half(samples: list[list[float]]) -> list[float]:
    """Half the width of the interval of each sample's mean, the spread pooled over samples."""
    freedom = sum(len(s) - 1 for s in samples)
    if not freedom:
        return [np.nan] * len(samples)
    spread = np.sqrt(sum(np.var(s) * len(s) for s in samples) / freedom)
    return [student.ppf((1 + LEVEL) / 2, freedom) * spread / np.sqrt(len(s)) for s in samples]
