"""How much of the validation text stands in the training text: 13-grams of tokens, and whole
documents, counted when a corpus is prepared (GPT-3's 13-grams: Brown et al. 2020, arXiv 2005.14165,
appendix C).

N-grams lie within a document. They and documents are compared by 64-bit hashes: that a given one
is taken for shared though it is not has probability (training tokens) / 2^64, below 1e-9 up to
10^10 tokens; none that is shared is missed. Memory is bounded: of more than MOST_NGRAMS in the
validation text, those with the lowest hashes are counted, an unbiased sample.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slm.screen import several

N = 13
MOST_NGRAMS = 2**20
CHUNK_TOKENS = 2**20
Hashes = np.ndarray                            # uint64, arithmetic modulo 2^64
P, Q = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd, as every factor of such a hash must be
MASK = 2**64 - 1


def add(folder: Path, meta: dict) -> None:
    """Measure a prepared folder and put what is found under `overlap` in meta and meta.json."""
    meta["overlap"] = measure(folder, meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def measure(folder: Path, meta: dict) -> dict:
    """Returns ngram_tokens (13), val_ngrams (counted in the validation text, each as often as it
    occurs), val_ngrams_in_train (of these), sample (share of all that were counted: 1 but for a
    large text), val_documents, val_documents_in_train (empty ones not counted).

    folder: with train.bin and val.bin; meta: its meta.json."""
    table = np.random.default_rng(0).integers(0, 2**64, meta["vocab_size"], dtype=np.uint64)
    eot, dtype = meta["eot"], np.dtype(meta["dtype"])
    below = 2**64 if meta["val"]["tokens"] <= MOST_NGRAMS else \
        int(2**64 * (MOST_NGRAMS / meta["val"]["tokens"]))
    grams, documents = [], []
    for ids, found, docs in read(folder / "val.bin", dtype, eot, table):
        grams.append(lowest(found[without(ids, eot)], below))
        documents.append(docs)
    kinds, times = np.unique(np.concatenate(grams), return_counts=True)
    seen = Seen(kinds)
    documents = np.concatenate(documents)
    titles = Seen(np.unique(documents))
    for _, found, docs in read(folder / "train.bin", dtype, eot, table):
        seen.look(lowest(found, below))
        titles.look(docs)
    return {"ngram_tokens": N, "val_ngrams": int(times.sum()),
            "val_ngrams_in_train": int(times[seen.found].sum()),
            "sample": below / 2**64, "val_documents": len(documents),
            "val_documents_in_train": int(np.isin(documents, titles.kinds[titles.found]).sum())}


def lowest(hashes: Hashes, below: int) -> Hashes:
    return hashes if below == 2**64 else hashes[hashes < np.uint64(below)]


def describe(overlap: dict | None) -> str:
    """A line of the screen."""
    if overlap is None:
        return "overlap of validation and training text not measured (prepared by an older version)"
    n, shared = overlap["val_ngrams"], overlap["val_ngrams_in_train"]
    grams = f"{shared / n:.2%} of the validation text's {n:,} {overlap['ngram_tokens']}-grams" \
        if n else f"the validation text has no {overlap['ngram_tokens']}-grams;"
    sample = f" (a sample of {overlap['sample']:.1%})" if overlap["sample"] < 1 else ""
    return (f"{grams}{sample} and {overlap['val_documents_in_train']:,} of its "
            f"{several(overlap['val_documents'], 'document')} are in the training text too")


class Seen:
    """Which of some hashes occur in a stream. kinds: sorted and distinct, (k,); found (k,).

    A table of counts by last bits turns away nearly all that is not looked for, and what has
    been found already: a search costs ten times as much."""

    def __init__(self, kinds: Hashes) -> None:
        self.kinds, self.found = kinds, np.zeros(len(kinds), bool)
        bits = max(16, int(len(kinds) * 8).bit_length())
        self.bits = np.uint64(2**bits - 1)
        self.left = np.bincount(kinds & self.bits, minlength=2**bits).astype(np.uint8)

    def look(self, hashes: Hashes) -> None:
        if not len(self.kinds):
            return
        maybe = hashes[self.left[hashes & self.bits] > 0]
        at = np.minimum(np.searchsorted(self.kinds, maybe), len(self.kinds) - 1)
        at = np.unique(at[self.kinds[at] == maybe])
        new = at[~self.found[at]]
        self.found[new] = True
        np.subtract.at(self.left, self.kinds[new] & self.bits, 1)


def read(file: Path, dtype: np.dtype, eot: int,
         table: Hashes) -> Iterator[tuple[np.ndarray, Hashes, Hashes]]:
    """A file of ids in chunks: the ids (m,) from which an n-gram starts or goes on, the n-grams'
    hashes (m - 12,), those across documents too, and the hashes of the documents that end there.
    table (vocabulary,): a random number for each id."""
    stream = np.memmap(file, dtype=dtype, mode="r")
    up, down = powers(Q, CHUNK_TOKENS + 1), powers(pow(Q, -1, 2**64), CHUNK_TOKENS + 1)
    carry, length = 0, 0                       # of a document that the last chunk began
    for start in range(0, len(stream), CHUNK_TOKENS):
        ids = np.asarray(stream[max(0, start - N + 1):start + CHUNK_TOKENS])
        x = table[ids]
        grams = ngrams(x)
        new = min(start, N - 1)                # what the chunk before had, for its n-grams
        x = x[new:]
        ends = np.flatnonzero(ids[new:] == eot)
        x[ends] = 0
        begins = np.concatenate([[0], ends + 1])
        total = np.concatenate([x * up[:len(x)], np.zeros(1, np.uint64)])
        sums = np.add.reduceat(total, begins) * down[begins]
        carried = carry + pow(Q, length, 2**64) * int(sums[0])
        lengths = np.diff(np.concatenate([begins, [len(x) + 1]])) - 1
        lengths[0] += length
        sums[0] = carried & MASK
        carry, length = int(sums[-1]), int(lengths[-1])
        yield ids, grams, sums[:-1][lengths[:-1] > 0]


def ngrams(x: Hashes) -> Hashes:
    """sum over j of x[i + j] P^(12 - j) for every i, in five steps: 2, 4, 8, 12, 13 terms."""
    if len(x) < N:
        return np.empty(0, np.uint64)
    p1, p2, p4 = (np.uint64(pow(P, k, 2**64)) for k in (1, 2, 4))
    two = x[:-1] * p1 + x[1:]
    four = two[:-2] * p2 + two[2:]
    eight = four[:-4] * p4 + four[4:]
    twelve = eight[:-4] * p4 + four[8:]
    return twelve[:-1] * p1 + x[12:]


def without(ids: np.ndarray, eot: int) -> np.ndarray:
    """Which n-grams of ids (m,) hold no eot: a mask (m - 12,)."""
    keep = np.ones(max(0, len(ids) - N + 1), bool)
    ends = np.flatnonzero(ids == eot)
    for back in range(N):
        at = ends - back
        keep[at[(at >= 0) & (at < len(keep))]] = False
    return keep


def powers(base: int, n: int) -> Hashes:
    """base^0 .. base^(n - 1) modulo 2^64."""
    factors = np.full(n, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
