"""Fables: an endless corpus of short children's stories whose exact probabilities are known.

Story i is a pure function of (seed, i). A world of `facts` subjects (a name, a species and what is
true of it: home, food, colour, ...) is drawn once from the seed. Each story is about two of them:
the hero is subject k with probability proportional to (k + 1) ** -zipf, the friend likewise among
those of another name, so there is always a rarer subject left to learn. The grammar is
unambiguous, so -log p of a story given the world is a sum over the choices that made it, and its
mean, the floor of any model's loss, is an exact finite sum.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Iterator

from slm.corpora import fables_grammar as language
from slm.corpora.fables_engine import Derivation, Grammar, Mention
from slm.corpora.fables_weights import Table
from slm.errors import UserError

VERSION = 1  # raise when the same words and rules begin to give other text
VAL_START = 2 ** 40  # validation stories are counted from here
MAX_CHOICES = 40  # random numbers at hand for one story; a test shows that none needs more
_NUMBERS = struct.Struct(f"<{MAX_CHOICES}Q")


@dataclass(frozen=True)
class Slip:
    """One thing that a text says and its own story or the world says otherwise."""
    position: int  # characters from the beginning
    variable: str  # hero, friend, thing, spot, ...
    form: str  # '' a name or the thing itself; 'species'; 'home', 'a trait', ... a fact; 'she', ...
    said: str
    expected: str | None  # None: nobody in the world is called so


@dataclass(frozen=True)
class Verdict:
    """What the grammar says of a text, e.g. one that a model wrote."""
    parsed: bool  # a whole story, as far as the wording goes
    position: int  # characters until it leaves the grammar; len(text) if it does not
    unfinished: bool  # it ends in the middle of what could become a story
    facts: int  # facts told about subjects of this world, each once per subject
    facts_right: int  # how many of these agree with the world
    slips: tuple[Slip, ...]  # wrong facts; changed names, things, places, genders; in text order

    @property
    def consistent(self) -> bool:
        return not self.slips


class Fables:
    """The generated corpus.

    Args: seed of the world and its stories; stories, val_stories: documents of each split; facts:
        subjects of the world; zipf: exponent of their frequencies, 0 for even.
    Raises: UserError: fewer than two facts or more than there are names for, an exponent that
        leaves facts unmet.
    """

    name = "fables"
    floor_known = True

    def __init__(self, seed: int = 0, stories: int = 20_000, val_stories: int = 500,
                 facts: int = 1000, zipf: float = 1.0):
        if facts < 2:
            raise UserError(f"data.fables.facts = {facts}: a story is about two; at least 2")
        if zipf * math.log(facts) > 400:
            raise UserError(f"data.fables.zipf = {zipf}: the rarest of {facts} facts would never be"
                            f" met; at most {400 / math.log(facts):.0f}")
        self.seed, self.stories, self.val_stories = seed, stories, val_stories
        self.facts, self.zipf = facts, zipf
        columns = world(seed, facts)
        subjects = Table(columns, [(k + 1) ** -zipf for k in range(facts)],
                         groups=_numbered(columns[""]), open_name="[A-Z][a-z]+")
        self.grammar = Grammar(language.RULES, {**language.TABLES, "subject": subjects},
                               language.ALIASES)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that the text depends on."""
        everything = [VERSION, language.RULES, language.WORDS, language.WORD_EXPONENT,
                      language.FACTS, language.SPECIES, language.NAMES, language.NAME_STARTS,
                      language.NAME_MIDDLES, language.NAME_ENDS, self.seed, self.stories,
                      self.val_stories, self.facts, float(self.zipf)]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()

    def derivation(self, i: int) -> Derivation:
        """Text, surprisal (nats) and choices of story i."""
        numbers = iter(_NUMBERS.unpack(_hash(f"story {self.seed} {i}", _NUMBERS.size)))
        return self.grammar.derive(
            lambda weights, taken: weights.pick((next(numbers) >> 11) * 2.0 ** -53, taken))

    def story(self, i: int) -> str:
        """Story i, any i >= 0: training stories are 0, 1, ..., validation ones VAL_START, ..."""
        return self.derivation(i).text

    def derivations(self, split: str) -> Iterator[Derivation]:
        """The stories of a split ('train' or 'val') with their surprisal.

        Validation stories are drawn from exactly the grammar's distribution. A training story
        whose text is one of theirs is passed over (very rare, see collision()) and one more is
        drawn at the end, so the splits never share a story and the floor stays exact.
        """
        if split == "val":
            yield from map(self.derivation, range(VAL_START, VAL_START + self.val_stories))
            return
        fresh = (d for d in map(self.derivation, itertools.count()) if d.text not in self._val)
        yield from itertools.islice(fresh, self.stories)

    @cached_property
    def _val(self) -> frozenset[str]:
        return frozenset(self.documents("val"))

    def documents(self, split: str) -> Iterator[str]:
        """The stories of a split, one by one."""
        return (d.text for d in self.derivations(split))

    def surprisals(self, split: str) -> Iterator[float]:
        """Exact -log p (nats) of each story of documents(split)."""
        return (d.nats for d in self.derivations(split))

    def entropy(self) -> float:
        """Exact expected surprisal of a story given the world, in nats."""
        return self._sums[0]

    def collision(self) -> float:
        """Exact probability that two stories of different numbers have the same text."""
        return self._sums[1]

    @cached_property
    def _sums(self) -> tuple[float, float]:
        return self.grammar.sums()

    def surprisal(self, text: str) -> float:
        """-log p of any text in nats, found by parsing; inf where it is no story of this world."""
        parses = self.grammar.parses(text)
        return parses[0].nats if parses else math.inf

    def subject(self, k: int) -> dict[str, str]:
        """What is true of the subject met k-th most often: name, species, home, food, ..."""
        columns = self.grammar.tables["subject"].columns
        return {form or "name": column[k] for form, column in columns.items()}

    def fact_nats(self) -> list[float]:
        """By subject: nats a story, exact, that a reader loses on average who knows all but the
        facts of this subject. Facts are drawn evenly, so the first telling of one costs such a
        reader the log of the number of values it may have."""
        def told(variable: str) -> float:
            return sum(math.log(len(values)) * self.grammar.mentions(
                lambda slot, fact=fact: slot.variable == variable and fact_of(slot.form) == fact)
                for fact, values in language.FACTS.items())

        hero, friend = told("hero"), told("friend")
        weights = self.grammar.tables["subject"].weights
        return [p * hero + q * friend for p, q in zip(weights.p, weights.second())]

    def check(self, text: str) -> Verdict:
        """How far a text keeps to the grammar, and whether names, things and facts agree."""
        reading = self.grammar.read(text, open_names=True)
        parsed = bool(reading.whole)
        # The beginning of a story may have several readings: take the one most in its favour.
        slips, told = min(map(_judge, reading.whole or reading.furthest), key=lambda r: len(r[0]))
        return Verdict(parsed, reading.position, not parsed and reading.position == len(text),
                       len(told), sum(told.values()),
                       tuple(sorted(slips, key=lambda slip: slip.position)))


