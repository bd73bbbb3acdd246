"""Fables: an endless corpus of short children's stories whose exact probabilities are known.

Story i is a pure function of (seed, i). A world of `facts` subjects (a name and what is true of
it: kind, home, food, ...) is drawn once from the seed; each story is about two of them, met with
Zipf frequencies, so there is always a rarer subject left to learn. The grammar is unambiguous, so
-log p of a story given the world is the sum over the choices that made it, and its mean, the floor
of any model's loss, is an exact finite sum.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Iterator

from slm.corpora import fables_grammar as language
from slm.corpora.fables_engine import Derivation, Grammar, Mention, Table, identify
from slm.errors import UserError

VERSION = 1  # raise when the same parameters begin to give other text (words and rules are hashed)
VAL_START = 2 ** 40  # validation stories are counted from here
MAX_CHOICES = 64  # 64-bit random numbers at hand for one story; a test shows that none needs more


@dataclass(frozen=True)
class Slip:
    """One thing a text says that its own story or the world says otherwise."""
    position: int  # characters from the beginning
    variable: str  # hero, friend, thing, spot, ...
    form: str  # '' a name or the thing itself; species, home, food, ... a fact; she, her ... gender
    said: str
    expected: str | None  # None: nobody and nothing in the world is called so

    @property
    def is_fact(self) -> bool:
        return fact_of(self.form) is not None


@dataclass(frozen=True)
class Verdict:
    """What the grammar says of a text, e.g. one that a model wrote."""
    parsed: bool  # a whole story as far as the wording goes
    position: int  # characters until it leaves the grammar; len(text) if it does not
    unfinished: bool  # stopped in the middle of what could become a story
    facts: int  # facts told about known subjects (each once a story and subject)
    facts_right: int  # of these, how many agree with the world
    slips: tuple[Slip, ...]  # wrong facts, changed names, things, places, genders; in text order

    @property
    def consistent(self) -> bool:
        return not self.slips


class Fables:
    """The generated corpus. Raises UserError where the parameters allow no stories."""

    name = "fables"
    floor_known = True

    def __init__(self, seed: int = 0, stories: int = 20_000, val_stories: int = 500,
                 facts: int = 1000, zipf: float = 1.0):
        if facts < 2:
            raise UserError(f"data.fables.facts={facts}: a story needs two subjects; use at least 2")
        if facts ** -zipf < 1e-200:
            raise UserError(f"data.fables.zipf={zipf}: the rarest of {facts} facts would never be"
                            " met; use a smaller exponent")
        self.seed, self.stories, self.val_stories = seed, stories, val_stories
        self.facts, self.zipf = facts, zipf
        columns = world(seed, facts)
        subjects = Table(columns, [(k + 1) ** -zipf for k in range(facts)],
                         _numbered(columns[""]), "[A-Z][a-z]+")
        self.grammar = Grammar(language.RULES, {**language.TABLES, "subject": subjects},
                               language.ALIASES)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that the text depends on."""
        tables = {name: (t.columns, t.weights.p) for name, t in language.TABLES.items()}
        everything = [VERSION, language.RULES, tables, language.FACTS, language.SPECIES,
                      language.NAMES, language.NAME_STARTS, language.NAME_MIDDLES,
                      language.NAME_ENDS, self.seed, self.stories, self.val_stories, self.facts, float(self.zipf)]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()

    def derivation(self, i: int) -> Derivation:
        """Text, surprisal (nats) and choices of story i."""
        numbers = iter(_NUMBERS.unpack(_hash(f"story {self.seed} {i}", 8 * MAX_CHOICES)))
        return self.grammar.derive(
            lambda weights, taken: weights.pick((next(numbers) >> 11) * 2.0 ** -53, taken))

    def story(self, i: int) -> str:
        """Story i, any i >= 0: training stories are 0, 1, ...; validation ones VAL_START, ..."""
        return self.derivation(i).text

    def indices(self, split: str) -> range:
        """The numbers of the stories of a split, 'train' or 'val'."""
        return {"train": range(self.stories),
                "val": range(VAL_START, VAL_START + self.val_stories)}[split]

    def documents(self, split: str) -> Iterator[str]:
        """The stories of a split, one by one."""
        return map(self.story, self.indices(split))

    def surprisals(self, split: str) -> Iterator[float]:
        """Exact -log p (nats) of each story of documents(split)."""
        return (self.derivation(i).nats for i in self.indices(split))

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
        return parses[0].nats if parses else float("inf")

    def subject(self, k: int) -> dict[str, str]:
        """What is true of the subject met k-th most often: name, she, species, home, food, ..."""
        columns = self.grammar.tables["subject"].columns
        return {form or "name": column[k] for form, column in columns.items()}

    def check(self, text: str) -> Verdict:
        """How far a text keeps to the grammar, and whether names, things and facts agree."""
        reading = self.grammar.read(text, open_names=True)
        mentions = [m for m in (reading.trails or [reading.trail])[0] if type(m) is Mention]
        by_variable: dict[str, list[Mention]] = {}
        for m in mentions:
            by_variable.setdefault(m.slot.variable, []).append(m)
        slips, told, owners = [], {}, {}
        for variable, ms in by_variable.items():
            slips += _slips(ms, told)
            owner = (ms[0].slot.table_name, ms[0].said.lower())
            if ms[0].slot.form == "" and owners.setdefault(owner, variable) != variable:
                slips.append(Slip(ms[0].position, variable, "", ms[0].said, "another"))
        slips.sort(key=lambda slip: slip.position)
        parsed = bool(reading.trails)
        return Verdict(parsed, len(text) if parsed else reading.position,
                       not parsed and reading.position == len(text),
                       len(told), sum(told.values()), tuple(slips))


