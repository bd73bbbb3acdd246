"""Local text: .txt (documents split by <|endoftext|>), .jsonl and .parquet."""
from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Iterator

from slm.corpora import EOT, Split
from slm.corpora.text import TextCorpus, check_records, remembered
from slm.errors import UserError
from slm.schema import Data

KINDS = (".parquet", ".jsonl", ".txt")  # in order of preference
VAL_NAMES = ("validation", "valid", "val", "dev", "test")  # in order of preference
MAX_DOCUMENT_BYTES = 64 * 2**20
BLOCK_BYTES = 2**20


class FilesCorpus(TextCorpus):
    """Local files; `val` may be empty, then a share of the documents is held out."""

    def __init__(self, name: str, source: str, train: list[Path], val: list[Path], column: str,
                 val_fraction: float | None, cache: str | Path):
        super().__init__(name, source, val_fraction)
        self.files = {"train": train, "val": val}
        self.column = column
        self.cache = cache

    @property
    def has_val(self) -> bool:
        return bool(self.files["val"])

    def read(self, part: Split) -> Iterator[str]:
        for file in self.files[part]:
            yield from read_file(file, self.column)

    @property
    def fingerprint(self) -> str:
        """sha256 over the contents of the files and what else decides the documents."""
        parts = [self.val_fraction if not self.has_val else None]
        for part, files in self.files.items():
            for file in files:
                column = None if file.suffix == ".txt" else self.column
                parts.append((part, file.suffix, column, self._file_sha256(file)))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _file_sha256(self, file: Path) -> str:
        def compute() -> str:
            with open(file, "rb") as f:
                return hashlib.file_digest(f, "sha256").hexdigest()

        try:
            stat = file.stat()
            key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
            return remembered(self.cache, key, compute)
        except OSError as e:
            raise UserError(f"{file}: can't be read ({e.strerror})") from None

    def approx_bytes(self, split: Split) -> int | None:
        """Bytes of text in a split, roughly (for a progress bar)."""
        if any(f.suffix == ".parquet" for files in self.files.values() for f in files):
            return None
        if self.has_val:
            return sum(f.stat().st_size for f in self.files[split])
        total = sum(f.stat().st_size for f in self.files["train"])
        return int(total * (self.val_fraction if split == "val" else 1 - self.val_fraction))


def open_files(data: Data) -> FilesCorpus:
    """The corpus of data.path: a file, a folder or a glob.

    Raises: UserError: no path, nothing there, no file of a known kind.
    """
    if not data.path:
        raise UserError("data.path: data.corpus=files needs a file, folder or glob of "
                        ".txt, .jsonl or .parquet")
    files, root = _find(data.path)
    files, notes = _one_kind(files)
    train, val, more = _parts(files, root)
    corpus = FilesCorpus("files", data.path, train, val, data.column or "text", data.val_fraction,
                         data.cache)
    corpus.notes = notes + more
    return corpus


def _find(path: str) -> tuple[list[Path], Path]:
    """The usable files of a path, and the folder that their names are relative to."""
    p = Path(path).expanduser()
    if p.is_file():
        if p.suffix not in KINDS:
            raise UserError(f"data.path: {path}: unknown kind of file {p.suffix or p.name!r}; "
                            f"known: {', '.join(KINDS)}")
        return [p], p.parent
    if p.is_dir():
        found, root = sorted(p.rglob("*")), p
    elif glob.has_magic(path):
        found = [Path(f) for f in sorted(glob.glob(str(p), recursive=True))]
        root = Path(os.path.commonpath([f.parent for f in found])) if found else p
    else:
        raise UserError(f"data.path: no such file or folder: {path}{_nearest(p)}")
    files = [f for f in found if f.suffix in KINDS and f.is_file()
             and not any(part.startswith(".") for part in f.relative_to(root).parts)]
    if not files:
        kinds = sorted({f.suffix or f.name for f in found if f.is_file()})
        raise UserError(f"data.path: no {', '.join(KINDS)} in {path}"
                        + (f" (there: {', '.join(kinds[:8])})" if kinds else " (empty)"))
    return files, root


