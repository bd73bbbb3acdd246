"""What the records beside this file say: costs of facts, exponents, the step in meetings."""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.runs import load_runs
from analysis.studies.zipf import CELLS, RUNS, ideal
from analysis.studies.zipf.measure import octave
from slm.corpora.fables import Fables
from slm.errors import UserError

KEYS = ("data.fables.seed", "data.fables.facts", "data.fables.zipf")
LEVEL = 0.95
SLOW = 100              # meetings: about where the models' own step lies
SPANS = {"all": None, "late": 3, "last": 2}     # an exponent is of the last so many horizons


@dataclass
class Study:
    """runs: a row for each run, with

        world, facts, zipf  what it was trained on
        stories             that it has seen (tokens over tokens a story)
        excess              nats a story above the floor
        paid                of these for facts
        known, slow         nats a story that ideal readers pay after as many stories: the one who
                            knows a fact once told, and once told SLOW times
        boundary            nats a story that facts would cost if a fact told so often always cost
                            what it does at the setting's last horizon

    excess_se and paid_se are standard errors of the measuring, not of luck in training.
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
                        "python -m analysis.studies zipf --train measures what is missing")
    runs = runs.astype({"world": int, "facts": int})
    texts = [json.loads((RUNS / name / "summary.json").read_text())["data"] for name in runs["run"]]
    a_story = {part: np.array([d[part]["tokens"] / d[part]["documents"] for d in texts])
               for part in ("train", "val")}
    runs["stories"] = runs["tokens"] / a_story["train"]
    runs["excess"] = (runs["loss"] - runs["floor"]) * a_story["val"]
    runs["excess_se"] = runs["loss_se"] * a_story["val"]
    keys = list(zip(runs["world"], runs["facts"], runs["zipf"]))
    by_key = {key: rates(*key) for key in keys}
    parts = []
    for i, (name, key) in enumerate(zip(runs["run"], keys)):
        part = weighed(cells[cells["run"] == name], by_key[key], runs["stories"][i])
        runs.loc[i, "paid"] = (part["nats"] * part["paid"]).sum()
        runs.loc[i, "paid_se"] = np.sqrt((part["nats"] ** 2 * part["se"] ** 2).sum())
        runs.loc[i, "known"] = ideal.cost(by_key[key], runs["stories"][i])
        runs.loc[i, "slow"] = ideal.cost(by_key[key], runs["stories"][i], SLOW)
        parts.append(part.assign(facts=key[1], zipf=key[2], tokens=runs["tokens"][i]))
    study = Study(runs, pd.concat(parts, ignore_index=True), by_key)
    for key in study.settings:
        here = study.cells[(study.cells["facts"] == key[0]) & (study.cells["zipf"] == key[1])]
        curve = by_meetings(here[here["tokens"] == here["tokens"].max()])
        for i in study.of(*key).index:
            rate = by_key[runs["world"][i], *key]
            share = np.interp(np.log(rate * runs["stories"][i]), np.log(curve["meetings"]),
                              curve["paid"])
            runs.loc[i, "boundary"] = (rate * ideal.VALUE_NATS * share).sum()
    return study


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

EXACT, MEASURED = ("known", "slow", "boundary"), ("paid", "excess")


@dataclass
class Exponents:
    """Of one setting: `value` by (column of the runs, span of horizons), means over worlds; `half`
    of the interval of those that were measured."""
    facts: int
    zipf: float
    value: dict[tuple[str, str], float]
    half: dict[tuple[str, str], float]


def exponents(study: Study) -> list[Exponents]:
    """The exponents of every setting. Intervals: where settings have several worlds, from their
    spread (luck and all), pooled over settings; else from the errors of the measuring."""
    slopes: dict[tuple, dict[tuple, list[float]]] = {}
    errors: dict[tuple, dict[tuple, list[float]]] = {}
    for key in study.settings:
        slopes[key], errors[key] = {}, {}
        for span, last in SPANS.items():
            worlds = [w.iloc[-(last or len(w)):] for _, w in study.of(*key).groupby("world")]
            for c in EXACT + MEASURED:
                slopes[key][c, span] = [ideal.exponent(w["stories"], w[c]) for w in worlds]
            for c in MEASURED:
                errors[key][c, span] = [slope_error(w["stories"], w[f"{c}_se"] / w[c])
                                        for w in worlds]
    out = [Exponents(*key, {c: float(np.mean(v)) for c, v in slopes[key].items()}, {})
           for key in slopes]
    for c in errors[out[0].facts, out[0].zipf]:
        pooled = pooled_half([s[c] for s in slopes.values()])
        for e, half in zip(out, pooled):
            own = errors[e.facts, e.zipf][c]
            e.half[c] = half if np.isfinite(half) else 1.96 * float(
                np.sqrt(np.sum(np.square(own))) / len(own))
    return out


def how_sure(study: Study) -> str:
    """What the intervals are made of."""
    if study.runs.groupby(["facts", "zipf"])["world"].nunique().max() > 1:
        return "from the spread between worlds, pooled over settings"
    return "the errors of measuring (luck in training is not in them)"


def slope_error(stories: pd.Series, relative: pd.Series) -> float:
    """Standard error of a least-squares slope in log-log from the relative errors of its points."""
    x = np.log(stories) - np.log(stories).mean()
    return float(np.sqrt(((x / (x ** 2).sum()) ** 2 * relative ** 2).sum()))


def pooled_half(samples: list[list[float]]) -> list[float]:
    """Half the width of the interval of each sample's mean, the spread pooled over samples; nan
    where no sample has two."""
    freedom = sum(len(s) - 1 for s in samples)
    if not freedom:
        return [np.nan] * len(samples)
    spread = np.sqrt(sum(np.var(s) * len(s) for s in samples) / freedom)
    return [student.ppf((1 + LEVEL) / 2, freedom) * spread / np.sqrt(len(s)) for s in samples]


# -- the step in meetings --------------------------------------------------------------------------

BIN = 4                 # bins of meetings a decade
FEWEST = 20             # tellings read, for a cell to be shown


def by_meetings(cells: pd.DataFrame, a_decade: int = BIN) -> pd.DataFrame:
    """meetings, paid and told of cells pooled by how often their facts were told."""
    cells = cells[cells["told"] >= FEWEST]
    place = np.floor(a_decade * np.log10(cells["meetings"]))
    rows = [{"meetings": np.exp(np.average(np.log(p["meetings"]), weights=p["told"])),
             "paid": np.average(p["paid"], weights=p["told"]), "told": p["told"].sum()}
            for _, p in cells.groupby(place)]
    return pd.DataFrame(rows)


def step(cells: pd.DataFrame) -> float:
    """Tellings from which on the models pay less for a fact than a reader who knows none, linear in
    log meetings between bins; nan where they never do, or always."""
    g = by_meetings(cells)
    above = np.flatnonzero(g["paid"] >= 1)
    if not len(above) or above[-1] == len(g) - 1:
        return np.nan
    i = above[-1]
    (m0, y0), (m1, y1) = g[["meetings", "paid"]].iloc[[i, i + 1]].to_numpy()
    return float(np.exp(np.log(m0) + (y0 - 1) / (y0 - y1) * np.log(m1 / m0)))
