"""TinyStories (Eldan & Li 2023, arXiv 2305.07759): from the Hub, or from a local copy of it."""
from __future__ import annotations

from pathlib import Path

from slm.corpora.files import FilesCorpus
from slm.corpora.hub import HubCorpus
from slm.corpora.text import TextCorpus
from slm.errors import UserError

REPOSITORY = "roneneldan/TinyStories"
LAYOUTS = (  # the Hub's own first; version 1 (what load_dataset gives) before version 2
    ("data/train-*.parquet", "data/validation-*.parquet"),
    ("train-*.parquet", "validation-*.parquet"),
    ("TinyStories-train.txt", "TinyStories-valid.txt"),
    ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
    ("train.parquet", "validation.parquet"),
    ("train.txt", "validation.txt"),
)


def open_tinystories(path: str | None, cache: str | Path) -> TextCorpus:
    """TinyStories from `path`, or from the Hub where it is None.

    Args: path: a folder with the Hub's layout, or train and validation as .parquet or .txt.
    Raises: UserError: no such folder, no known layout in it; (later) no network and no copy.
    """
    if path is None:
        return HubCorpus("tinystories", REPOSITORY, "text", None, cache, advice=(
            "set data.path to a local copy of it, or use --data.corpus=fables"))
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path: no such folder: {path} (tinystories wants a copy of the Hub's "
                        "folder; for a single file use data.corpus=files)")
    found = [(train, val) for train, val in LAYOUTS if any(root.glob(train)) and
             any(root.glob(val))]
    if not found:
        raise UserError(f"data.path: no TinyStories in {path}: wanted one of "
                        + ", ".join(f"{t} with {v}" for t, v in LAYOUTS))
    train, val = found[0]
    corpus = FilesCorpus("tinystories", path, sorted(root.glob(train)), sorted(root.glob(val)),
                         "text", None, cache)
    if len(found) > 1:
        others = ", ".join(t for t, _ in found[1:])
        corpus.notes.append(f"data: tinystories from {train}, the first choice (also there: "
                            f"{others})")
    return corpus