def _hash(key: str, size: int) -> bytes:
    return hashlib.shake_128(key.encode()).digest(size)


def _numbered(values: list[str]) -> list[int]:
    """Equal values get equal numbers."""
    number: dict[str, int] = {}
    return [number.setdefault(value, len(number)) for value in values]


def fact_of(form: str) -> str | None:
    """The fact that a form of a slot tells ('a trait' -> 'trait'), or None."""
    fact = form.removeprefix("a ")
    return fact if fact in language.FACTS else None


def _judge(trail: list) -> tuple[list[Slip], dict[tuple[str, str], bool]]:
    """The slips of one reading, and by (variable, fact) whether it was told right."""
    mentions: dict[str, list[Mention]] = {}
    for m in trail:
        if type(m) is Mention:
            mentions.setdefault(m.slot.variable, []).append(m)
    slips: list[Slip] = []
    told: dict[tuple[str, str], bool] = {}
    owners: dict[tuple[str, str], str] = {}
    for variable, ms in mentions.items():
        slips += _slips(ms, told)
        first = next((m for m in ms if m.slot.form == ""), ms[0])
        owner = owners.setdefault((first.slot.table_name, first.said), variable)
        if owner != variable:
            slips.append(_slip(first, f"another than the {owner}"))
    return slips, told


