"""Finite distributions and the tables of words that the fables draw from."""
from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from typing import Sequence


class Weights:
    """A finite distribution, drawn from whole or without replacement.

    groups: a number per entry; once an entry is drawn, no entry of its group is drawn again
    (left out: each entry is a group of its own). `taken` below is a tuple of group numbers.
    Sums run from the last entry up: with weights in falling order, what is left beside a very
    likely first entry keeps its digits.
    """

    def __init__(self, weights: Sequence[float], groups: Sequence[int] | None = None):
        total = math.fsum(weights)
        self.p = [w / total for w in weights]
        self.nats = [-math.log(p) for p in self.p]
        self.group = list(range(len(self.p)) if groups is None else groups)
        self.members: dict[int, list[int]] = {}
        for i, g in enumerate(self.group):
            self.members.setdefault(g, []).append(i)
        self._mass = self._tail(self.p)
        self._plogp = self._tail([p * h for p, h in zip(self.p, self.nats)])
        self._square = self._tail([p * p for p in self.p])
        self._rising = self._mass[::-1]
        self._left_after: dict[tuple, tuple] = {}

    @staticmethod
    def _tail(values: list[float]) -> list[float]:
        """[sum of values[i:] for every i, and 0]."""
        return list(itertools.accumulate(reversed(values), initial=0.0))[::-1]

    def _left(self, taken: tuple) -> tuple[list[tuple[int, int]], float]:
        """The runs [a, b) of entries that are left, last first, and their mass."""
        if taken not in self._left_after:
            gone = sorted(i for g in taken for i in self.members[g])
            runs = zip([0, *(i + 1 for i in gone)], [*gone, len(self.p)])
            runs = [(a, b) for a, b in runs if a < b][::-1]
            self._left_after[taken] = runs, sum(self._mass[a] - self._mass[b] for a, b in runs)
        return self._left_after[taken]

    def pick(self, u: float, taken: tuple = ()) -> int:
        """Entry for a uniform number u in [0, 1)."""
        if not taken:
            return len(self.p) - min(bisect_right(self._rising, u * self._mass[0]), len(self.p))
        runs, left = self._left(taken)
        x = u * left
        for a, b in runs:
            size = self._mass[a] - self._mass[b]
            if x < size:
                break
            x -= size
        i = len(self.p) - bisect_right(self._rising, x + self._mass[b])
        return min(max(i, a), b - 1)  # rounding must not leave the run

    def surprisal(self, i: int, taken: tuple = ()) -> float:
        """-log p of entry i, in nats."""
        return self.nats[i] + math.log(self._left(taken)[1]) if taken else self.nats[i]

    def second(self) -> list[float]:
        """Probability of each entry to be the second one drawn."""
        mass = {g: sum(self.p[i] for i in self.members[g]) for g in self.members}
        odds = {g: mass[g] / self._left((g,))[1] for g in mass if mass[g] < 1}
        total = sum(odds.values())
        return [p * (total - odds.get(g, 0.0)) for p, g in zip(self.p, self.group)]

    def joint(self, draws: int, taken: tuple = ()) -> tuple[float, float]:
        """Entropy (nats) of `draws` entries drawn without replacement, and the probability that
        two such sequences are the same. O(entries * groups ** (draws - 1)); equal weights:
        O(draws)."""
        if draws == 0:
            return 0.0, 1.0
        if len(self.members) == len(self.p) and max(self.p) == min(self.p):
            ways = [len(self.p) - len(taken) - j for j in range(draws)]
            return sum(map(math.log, ways)), 1.0 / math.prod(ways)
        runs, left = self._left(taken)
        if draws == 1:
            plogp, square = (sum(t[a] - t[b] for a, b in runs) for t in (self._plogp, self._square))
            return plogp / left + math.log(left), square / left ** 2
        entropy = same = 0.0
        for g in self.members.keys() - set(taken):
            later, again = self.joint(draws - 1, (*taken, g))
            for q in (self.p[i] / left for i in self.members[g]):
                entropy += q * (later - math.log(q))
                same += q * q * again
        return entropy, same


class Table:
    """Words or beings by frequency. `columns` maps a form to one string per entry; the form ''
    names the entry. `open_name`: a pattern for names the table does not know (reading only)."""

    def __init__(self, columns: dict[str, list[str]], weights: Sequence[float],
                 groups: Sequence[int] | None = None, open_name: str | None = None):
        self.columns, self.weights = columns, Weights(weights, groups)
        self.open_name = re.compile(open_name) if open_name else None

    def column(self, form: str) -> list[str]:
        """What each entry reads in a form: 'food', 'a colour', 'She', 'A', ..."""
        if form in self.columns:
            return self.columns[form]
        if form[:1].isupper():
            return [s[0].upper() + s[1:] for s in self.column(form[0].lower() + form[1:])]
        if form == "a" or form.startswith("a "):
            return [("an " if s[0] in "aeiou" else "a ") + s for s in self.column(form[2:])]
        raise KeyError(form)


def word_table(entries: str, exponent: float = 0.0) -> Table:
    """A table of comma-separated entries; entry i has weight (i + 1) ** -exponent."""
    column = [entry.strip() for entry in entries.split(",")]
    return Table({"": column}, [(i + 1) ** -exponent for i in range(len(column))])