def _nearest(path: Path) -> str:
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _one_kind(files: list[Path]) -> tuple[list[Path], list[str]]:
    """Where the same name comes in several kinds, keep the first of KINDS and say so."""
    best: dict[Path, Path] = {}
    for f in sorted(files, key=lambda f: KINDS.index(f.suffix)):
        best.setdefault(f.with_suffix(""), f)
    notes = [f"data: {f.name} left out: {best[f.with_suffix('')].name} holds the same by its name"
             for f in files if best[f.with_suffix("")] != f]
    return sorted(best.values()), notes


def _parts(files: list[Path], root: Path) -> tuple[list[Path], list[Path], list[str]]:
    """Training files, validation files (by their names) and what was decided, in words."""
    if len(files) == 1:
        return files, [], []

    def words(f: Path) -> set[str]:
        return set(re.split(r"[^a-z]+", str(f.relative_to(root)).lower()))

    def named(f: Path) -> str | None:
        return next((name for name in VAL_NAMES if name in words(f)), None)

    held = [f for f in files if named(f)]
    train = [f for f in files if not named(f)]
    if not held or not train:
        return files, [], []
    kind = min((named(f) for f in held), key=VAL_NAMES.index)
    val = [f for f in held if named(f) == kind]
    if any("train" in words(f) for f in train):
        train = [f for f in train if "train" in words(f)]
    notes = [f"data: validation part by name: {', '.join(f.name for f in val[:3])}"
             + (f" and {len(val) - 3} more" if len(val) > 3 else "")]
    left = [f.name for f in files if f not in set(train) | set(val)]
    if left:
        notes.append(f"data: not used (neither train nor {kind} by name): {', '.join(left[:5])}"
                     + (f" and {len(left) - 5} more" if len(left) > 5 else ""))
    return train, val, notes


def read_file(file: Path, column: str) -> Iterator[str]:
    """Stream the documents of one .txt, .jsonl or .parquet file.

    Raises: UserError: can't be read, not UTF-8 (with the byte offset), no such column, or a
        document that check_records refuses.
    """
    read = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[file.suffix]
    try:
        yield from read(file, column)
    except OSError as e:
        raise UserError(f"{file}: can't be read ({e.strerror or e})") from None


def _decode(raw: bytes, file: Path, offset: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise UserError(f"{file}: not UTF-8 text at byte {offset + e.start} "
                        f"(0x{raw[e.start]:02x}): convert it first, for instance with iconv"
                        ) from None


def _read_txt(file: Path, column: str) -> Iterator[str]:
    """Documents between separators, without the white space around them."""
    separator = EOT.encode()
    offset, rest = 0, b""  # rest begins at byte `offset` of the file
    with open(file, "rb") as f:
        while block := f.read(BLOCK_BYTES):
            *whole, rest = (rest + block).split(separator)
            for raw in whole:
                if text := _decode(raw, file, offset).strip().removeprefix("\ufeff"):
                    yield text
                offset += len(raw) + len(separator)
            if len(rest) > MAX_DOCUMENT_BYTES:
                raise UserError(f"{file}: a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB "
                                f"at byte {offset}: put {EOT} between documents")
    if text := _decode(rest, file, offset).strip().removeprefix("\ufeff"):
        yield text


def _read_jsonl(file: Path, column: str) -> Iterator[str]:
    def values() -> Iterator:
        offset = 0
        with open(file, "rb") as f:
            for number, raw in enumerate(f, 1):
                line = _decode(raw, file, offset)
                offset += len(raw)
                if not line.strip():
                    yield None
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as e:
                    raise UserError(f"{file}, line {number}: not JSON ({e.msg})") from None
                if not isinstance(record, dict) or column not in record:
                    keys = ", ".join(record) if isinstance(record, dict) else "no object"
                    raise UserError(f"{file}, line {number}: no column {column!r} (there: {keys});"
                                    " set data.column")
                yield record[column]

    return check_records(values(), str(file), column)


def _read_parquet(file: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def values(table: pq.ParquetFile) -> Iterator:
        for batch in table.iter_batches(1000, columns=[column], use_threads=False):
            yield from batch.column(0).to_pylist()

    try:
        # Buffered, not memory-mapped: a row group may be as large as the file.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK_BYTES) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise UserError(f"{file}: no column {column!r} (there: {', '.join(names)}); "
                                "set data.column")
            yield from check_records(values(table), str(file), column)
    except (pa.ArrowException, UnicodeDecodeError) as e:
        raise UserError(f"{file}: not a sound .parquet file ({str(e).splitlines()[0]})") from None