def _slip(m: Mention, expected: str | None) -> Slip:
    return Slip(m.position, m.slot.variable, m.slot.form, m.said, expected)


def _slips(mentions: list[Mention], told: dict[tuple[str, str], bool]) -> list[Slip]:
    """Mentions of one variable that disagree with the entry it was given; adds to `told`."""
    fits: set[int] | None = None
    strange: list[Mention] = []
    for m in mentions:
        if m.slot.form.removeprefix("a ") in ("", "a", "species"):
            here = set(m.slot.where.get(m.said, ()))
            both = here if fits is None else fits & here
            fits = both or fits
            strange += [] if both else [m]
    if not fits or len(fits) > 1:  # nobody of this world, or the text does not say who
        return [_slip(m, None) for m in strange[:1]]
    k = fits.pop()
    slips = []
    for m in mentions:
        fact, right = fact_of(m.slot.form), m.slot.column[k] == m.said
        if fact:
            told[m.slot.variable, fact] = told.get((m.slot.variable, fact), True) and right
        if not right:
            slips.append(_slip(m, m.slot.column[k]))
    return slips


def world(seed: int, facts: int) -> dict[str, list[str]]:
    """The table of subjects: form -> one string per subject. Subject k is the same however many
    there are."""
    who = subjects(seed, facts)
    columns = {"": [name for name, _, _ in who], "species": [species for _, _, species in who]}
    for form, pair in language.PRONOUNS.items():
        columns[form] = [pair[gender] for _, gender, _ in who]
    numbers = struct.Struct(f"<{len(language.FACTS)}Q")
    draws = [numbers.unpack(_hash(f"fact {seed} {k}", numbers.size)) for k in range(facts)]
    for j, (fact, values) in enumerate(language.FACTS.items()):
        columns[fact] = [values[draw[j] * len(values) >> 64] for draw in draws]
    return columns


def subjects(seed: int, count: int) -> list[tuple[str, int, str]]:
    """`count` different (name, gender 0 she 1 he, species), in an order drawn from the seed; the
    plain names first.

    Raises: UserError: there are not so many.
    """
    pools: list[dict[str, int]] = []
    for names in _name_lists():
        pools.append(names)
        if sum(map(len, pools)) * len(language.SPECIES) >= count:
            break
    else:
        raise UserError(f"data.fables.facts = {count}: there are only "
                        f"{sum(map(len, pools)) * len(language.SPECIES)} subjects")
    found: list[tuple[str, int, str]] = []
    for names in pools:
        more = list(itertools.product(names.items(), language.SPECIES))
        # random.shuffle is no promise across Python versions; sorting by a hash is.
        more.sort(key=lambda who: _hash(f"subject {seed} {who[0][0]} {who[1]}", 16))
        found += [(name, gender, species) for (name, gender), species in more]
    return found[:count]


def _name_lists() -> Iterator[dict[str, int]]:
    """Names with their gender: plain ones, then two syllables, then three."""
    names = {name: gender for gender, some in enumerate(language.NAMES) for name in some}
    yield names
    known = set(names)
    for middles in ([""], language.NAME_MIDDLES):
        names = {start + middle + end: gender
                 for gender, ends in enumerate(language.NAME_ENDS)
                 for start, middle, end in itertools.product(language.NAME_STARTS, middles, ends)}
        names = {name: gender for name, gender in names.items() if name not in known}
        known.update(names)
        yield names
