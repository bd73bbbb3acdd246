"""What theory expects of facts that are met with Zipf frequencies: exactly, for this many of them.

An ideal reader knows the grammar and how often each subject is met, and knows a fact from its m-th
telling on. m = 1 is Hutter 2021 (arXiv 2102.04074, "Learning Curve Theory"), larger m a threshold
of meetings, as in the quantization model (Michaud et al. 2023, arXiv 2303.13506). With infinitely
many facts of frequency ~ k ** -z, z > 1, what is not yet known falls as n ** -(z - 1)/z for every
m; with finitely many it falls faster in the end, and for z <= 1 there is no power at all.
"""
from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc

from slm.corpora import fables_grammar as language
from slm.corpora.fables import Fables, fact_of

FACTS = tuple(language.FACTS)
VALUE_NATS = np.array([math.log(len(values)) for values in language.FACTS.values()])    # (facts,)
VARIABLES = ("hero", "friend")


def told(world: Fables) -> np.ndarray:
    """Probability that a story tells a fact of its hero, its friend: (variables, facts)."""
    return np.array([[world.grammar.mentions(
        lambda slot: slot.variable == variable and fact_of(slot.form) == fact)
        for fact in FACTS] for variable in VARIABLES])


def met(world: Fables) -> np.ndarray:
    """Probability of each subject to be a story's hero, its friend: (variables, subjects)."""
    weights = world.grammar.tables["subject"].weights
    return np.array([weights.p, weights.second()])


def rates(world: Fables) -> np.ndarray:
    """Probability that a story tells this fact of this subject, exact: (subjects, facts)."""
    return np.einsum("vk,vf->kf", met(world), told(world))


def unknown(rate: np.ndarray, stories: float, meetings: float = 1.0) -> np.ndarray:
    """Probability that a fact told with probability `rate` a story was told fewer than `meetings`
    times in so many stories: a binomial tail, by the incomplete beta function also for meetings
    that are no whole number. Shape of rate."""
    if meetings == 1:
        return np.exp(stories * np.log1p(-rate))
    if meetings >= stories + 1:
        return np.ones_like(rate)
    return betainc(stories - meetings + 1, meetings, 1 - rate)


def cost(rate: np.ndarray, stories: float, meetings: float = 1.0) -> float:
    """Nats a story that the ideal reader pays on average for facts after so many stories; at none,
    what a reader pays who knows no fact. rate: (subjects, facts)."""
    return float((rate * VALUE_NATS * unknown(rate, stories, meetings)).sum())


def asymptotic(zipf: float) -> float:
    """The exponent in stories of infinitely many facts: Hutter's and Michaud's a / (1 + a) with
    1 + a = zipf; 0 where no power law holds."""
    return max(0.0, (zipf - 1) / zipf)


def exponent(stories: np.ndarray, paid: np.ndarray) -> float:
    """-d log paid / d log stories, by least squares over all points."""
    return float(-np.polyfit(np.log(stories), np.log(paid), 1)[0])
