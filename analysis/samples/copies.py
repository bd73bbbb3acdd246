"""Is it written or copied? An index of the word n-grams of a training text."""
from __future__ import annotations

import hashlib
import re
from itertools import islice
from typing import Iterable, Iterator

import numpy as np

from slm.errors import UserError

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
CACHED_WORDS = 1_000_000


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


class TrainingIndex:
    """64-bit hashes of the n-grams of words that a training text has.

        index = TrainingIndex(n=8).add(corpus.documents("train"))
        copied, tested = index.copied(story)

    Memory is bounded: above `limit` distinct n-grams only those whose hash lies in the lower half
    of its range are kept, then in the lower quarter, ...; and of a story only such are looked up.
    The share of copied n-grams stays unbiased (a hash does not know what was copied), with fewer
    tested. At most about 40 * limit bytes. n-grams do not cross documents."""

    def __init__(self, n: int = 8, limit: int = 5_000_000) -> None:
        if n < 1 or limit < 1:
            raise UserError(f"TrainingIndex: n={n} and limit={limit} should be at least 1")
        self.n, self.limit, self.documents, self.halvings = n, limit, 0, 0
        self.table = np.zeros(0, np.uint64)                    # sorted, distinct
        self.words: dict[str, int] = {}
        # odd constants, one for each place: the sum over places tells orders apart
        self.places = [number(f"place {i}") | 1 for i in range(n)]

    def add(self, documents: Iterable[str]) -> TrainingIndex:
        """Take in documents, one at a time. Returns itself."""
        waiting: list[np.ndarray] = []
        size = 0
        for document in documents:
            self.documents += 1
            found = self.kept(self.hashes(document))
            waiting.append(found)
            size += len(found)
            if size > max(self.limit // 2, 1000):
                self._merge(waiting)
                waiting, size = [], 0
        self._merge(waiting)
        return self

    def _merge(self, waiting: list[np.ndarray]) -> None:
        self.table = np.unique(np.concatenate([self.table, *waiting]))
        while len(self.table) > self.limit:
            self.halvings += 1
            self.table = self.kept(self.table)

    def kept(self, hashes: np.ndarray) -> np.ndarray:
        return hashes[hashes < np.uint64(2 ** (64 - self.halvings) - 1)]

    def hashes(self, text: str) -> np.ndarray:
        """Of every n-gram of the text, (words - n + 1,) uint64."""
        if len(self.words) > CACHED_WORDS:
            self.words.clear()
        known = self.words
        ids = [known[w] if w in known else known.setdefault(w, number(w)) for w in words_of(text)]
        count = max(len(ids) - self.n + 1, 0)
        row, h = np.array(ids, np.uint64), np.zeros(count, np.uint64)
        for i, place in enumerate(self.places):
            h += row[i:i + count] * np.uint64(place)
        h ^= h >> np.uint64(30)                                # splitmix64: every bit counts
        h *= np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(27)
        h *= np.uint64(0x94D049BB133111EB)
        return h ^ (h >> np.uint64(31))

    def copied(self, text: str) -> tuple[int, int]:
        """(n-grams of the text that the training text has, n-grams looked up)."""
        asked = self.kept(self.hashes(text))
        return int(np.isin(asked, self.table).sum()), len(asked)


def number(text: str) -> int:
    """64 bits that depend on nothing but the text (Python's hash() differs between processes)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def documents_of(spec: dict, split: str = "train", most: int | None = None) -> Iterator[str]:
    """The documents that a run was trained on ('train') or not ('val'), one by one.

    spec: the resolved spec of a run, as nested dicts. most: no more than so many. Raises UserError
    where the corpus can't be opened here."""
    from slm.corpora import open_corpus
    from slm.schema import Data
    try:
        data = Data.model_validate(spec["data"])
    except (KeyError, ValueError) as e:
        raise UserError(f"this spec names no corpus ({str(e).splitlines()[0]})") from None
    return islice(open_corpus(data).documents(split), most)
