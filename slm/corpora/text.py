"""What every corpus of found text shares: how it is split, checked and recognised."""
from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import Callable, Iterable, Iterator

from slm.corpora import EOT, Corpus, Split
from slm.errors import UserError
from slm.screen import several


class TextCorpus:
    """Documents read by `read(part)`, split into train and val.

    With a validation part of its own, train documents that equal a validation document are
    dropped (the real TinyStories has some). Without one, a document is held out by the hash of
    its text, so that the split depends neither on order nor on duplicates; a text that is one
    single document is cut in two, its end held out.
    """

    floor_known = False

    def __init__(self, name: str, source: str, val_fraction: float | None):
        self.name = name
        self.source = source  # where the text is, in the user's words
        self.val_fraction = val_fraction
        self.notes: list[str] = []
        self._held: set[int] | None = None

    @property
    def has_val(self) -> bool:
        """Whether there is a validation part of its own."""
        raise NotImplementedError

    def read(self, part: Split) -> Iterator[str]:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError

    def documents(self, split: Split) -> Iterator[str]:
        """Stream the documents of a split.

        Raises: UserError: text that can't be read, a literal <|endoftext|> in a document.
        """
        if not self.has_val:
            texts = self.read("train")
            start = list(itertools.islice(texts, 2))
            if len(start) == 1:
                yield from self._part_of(start[0], split)
                return
            threshold = int(self.val_fraction * 2**64)
            for text in itertools.chain(start, texts):
                if (hash64(text) < threshold) == (split == "val"):
                    yield text
        elif split == "val":
            yield from self._val()
        else:
            yield from self._train_without_val()

    def _part_of(self, text: str, split: Split) -> Iterator[str]:
        cut = len(text) - max(1, round(self.val_fraction * len(text)))
        self._tell(f"data: {self.source} is one document: its last {self.val_fraction:.1%} of "
                   "characters are held out for validation (data.val_fraction), all before is for "
                   "training")
        if part := text[:cut] if split == "train" else text[cut:]:
            yield part

    def _tell(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _val(self) -> Iterator[str]:
        held = set()
        for text in self.read("val"):
            held.add(hash(text))  # 64 bits, 80 bytes a document; the text is not kept
            yield text
        self._held = held  # whoever reads all of val need not read it again for train

    def _train_without_val(self) -> Iterator[str]:
        held = set(map(hash, self.read("val"))) if self._held is None else self._held
        dropped = 0
        for text in self.read("train"):
            if hash(text) in held:
                dropped += 1
            else:
                yield text
        if dropped:
            self._tell(f"data: {several(dropped, 'training document')} equal"
                       f"{'s' * (dropped == 1)} a validation document: dropped")


def hash64(text: str) -> int:
    """64 bits of the text's BLAKE2b digest."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def no_documents(corpus: Corpus, split: Split) -> UserError:
    """Why a split of a corpus is empty, and what would help."""
    where = getattr(corpus, "source", corpus.name)
    has_val = getattr(corpus, "has_val", False)
    if has_val and next(corpus.read(split), None) is None:
        part = "validation" if split == "val" else "training"
        return UserError(f"data: {where}: no document in its {part} part")
    if has_val:
        return UserError(f"data: {where}: no training documents are left: each of them equals a "
                         "validation document")
    other = "train" if split == "val" else "val"
    first = next(iter(corpus.documents(other)), None)
    if first is None:
        return UserError(f"data: {where} is empty: no document in it")
    if all(text == first for text in corpus.documents(other)):
        return UserError(f"data: {where}: all its documents are the same text, so that no "
                         "validation split can be held out")
    if split == "train":
        return UserError(f"data: no training documents in {where}: all of them are in the "
                         "validation split")
    return UserError(f"data: not enough documents in {where} for a validation split: none was held "
                     "out; add documents (in .txt with <|endoftext|> between them), raise "
                     "data.val_fraction, or add a file named validation")


def check_records(texts: Iterable, where: str, column: str) -> Iterator[str]:
    """Pass on the non-empty documents of a table's text column.

    Args: texts: the column's values; where: the file or dataset, for messages.
    Raises: UserError: a value that is no text, not valid Unicode, or holds a literal
        <|endoftext|>, which the prepared stream could not tell from the end of a document.
    """
    for row, text in enumerate(texts, 1):
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f"{where}, document {row}: column {column!r} holds "
                            f"{type(text).__name__}, not text")
        if EOT in text:
            raise UserError(f"{where}, document {row}: holds a literal {EOT}, which marks the end "
                            "of a document: remove it, or split the document there")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as e:
                raise UserError(f"{where}, document {row}: holds half of a surrogate pair at "
                                f"character {e.start}, which is no text") from None
        if text and not text.isspace():
            yield text


def remembered(cache: str | Path, key: str, compute: Callable[[], str]) -> str:
    """`compute()`, kept under `cache` by the hash of `key`, so that a restart need not read a
    corpus again only to recognise it. A cache that can't be written costs time, nothing else."""
    file = Path(cache) / ".fingerprints" / hashlib.sha256(key.encode()).hexdigest()
    try:
        return file.read_text()
    except OSError:
        pass
    value = compute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_text(value)
        part.replace(file)
    except OSError:
        pass
    return value
