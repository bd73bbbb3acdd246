"""Choosing runs by a condition that a user types, without evaluating any code.

    select(runs, "n_layer >= 2 and lr < 0.01")
    select(runs, "(corpus = fables or corpus = 'tinystories') and status = finished")

condition  := all ("or" all)*            all  := one ("and" one)*
one        := "(" condition ")" | column op value
op         := = == != < <= > >=          value := number | word | 'text' | "text"
"""
from __future__ import annotations

import operator
import re

import numpy as np
import pandas as pd

from analysis.table import meant
from slm.errors import UserError

TOKEN = re.compile(r"""\s*(?:
    (?P<op><=|>=|==|!=|<|>|=) | (?P<paren>[()]) |
    (?P<text>'[^']*'|"[^"]*") | (?P<word>[^\s()<>=!'"]+))""", re.X)
ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
COMPARE = {"=": operator.eq, "==": operator.eq, "!=": operator.ne, **ORDER}
DEEPEST = 50


def select(runs: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The runs that fulfil the condition; a comparison with a missing value is not fulfilled.

    `.attrs["filter"]` keeps the condition, and `.attrs["notes"]` gets a line that says how many
    were chosen. None or "": the table itself. Raises UserError for anything but comparisons of
    columns joined by and, or and parentheses, and where no run is left."""
    if not where or not where.strip():
        return runs
    kept = runs[Condition(runs, where).read()].reset_index(drop=True)
    if kept.empty:
        raise UserError(f"--where {where!r}: none of {len(runs)} runs")
    before = runs.attrs.get("filter")
    kept.attrs = {**runs.attrs, "filter": f"({before}) and ({where})" if before else where,
                  "notes": [*runs.attrs.get("notes", []),
                            f"{len(kept)} of {len(runs)} runs chosen: {where}"]}
    return kept


class Condition:
    """Reads a condition from left to right (recursive descent) as a mask over the rows."""

    def __init__(self, runs: pd.DataFrame, where: str) -> None:
        self.runs, self.where, self.at, self.depth = runs, where, 0, 0
        self.tokens: list[tuple[str, str]] = []
        end = 0
        while end < len(where.rstrip()):
            found = TOKEN.match(where, end)
            if found is None:
                raise self.error(f"can't read {where[end:end + 20].strip()!r}")
            self.tokens.append((found.lastgroup, found[found.lastgroup]))
            end = found.end()

    def error(self, what: str) -> UserError:
        return UserError(f"--where {self.where!r}: {what}; it should be comparisons of columns, "
                         "like \"n_layer >= 2 and lr < 0.01\"")

    def read(self) -> np.ndarray:
        """The whole condition: a mask (n,)."""
        mask = self.either()
        if self.at < len(self.tokens):
            raise self.error(f"did not expect {self.tokens[self.at][1]!r}")
        return mask

    def next(self, wanted: str) -> tuple[str, str]:
        if self.at == len(self.tokens):
            raise self.error(f"ends where {wanted} should come")
        self.at += 1
        return self.tokens[self.at - 1]

    def word(self, word: str) -> bool:
        """Whether the next token is this word (and, or), which is then passed."""
        here = self.at < len(self.tokens) and self.tokens[self.at][0] == "word" \
            and self.tokens[self.at][1].lower() == word
        self.at += here
        return here

    def either(self) -> np.ndarray:
        mask = self.both()
        while self.word("or"):
            mask = mask | self.both()
        return mask

    def both(self) -> np.ndarray:
        mask = self.one()
        while self.word("and"):
            mask = mask & self.one()
        return mask

    def one(self) -> np.ndarray:
        kind, text = self.next("a comparison")
        if (kind, text) == ("paren", "("):
            self.depth += 1
            if self.depth > DEEPEST:
                raise self.error("too many parentheses")
            mask = self.either()
            if self.next("a closing parenthesis")[1] != ")":
                raise self.error("a closing parenthesis is missing")
            self.depth -= 1
            return mask
        if kind != "word":
            raise self.error(f"a column should stand where {text!r} is")
        column = self.column(text)
        kind, op = self.next(f"a comparison of {column}")
        if kind != "op":
            raise self.error(f"after {column} should come one of = != < <= > >=, not {op!r}")
        kind, value = self.next(f"a value for {column}")
        if kind not in ("word", "text"):
            raise self.error(f"a value should stand where {value!r} is")
        return self.compare(column, op, value[1:-1] if kind == "text" else value)

    def column(self, name: str) -> str:
        columns = [str(c) for c in self.runs.columns]
        if name in columns:
            return name
        raise UserError(f"--where {self.where!r}: no column {name}"
                        + meant([name], columns, f"; there are {', '.join(columns)}"))

    def compare(self, column: str, op: str, value: str) -> np.ndarray:
        cells = self.runs[column]
        numbers = pd.to_numeric(cells, errors="coerce").astype(float)
        if cells.notna().any() and numbers[cells.notna()].notna().all() \
                and not cells.dropna().map(lambda v: isinstance(v, (bool, np.bool_))).all():
            try:
                right, left = float(value.replace("_", "")), numbers.to_numpy()
            except ValueError:
                raise self.error(f"{column} holds numbers, {value!r} is none") from None
        else:
            if op in ORDER:
                raise self.error(f"{column} holds words, which have no order: use = or !=")
            right, left = value.lower(), cells.astype(str).str.lower().to_numpy(object)
        known = cells.notna().to_numpy()
        mask = COMPARE[op](left, right)
        return np.asarray(mask, bool) & known
