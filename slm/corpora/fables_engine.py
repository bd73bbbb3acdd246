"""A probabilistic grammar with memory: one definition writes, reads, scores, lists and sums.

A rule has weighted alternatives. An alternative is a template of plain text, `<rule>` and slots
`{variable:form}`. The first slot of a variable in a story draws an entry from the variable's table
and every later one repeats it in the form asked for, so a story remembers who and what it is about.
Variables of one table never share an entry (drawing without replacement). The weights of a rule do
not depend on what was drawn, which is why entropy is a finite exact sum.

A slot names a variable and a form: `{thing}` a column of the table, `{thing:a}` with its article,
`{hero:a trait}` another column with its article, `{hero:She}` capitalised. A variable's table is
its name without final digits (`spot`, `spot2`), or as `aliases` says.
"""
from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from functools import cached_property
from typing import Callable, Iterator, NamedTuple, Sequence

from slm.corpora.fables_weights import Table, Weights

Choose = Callable[["Weights", tuple], int]


class Slot:
    """A mention of a variable in one form; `where` finds the entries that read so."""

    def __init__(self, variable: str, table_name: str, table: Table, form: str):
        self.variable, self.table_name, self.form = variable, table_name, form
        self.weights, self.column = table.weights, table.column(form)
        self.open_name = table.open_name if form == "" else None
        self.where: dict[str, list[int]] = {}
        for i, said in enumerate(self.column):
            self.where.setdefault(said, []).append(i)
        self.lengths = sorted(set(map(len, self.where)))
        self.sorted = sorted(self.where)


class Rule:
    """Weighted alternatives, each a sequence of str | Slot | Rule."""

    def __init__(self, name: str):
        self.name, self.weights, self.alternatives = name, Weights([1.0]), ()


class Mention(NamedTuple):
    """A slot as it was read: where, and what the text says there."""
    slot: Slot
    position: int
    said: str


class Derivation(NamedTuple):
    """A story, its surprisal -log p (nats), and the choices that made it, in order."""
    text: str
    nats: float
    choices: tuple[int, ...]


class Reading(NamedTuple):
    """What the wording allows, memory aside. A trail is a list of alternative numbers and
    Mentions. whole: one per reading of the whole text; position: characters that were read until
    the text ended or left the grammar; furthest: the trails that got there."""
    whole: list[list]
    position: int
    furthest: list[list]


