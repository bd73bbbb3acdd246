"""Where stories tell facts, and what a model pays there.

The cost of a fact is read where a reader who knows the world pays nothing: at the first telling of
a fact in a story, after the subject's name and species were said, at a place where the wording
allows nothing but this fact. What a model pays there is ignorance of the fact and of nothing else;
a reader who knows no fact at all pays the log of the number of values it may have.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, NamedTuple

import numpy as np
import torch

from slm.corpora.fables import Fables, fact_of
from slm.corpora.fables_engine import Grammar, Mention, identify
from slm.loader import padded
from slm.tokenizer import Tokenizer

SUBJECTS = ("hero", "friend")
BATCH_TOKENS = 2 ** 14


class Telling(NamedTuple):
    """A fact told: of the hero or the friend, subject k of the world; text[start:end] says it, with
    its article if it has one."""
    variable: str
    fact: str
    k: int
    start: int
    end: int


def tellings(grammar: Grammar, text: str) -> list[Telling]:
    """The first tellings of facts in a story whose reader can know them for certain: the subject
    was named in full before, and any continuation but this fact would leave the grammar.

    Raises ValueError: no story of this world."""
    mentions = reading(grammar, text)
    found = []
    for variable in SUBJECTS:
        mine = [m for m in mentions if m.slot.variable == variable]
        if not mine:
            continue
        [k] = identify(mine)
        said: set[str] = set()
        for m in mine:
            form = m.slot.form.removeprefix("a ")
            fact = fact_of(m.slot.form)
            if fact and fact not in said and {"", "species"} <= said and only(grammar, text, m):
                found.append(Telling(variable, fact, k, m.position, m.position + len(m.said)))
            said.add(form)
    return sorted(found, key=lambda t: t.start)


def reading(grammar: Grammar, text: str) -> list[Mention]:
    """The mentions of a story, in text order."""
    for trail in grammar.read(text).whole:
        mentions = [step for step in trail if type(step) is Mention]
        by: dict[str, list[Mention]] = {}
        for m in mentions:
            by.setdefault(m.slot.variable, []).append(m)
        if all(map(identify, by.values())):
            return mentions
    raise ValueError(f"no story of this world: {text!r}")


def only(grammar: Grammar, text: str, mention: Mention) -> bool:
    """Whether each reading of what was said before goes on with this slot. (A space belongs to the
    word after it, as in the tokens.)"""
    before = grammar.read(text[:mention.position].rstrip(" "))
    after = grammar.read(text[:mention.position + len(mention.said)])
    alive = {tuple(t[:i]) for t in after.furthest if mention in t for i in range(len(t) + 1)}
    return all(tuple(t) in alive for t in before.furthest)


@dataclass
class Probe:
    """Stories as tokens, and where among these the facts are told.

    rows: ids of each story, eot before and after; told: of each telling the row and the first and
    one past the last of its tokens, counted without the eot before; tellings: as found."""
    rows: list[list[int]]
    told: list[tuple[int, int, int]]
    tellings: list[Telling]


def probe(world: Fables, stories: Iterable[str], tokenizer: Tokenizer, block_size: int) -> Probe:
    """A probe of these stories; what lies beyond a block's end is left out.

    Raises ValueError: no story of this world, or tokens that hold more than the telling."""
    sizes = tokenizer.token_bytes()
    out = Probe([], [], [])
    for text in stories:
        ids = tokenizer.encode(text)
        ends = np.cumsum(sizes[ids])
        for telling in tellings(world.grammar, text):
            begin = telling.start - text[:telling.start].endswith(" ")
            first, last = np.searchsorted(ends, [begin, telling.end - 1], side="right").tolist()
            if ends[first] - sizes[ids[first]] != begin or ends[last] != telling.end:
                raise ValueError(f"the tokens of {text!r} cut across {text[begin:telling.end]!r}")
            if last < block_size:
                out.told.append((len(out.rows), first, last + 1))
                out.tellings.append(telling)
        out.rows.append([tokenizer.eot, *ids, tokenizer.eot][:block_size + 1])
    return out


@torch.no_grad()
def costs(model: torch.nn.Module, probe: Probe) -> np.ndarray:
    """Nats that the model pays for each telling, float64 (tellings,)."""
    model.eval()
    eot, order = probe.rows[0][0], sorted(range(len(probe.rows)), key=lambda i: -len(probe.rows[i]))
    paid: dict[int, np.ndarray] = {}
    while order:
        width = len(probe.rows[order[0]]) - 1
        part, order = order[:max(1, BATCH_TOKENS // width)], order[max(1, BATCH_TOKENS // width):]
        x, y = padded([(np.asarray(probe.rows[i]), 0) for i in part], width, eot)
        paid.update(zip(part, model(x, y, reduction="none").double().numpy()))          # (b, t)
    return np.array([paid[row][a:b].sum() for row, a, b in probe.told])