_NUMBERS = struct.Struct(f"<{MAX_CHOICES}Q")


def _hash(key: str, size: int) -> bytes:
    return hashlib.shake_128(key.encode()).digest(size)


def fact_of(form: str) -> str | None:
    """The fact that a slot form tells ('A species' -> 'species'), or None."""
    fact = form[2:] if form[:2] in ("a ", "A ") else form[:1].lower() + form[1:]
    return fact if fact in language.FACTS else None


def _slips(mentions: list[Mention], told: dict) -> list[Slip]:
    """Mentions of one variable that disagree with the entry it was given; adds to `told` whether
    each fact was told right, by (variable, fact)."""
    fits: set[int] | None = None
    slips, naming = [], [m for m in mentions if m.slot.form in ("", "a", "species", "a species")]
    for m in naming:
        here = set(m.slot.where.get(m.said, ()))
        if fits is None:
            fits = here
        elif fits & here:
            fits &= here
    if not fits:
        return [Slip(m.position, m.slot.variable, "", m.said, None) for m in naming]
    if len(fits) > 1:  # the text ends or goes wrong before it says which
        return []
    k = fits.pop()
    for m in mentions:
        fact, right = fact_of(m.slot.form), m.slot.column[k] == m.said
        if fact:
            told[m.slot.variable, fact] = told.get((m.slot.variable, fact), True) and right
        if not right:
            slips.append(Slip(m.position, m.slot.variable, m.slot.form, m.said, m.slot.column[k]))
    return slips


def _numbered(values: list[str]) -> list[int]:
    """Equal values get equal numbers."""
    number: dict[str, int] = {}
    return [number.setdefault(value, len(number)) for value in values]


def world(seed: int, facts: int) -> dict[str, list[str]]:
    """The table of subjects: form -> one string per subject. Subject k is the same however many
    there are; the first take the plain names."""
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
    """`count` different (name, gender 0 she 1 he, species), in an order drawn from the seed."""
    found: list[tuple[str, int, str]] = []
    for names in _name_lists():
        more = list(itertools.product(names.items(), language.SPECIES))
        # random.shuffle is no promise across Python versions; sorting by a hash is.
        more.sort(key=lambda who: _hash(f"subject {seed} {who[0][0]} {who[1]}", 16))
        found += [(name, gender, species) for (name, gender), species in more]
        if len(found) >= count:
            return found[:count]
    raise UserError(f"data.fables.facts={count}: there are only {len(found)} subjects")


def _name_lists() -> Iterator[dict[str, int]]:
    """Names with their gender: plain ones, then two and three syllables."""
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
