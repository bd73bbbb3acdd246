"""Documents to ids on disk: the files of one prepared folder (see slm/prepare.py)."""
from __future__ import annotations

import collections
import hashlib
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np

from slm.corpora import EOT, Corpus, Split
from slm.corpora.text import no_documents
from slm.errors import UserError
from slm.screen import several
from slm.tokenizer import Tokenizer

FORMAT = 1  # of the folder; raise it and nothing older is reused
SPLITS: tuple[Split, ...] = ("val", "train")  # val first: what is wrong there shows soon
BLOCK_DOCUMENTS = 200
BLOCK_CHARS = 2**20
THREADS = 2


def write_folder(folder: Path, corpus: Corpus, tokenizer: Tokenizer,
                 say: Callable[[str], None]) -> dict:
    """Write train.bin, val.bin, the tokenizer, for a corpus with a known floor val_surprisal.f64,
    and meta.json last.

    Returns: the meta: format, dtype, vocab_size, n_vocab, eot, corpus, corpus_fingerprint,
        tokenizer, tokenizer_fingerprint, floor_known, entropy_nats_per_document (if known), and
        under train and val: documents, tokens, bytes (UTF-8, of the documents), token_bytes (the
        same by the tokenizer's count), sha256, surprisal_nats (if known).
    Raises: UserError: an empty split, a document that can't be had; OSError: disk.
    """
    meta = {
        "format": FORMAT,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "vocab_size": tokenizer.vocab_size, "n_vocab": tokenizer.n_vocab, "eot": tokenizer.eot,
        "corpus": corpus.name, "corpus_fingerprint": corpus.fingerprint,
        "tokenizer": tokenizer.name, "tokenizer_fingerprint": tokenizer.fingerprint,
        "floor_known": corpus.floor_known,
    }
    tokenizer.save(folder)
    for split in SPLITS:
        meta[split] = _write_split(folder / f"{split}.bin", split, corpus, tokenizer,
                                   np.dtype(meta["dtype"]), say)
    if corpus.floor_known:
        meta["entropy_nats_per_document"] = float(corpus.entropy())
        for split in SPLITS:
            keep = folder / "val_surprisal.f64" if split == "val" else None
            meta[split]["surprisal_nats"] = _sum_surprisals(corpus.surprisals(split), keep)
    with open(folder / "meta.json", "w", encoding="utf-8") as f:
        json.dump(meta, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    return meta


@dataclass
class _Counts:
    """What is counted while a split is written."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    token_bytes: int = 0
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def as_meta(self) -> dict:
        return vars(self) | {"sha256": self.sha256.hexdigest()}


def _write_split(file: Path, split: Split, corpus: Corpus, tokenizer: Tokenizer, dtype: np.dtype,
                 say: Callable[[str], None]) -> dict:
    """Tokenise one split; returns its part of the meta: documents, tokens, bytes (UTF-8 of the
    documents), token_bytes (the same by the tokenizer's own count), sha256."""
    from tqdm import tqdm

    lengths = tokenizer.token_bytes()
    counts = _Counts()
    total = getattr(corpus, "approx_bytes", lambda split: None)(split)
    blocks = _blocks(corpus.documents(split))
    with (open(file, "wb") as out, tqdm(total=total, desc=f"data: {split}", unit="B",
                                        unit_scale=True, disable=None, leave=False) as bar):
        first = next(blocks, None)
        if first is None:
            raise no_documents(corpus, split)
        if split == "val":
            _check_lossless(tokenizer, first, say)
        encode = _Encoder(tokenizer, split)
        for ids, n_documents, n_bytes in _in_order(encode, itertools.chain([first], blocks)):
            if int(ids.max()) >= tokenizer.n_vocab:
                raise RuntimeError(f"{tokenizer.name} gave an id beyond its {tokenizer.n_vocab}")
            raw = ids.astype(dtype).tobytes()
            out.write(raw)
            counts.sha256.update(raw)
            counts.tokens += len(ids)
            counts.documents += n_documents
            counts.bytes += n_bytes
            counts.token_bytes += int(lengths[ids].sum(dtype=np.int64))
            bar.update(n_bytes)
        out.flush()
        os.fsync(out.fileno())
    return counts.as_meta()


def _blocks(documents: Iterable[str]) -> Iterator[list[str]]:
    """About 200 documents at a time: one call for each would cost as much as the work."""
    block, chars = [], 0
    for text in documents:
        block.append(text)
        chars += len(text)
        if len(block) >= BLOCK_DOCUMENTS or chars >= BLOCK_CHARS:
            yield block
            block, chars = [], 0
    if block:
        yield block


@dataclass
class _Encoder:
    tokenizer: Tokenizer
    split: Split

    def __call__(self, block: list[str]) -> tuple[np.ndarray, int, int]:
        """ids (n,), documents and UTF-8 bytes of a block."""
        for text in block:
            if EOT in text:
                raise UserError(f"{self.split}: a document holds a literal {EOT}: {text[:60]!r}")
        return (self.tokenizer.encode_documents(block), len(block),
                sum(len(text) if text.isascii() else len(text.encode()) for text in block))


def _in_order(function: Callable, items: Iterable) -> Iterator:
    """map(function, items) on THREADS threads, with few items under way: bounded memory."""
    with ThreadPoolExecutor(THREADS) as pool:
        under_way = collections.deque()
        try:
            for item in items:
                under_way.append(pool.submit(function, item))
                if len(under_way) > 2 * THREADS:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _check_lossless(tokenizer: Tokenizer, documents: list[str],
                    say: Callable[[str], None]) -> None:
    changed = sum(tokenizer.decode(tokenizer.encode(text)) != text for text in documents)
    if changed:
        say(f"tokenizer: {tokenizer.name} does not give back the text of {changed} of "
            f"{several(len(documents), 'document')}: it models another text, so compare its bits "
            "per byte with care")


def _sum_surprisals(values: Iterable[float], keep: Path | None) -> float:
    """The sum of a stream of nats, kept as float64 in a file if one is named."""
    total = 0.0
    with open(keep or os.devnull, "wb") as out:
        values = iter(values)
        while chunk := list(itertools.islice(values, 10_000)):
            part = np.array(chunk, dtype=np.float64)
            part.tofile(out)
            total += float(part.sum())
    return total
