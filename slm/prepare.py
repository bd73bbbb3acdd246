"""Corpus + tokenizer -> a folder of train.bin, val.bin, tokenizer.json and meta.json.

A .bin is nothing but ids, document by document, each followed by eot; meta.json says of what type
they are, how many, and of what text. Found again by the hash of corpus and tokenizer.

    python -m slm.prepare experiments/base.yaml [--data.key=value ...]     prepare ahead of a run
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Callable, Iterator

import numpy as np

from slm import overlap, screen
from slm.corpora import Corpus, Split, open_corpus
from slm.errors import UserError
from slm.schema import Data
from slm.screen import several
from slm.tokenise import FORMAT, SPLITS, write_folder
from slm.tokenizer import Tokenizer, get_tokenizer, identity, load_tokenizer

VERIFY_BYTES = 2**28  # files up to here are read through when opened: a fraction of a second


@dataclass(frozen=True)
class Prepared:
    """A prepared folder. meta: see tokenise.write_folder, and overlap.measure for `overlap` (not
    there in a folder of an older version)."""

    folder: Path
    meta: dict

    @cached_property
    def train(self) -> np.ndarray:
        """Training ids, memory-mapped: uint16 or uint32 (n_tokens,)."""
        return self._ids("train")

    @cached_property
    def val(self) -> np.ndarray:
        """Validation ids, memory-mapped: uint16 or uint32 (n_tokens,)."""
        return self._ids("val")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder)

    @cached_property
    def val_surprisal(self) -> np.ndarray | None:
        """Exact -log p of each validation document in nats, float64 (n_documents,), if known."""
        if not self.meta["floor_known"]:
            return None
        return np.fromfile(self.folder / "val_surprisal.f64")

    def _ids(self, split: Split) -> np.ndarray:
        return np.memmap(self.folder / f"{split}.bin", dtype=self.meta["dtype"], mode="r")


def prepare(data: Data, say: Callable[[str], None] = screen.say) -> Prepared:
    """The tokens of a spec's corpus: found under data.cache, or made there.

    Atomic; of several processes at once one makes it and the others wait. Memory stays bounded
    however large the corpus.

    Args: data: the `data` section; say: told what is done and decided.
    Raises: UserError: bad input of any kind, a folder that can't be written, a full disk, a
        prepared folder that does not match its meta.json.
    """
    corpus = open_corpus(data)
    folder = Path(data.cache) / _folder_name(corpus.name, corpus.fingerprint, data.tokenizer)
    try:
        if not (folder / "meta.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _lock(folder, say):
                if not (folder / "meta.json").exists():
                    _make(folder, corpus, data, say)
                    return open_prepared(folder)
        prepared = open_prepared(folder)
        say(f"data: {prepared.meta['train']['tokens']:,} training tokens, prepared before "
            f"({folder})")
        if "overlap" not in prepared.meta:
            say(f"data: {overlap.describe(None)}")
        return prepared
    except OSError as e:
        raise UserError(f"data.cache: {e.filename or folder}: {e.strerror or e}; choose another "
                        "folder with --data.cache, or make room") from None


def find_prepared(data: Data) -> dict | None:
    """meta.json of what prepare would give, if it is there; loads no text and no tokenizer."""
    corpus = open_corpus(data)  # first: a plan should tell that there is no such file
    if not any(Path(data.cache).glob("*/meta.json")):
        return None
    # A Hub dataset is recognised by what is remembered of it, not by fetching it.
    known = hasattr(corpus, "known_fingerprint")
    fingerprint = corpus.known_fingerprint if known else corpus.fingerprint
    if fingerprint is None:
        return None
    name = _folder_name(corpus.name, fingerprint, data.tokenizer)
    try:
        return json.loads((Path(data.cache) / name / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def open_prepared(folder: str | Path) -> Prepared:
    """Open a prepared folder and check that it is what its meta.json says.

    Files up to 256 MB are read through (sha256, largest id); of larger ones the size is checked.
    Raises: UserError: what does not match, and what to do.
    """
    folder = Path(folder)
    remedy = f"delete the folder {folder} and run again"
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise UserError(f"{folder}/meta.json: format {meta['format']}, not {FORMAT}: {remedy}")
        for split in SPLITS:
            problem = _problem(folder / f"{split}.bin", meta, meta[split])
            if problem:
                raise UserError(f"{folder}/{split}.bin: {problem}: {remedy}")
    except OSError as e:
        raise UserError(f"{e.filename}: {e.strerror}: {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/meta.json: damaged, or not of this project: {remedy}") from None
    return Prepared(folder, meta)


def _problem(file: Path, meta: dict, split: dict) -> str | None:
    dtype = np.dtype(meta["dtype"])
    size, wanted = file.stat().st_size, split["tokens"] * dtype.itemsize
    if dtype not in (np.uint16, np.uint32) or np.iinfo(dtype).max < meta["n_vocab"] - 1:
        return f"{meta['dtype']} can't hold {meta['n_vocab']:,} ids"
    if size != wanted:
        kind = "truncated" if size < wanted else "another file"
        return f"{size:,} bytes, but meta.json says {wanted:,} ({kind})"
    if size > VERIFY_BYTES:
        return None
    with open(file, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != split["sha256"]:
            return "not the file that meta.json describes (sha256 differs)"
    return None


def _folder_name(corpus: str, fingerprint: str, tokenizer: str) -> str:
    key = hashlib.sha256(f"{FORMAT}|{fingerprint}|{identity(tokenizer)}".encode()).hexdigest()
    kind, _, argument = tokenizer.partition(":")
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", f"{kind}-{Path(argument).name}" if argument else kind)
    return f"{corpus}-{slug}-{key[:12]}"


@contextlib.contextmanager
def _lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Only one process at a time makes a folder; a killed one leaves no lock behind."""
    import filelock

    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"data: another process prepares {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, corpus: Corpus, data: Data, say: Callable[[str], None]) -> None:
    """Write everything into a folder beside and rename it: seen whole or not at all."""
    start = time.monotonic()
    say(f"data: preparing {corpus.name} in {data.tokenizer} (once, kept in {data.cache})")
    notes = getattr(corpus, "notes", [])
    told = [say(note) for note in notes]
    for left in folder.parent.glob(f".{folder.name}.part-*"):  # of a killed process: we hold
        shutil.rmtree(left, ignore_errors=True)                # the lock, so nobody writes there
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        tokenizer = get_tokenizer(data.tokenizer, corpus, data.cache, say)
        meta = write_folder(part, corpus, tokenizer, say)
        overlap.add(part, meta)
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for note in notes[len(told):]:  # what was only found on the way
        say(note)
    say(f"data: {overlap.describe(meta['overlap'])}")
    train, val = meta["train"], meta["val"]
    say(f"data: {corpus.name} in {tokenizer.name}: {several(train['documents'], 'document')}, "
        f"{train['tokens']:,} tokens ({train['bytes'] / train['tokens']:.2f} bytes each); held out "
        f"{several(val['documents'], 'document')}, {val['tokens']:,} tokens; "
        f"{time.monotonic() - start:.1f} s ({folder})")


def main(args: list[str]) -> int:
    from slm.spec import load_spec, parse_arguments

    if {"--help", "-h"} & set(args):
        print(__doc__ + "\n`python run.py --help` lists every key.")
        return 0
    try:
        files, overrides = parse_arguments(args)
        if not files:
            raise UserError("give a spec, as in: python -m slm.prepare experiments/base.yaml")
        prepare(load_spec(files, overrides).data)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    screen.command(main)
