"""Where text comes from: one face, `Corpus`, over every source."""
from __future__ import annotations

from typing import Iterator, Literal, Protocol

from slm.errors import UserError
from slm.schema import Data

Split = Literal["train", "val"]
EOT = "<|endoftext|>"  # stands between documents, so never inside one


class Corpus(Protocol):
    """Documents in two splits that share none.

    Optional, looked up by name: `notes` (list[str], choices made for the user, told once),
    `approx_bytes(split) -> int | None` (for the progress bar), and where floor_known
    `surprisals(split) -> Iterator[float]` (exact -log p of each document, nats, in the order of
    `documents`) and `entropy() -> float` (expected nats per document).
    """

    name: str
    floor_known: bool

    @property
    def fingerprint(self) -> str:
        """Hex digest, equal only if the text is equal."""

    def documents(self, split: Split) -> Iterator[str]:
        """A fresh stream of documents; the corpus is never in memory as a whole."""


def open_corpus(data: Data) -> Corpus:
    """The corpus that a spec names; opens no more than it must.

    Args: data: the `data` section of a resolved spec.
    Raises: UserError: unknown corpus, data.path missing or without a usable file.
    """
    if data.corpus == "fables":
        from slm.corpora.fables import Fables
        f = data.fables
        return Fables(seed=f.seed, stories=f.stories, val_stories=f.val_stories, facts=f.facts,
                      zipf=f.zipf)
    if data.corpus == "tinystories":
        from slm.corpora.tinystories import open_tinystories
        return open_tinystories(data.path, data.cache)
    if data.corpus == "files":
        from slm.corpora.files import open_files
        return open_files(data)
    if data.corpus == "hub":
        from slm.corpora.hub import open_hub
        return open_hub(data)
    raise UserError(f"data.corpus: unknown corpus {data.corpus!r}; "
                    "known: fables, tinystories, files, hub")