class Grammar:
    """Rules and tables made ready. `text` holds lines `name:` and below, indented, one alternative
    a line, optionally `weight | template`; the first rule is the start."""

    def __init__(self, text: str, tables: dict[str, Table], aliases: dict[str, str] | None = None):
        self.tables, self.aliases = tables, aliases or {}
        self.rules: dict[str, Rule] = {}
        self._slots: dict[tuple[str, str], Slot] = {}
        lines: dict[str, list[str]] = {}
        for line in filter(str.strip, text.splitlines()):
            if line[0] != " ":
                name = line.strip().rstrip(":")
                lines[name] = []
            else:
                lines[name].append(line.strip().replace("\\n", "\n"))
        self.rules = {name: Rule(name) for name in lines}
        for name, rule in self.rules.items():
            split = [re.fullmatch(r"(?:([\d.]+) \| )?(.*)", s, re.S).groups() for s in lines[name]]
            rule.weights = Weights([float(w or 1) for w, _ in split])
            rule.alternatives = tuple(self._compile(template) for _, template in split)
        self.start = next(iter(self.rules.values()))

    @cached_property
    def words(self) -> set[str]:
        """Every word that a story may have."""
        parts = (p for r in self.rules.values() for a in r.alternatives for p in a)
        texts = itertools.chain((p for p in parts if type(p) is str),
                                (said for slot in self._slots.values() for said in slot.where))
        return {word for text in texts for word in re.findall("[A-Za-z]+", text)}

    def _compile(self, template: str) -> tuple:
        parts = []
        for piece in filter(None, re.split(r"(<\w+>|\{[^}]+\})", template)):
            if piece[0] == "<":
                parts.append(self.rules[piece[1:-1]])
            elif piece[0] == "{":
                variable, _, form = piece[1:-1].partition(":")
                parts.append(self._slot(variable, form))
            else:
                parts.append(piece)
        return tuple(parts)

    def _slot(self, variable: str, form: str) -> Slot:
        if (variable, form) not in self._slots:
            name = self.aliases.get(variable, variable.rstrip("0123456789"))
            self._slots[variable, form] = Slot(variable, name, self.tables[name], form)
        return self._slots[variable, form]

    def derive(self, choose: Choose) -> Derivation:
        """Write a story; `choose(weights, taken)` makes every choice."""
        said, choices, nats = [], [], []
        values: dict[str, int] = {}
        taken: dict[str, tuple] = {}

        def draw(slot: Slot) -> int:
            gone = taken.get(slot.table_name, ())
            k = choose(slot.weights, gone)
            choices.append(k)
            nats.append(slot.weights.surprisal(k, gone))
            taken[slot.table_name] = (*gone, slot.weights.group[k])
            values[slot.variable] = k
            return k

        def expand(rule: Rule) -> None:
            i = 0
            if len(rule.alternatives) > 1:
                i = choose(rule.weights, ())
                choices.append(i)
                nats.append(rule.weights.nats[i])
            for part in rule.alternatives[i]:
                kind = type(part)
                if kind is str:
                    said.append(part)
                elif kind is Slot:
                    k = values.get(part.variable)
                    said.append(part.column[draw(part) if k is None else k])
                else:
                    expand(part)

        expand(self.start)
        return Derivation("".join(said), math.fsum(nats), tuple(choices))

    def derivations(self) -> Iterator[Derivation]:
        """Every derivation, once (small grammars only)."""
        script: list[int] = []
        while True:
            options: list[list[int]] = []

            def choose(weights: Weights, gone: tuple) -> int:
                step = len(options)
                options.append([i for i, g in enumerate(weights.group) if g not in gone])
                if step == len(script):
                    script.append(0)
                return options[step][script[step]]

            yield self.derive(choose)
            while script and script[-1] == len(options[len(script) - 1]) - 1:
                script.pop()
            if not script:
                return
            script[-1] += 1

    def sums(self) -> tuple[float, float]:
        """Exact entropy of a derivation (nats), and the probability that two are the same.

        The entropy semiring over the grammar: (p, -p log p, p^2), alternatives add, sequences
        multiply, kept apart by the set of variables drawn so far; the draws then add their own.
        """
        memo: dict[tuple[str, frozenset], dict] = {}

        def visit(rule: Rule, drawn: frozenset) -> dict:
            if (rule.name, drawn) in memo:
                return memo[rule.name, drawn]
            total: dict[frozenset, tuple] = {}
            for p, nats, parts in zip(rule.weights.p, rule.weights.nats, rule.alternatives):
                for end, (q, h, s) in run(parts, {drawn: (p, p * nats, p * p)}).items():
                    a, b, c = total.get(end, (0.0, 0.0, 0.0))
                    total[end] = (a + q, b + h, c + s)
            memo[rule.name, drawn] = total
            return total

        def run(parts: tuple, states: dict) -> dict:
            for part in parts:
                if type(part) is str:
                    continue
                after: dict[frozenset, tuple] = {}
                for drawn, (p, h, s) in states.items():
                    step = ({drawn | {(part.variable, part.table_name)}: (1.0, 0.0, 1.0)}
                            if type(part) is Slot else visit(part, drawn))
                    for end, (q, g, t) in step.items():
                        a, b, c = after.get(end, (0.0, 0.0, 0.0))
                        after[end] = (a + p * q, b + p * g + q * h, c + s * t)
                states = after
            return states

        joint: dict[tuple[str, int], tuple[float, float]] = {}
        entropy = same = 0.0
        for drawn, (p, h, s) in visit(self.start, frozenset()).items():
            names = [table for _, table in drawn]
            for key in sorted({(name, names.count(name)) for name in names}):
                if key not in joint:
                    joint[key] = self.tables[key[0]].weights.joint(key[1])
                h += p * joint[key][0]
                s *= joint[key][1]
            entropy, same = entropy + h, same + s
        return entropy, same

    def mentions(self, wanted: Callable[[Slot], bool]) -> float:
        """Exact probability that a story has at least one of the wanted slots."""
        memo: dict[str, float] = {}

        def silent(part: str | Slot | Rule) -> float:
            if type(part) is not Rule:
                return float(not (type(part) is Slot and wanted(part)))
            if part.name not in memo:
                memo[part.name] = sum(p * math.prod(map(silent, parts))
                                      for p, parts in zip(part.weights.p, part.alternatives))
            return memo[part.name]

        return 1.0 - silent(self.start)

    def read(self, text: str, open_names: bool = False) -> Reading:
        """All readings of the wording: a slot may say any entry, a later mention another one.
        open_names: also names that no table has (where the word is not one of the grammar's)."""
        whole: list[list] = []
        ends: dict[int, dict[int, tuple | None]] = {0: {}}  # only of the furthest position
        stack: list[tuple] = [(0, (self.start, None), None)]

        def stop(at: int, trail: tuple | None) -> None:
            if at >= next(iter(ends)):
                if at not in ends:
                    ends.clear()
                ends.setdefault(at, {})[id(trail)] = trail

        while stack:
            at, todo, trail = stack.pop()
            while todo:
                part, todo = todo
                if type(part) is Rule:
                    for i in reversed(range(len(part.alternatives))):
                        then = todo
                        for p in reversed(part.alternatives[i]):
                            then = (p, then)
                        chosen = (i, trail) if len(part.alternatives) > 1 else trail
                        stack.append((at, then, chosen))
                    break
                said, length = self._said(part, text, at, open_names)
                if said is None:
                    stop(at + length, trail)
                    break
                if type(part) is Slot:
                    trail = (Mention(part, at, said), trail)
                at += length
            else:
                stop(at, trail)
                if at == len(text):
                    whole.append(_unroll(trail))
        [(position, trails)] = ends.items()
        return Reading(whole, position, [_unroll(trail) for trail in trails.values()])

    def _said(self, part: str | Slot, text: str, at: int,
              open_names: bool) -> tuple[str | None, int]:
        """(what the text says for this part or None, characters that agree)."""
        if type(part) is str:
            if text.startswith(part, at):
                return part, len(part)
            return None, _agree(part, text, at)
        for length in part.lengths:
            said = text[at:at + length]
            if said in part.where and not text[at + length:at + length + 1].isalpha():
                return said, length
        if open_names and part.open_name:
            found = part.open_name.match(text, at)
            if found and found.end() == len(text):  # may yet become a name
                return None, len(found.group())
            if found and found.group() not in self.words:
                return found.group(), len(found.group())
        near = bisect_right(part.sorted, text[at:at + part.lengths[-1]])
        return None, max(_agree(s, text, at) for s in part.sorted[max(near - 1, 0):near + 1])

    def parses(self, text: str) -> list[Derivation]:
        """Every derivation whose text is `text`: one for a story, none for anything else."""
        found = []
        for trail in self.read(text).whole:
            mentions: dict[str, list[Mention]] = {}
            for m in trail:
                if type(m) is Mention:
                    mentions.setdefault(m.slot.variable, []).append(m)
            fits = [identify(ms) for ms in mentions.values()]
            for entries in itertools.product(*fits):
                value = dict(zip(mentions, entries))
                groups = {(ms[0].slot.table_name, ms[0].slot.weights.group[value[v]])
                          for v, ms in mentions.items()}
                if len(groups) == len(value):
                    found.append(self.replay(_choices(trail, value)))
        return found

    def replay(self, choices: Sequence[int]) -> Derivation:
        """The derivation that these choices make."""
        script = iter(choices)
        return self.derive(lambda weights, taken: next(script))


def identify(mentions: list[Mention]) -> list[int]:
    """Entries of the table that fit every mention of a variable."""
    first = min(mentions, key=lambda m: len(m.slot.where.get(m.said, ())))
    return [i for i in first.slot.where.get(first.said, ())
            if all(m.slot.column[i] == m.said for m in mentions)]


def _choices(trail: list, value: dict[str, int]) -> list[int]:
    """Alternatives and draws in the order in which derive() asks for them."""
    seen: set[str] = set()
    choices = []
    for step in trail:
        if type(step) is not Mention:
            choices.append(step)
        elif step.slot.variable not in seen:
            seen.add(step.slot.variable)
            choices.append(value[step.slot.variable])
    return choices


def _unroll(trail: tuple | None) -> list:
    steps = []
    while trail:
        step, trail = trail
        steps.append(step)
    return steps[::-1]


def _agree(wanted: str, text: str, at: int) -> int:
    n = 0
    while n < len(wanted) and at + n < len(text) and wanted[n] == text[at + n]:
        n += 1
    return n
