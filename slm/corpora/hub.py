"""Any dataset of the Hugging Face Hub by name and column, and TinyStories by default.

`datasets` retries for 23 s without a network, so the network is probed first."""
from __future__ import annotations

import glob
import hashlib
import os
import socket
import sys
import threading
import urllib.request
from functools import cached_property
from pathlib import Path
from typing import Iterator
from urllib.parse import urlsplit

from slm.corpora import Split
from slm.corpora.files import VAL_NAMES
from slm.corpora.text import TextCorpus, check_records, remembered
from slm.errors import UserError
from slm.schema import Data


class HubCorpus(TextCorpus):
    """A dataset of the Hub (or a local folder that `datasets` can load), read from its Arrow
    files in batches. Loaded only when its text is first wanted."""

    def __init__(self, name: str, source: str, column: str, val_fraction: float | None,
                 cache: str | Path, advice: str):
        super().__init__(name, source, val_fraction)
        self.column = column
        self.cache = cache
        self.advice = advice

    @cached_property
    def parts(self) -> dict[Split, object]:
        """The dataset's splits: train, and val where it has one."""
        found = load_dataset(self.source, self.advice)
        if "train" not in found:
            raise UserError(f"data.path: {self.source} has no split 'train' "
                            f"(there: {', '.join(found)})")
        parts = {"train": found["train"]}
        held = next((name for name in VAL_NAMES if name in found), None)
        if held:
            parts["val"] = found[held]
            if held != "validation":
                self.notes.append(f"data: validation part: split {held!r} of {self.source}")
        elif self.val_fraction is None:
            raise UserError(f"data.path: {self.source} has no validation split")
        for part in parts.values():
            if self.column not in part.column_names:
                raise UserError(f"{self.source}: no column {self.column!r} "
                                f"(there: {', '.join(part.column_names)}); set data.column")
        return parts

    @property
    def has_val(self) -> bool:
        return "val" in self.parts

    def read(self, part: Split) -> Iterator[str]:
        return check_records(_arrow_texts(self.parts[part], self.column),
                             f"{self.source} ({part})", self.column)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the texts; remembered by name, so that what was prepared once is found
        again without a network (delete data.cache to follow a change on the Hub)."""
        if _is_local(self.source):
            return self._compute_fingerprint()
        return remembered(self.cache, self._key, self._compute_fingerprint)

    @property
    def known_fingerprint(self) -> str | None:
        """The fingerprint if it is remembered: touches neither network nor text."""
        try:
            return remembered(self.cache, self._key, _unknown)
        except LookupError:
            return None

    @property
    def _key(self) -> str:
        return f"hub|{self.source}|{self.column}|{self.val_fraction}"

    def _compute_fingerprint(self) -> str:
        digest = hashlib.sha256(str(None if self.has_val else self.val_fraction).encode())
        for part in self.parts:
            for text in self.read(part):
                raw = text.encode()
                digest.update(f"{part}{len(raw)}|".encode() + raw)
        return digest.hexdigest()

    def approx_bytes(self, split: Split) -> int | None:
        """Bytes of text in a split, roughly (for a progress bar)."""
        if not self.has_val:
            return None
        part = self.parts[split]
        return getattr((part.info.splits or {}).get(str(part.split)), "num_bytes", None)


def _unknown() -> str:
    raise LookupError


def open_hub(data: Data) -> HubCorpus:
    """The dataset data.path names: 'owner/name', or 'owner/name:config'.

    Raises: UserError: no name.
    """
    if not data.path:
        raise UserError("data.path: data.corpus=hub needs a dataset's name, like "
                        "roneneldan/TinyStories")
    return HubCorpus("hub", data.path, data.column or "text", data.val_fraction, data.cache,
                     advice="try again with a network, or use a local copy with data.corpus=files")


def _arrow_texts(part, column: str) -> Iterator:
    """A column's values, batch by batch; from the Arrow files by plain reads, for the pages of
    memory-mapped ones would count as this process's memory."""
    import pyarrow as pa

    if not part.cache_files:
        for batch in part.with_format("arrow").iter(1000):
            yield from batch.column(column).to_pylist()
    for file in part.cache_files:
        with pa.OSFile(file["filename"]) as f, pa.ipc.open_stream(f) as stream:
            for batch in stream:
                yield from batch.column(column).to_pylist()


def load_dataset(source: str, advice: str):
    """`datasets.load_dataset(source)` that fails within a second where it has to fail.

    Args: source: 'owner/name' or 'owner/name:config', or a local folder; advice: what to do
        without it.
    Returns: datasets.DatasetDict, memory-mapped.
    Raises: UserError: no such dataset or config, no network and no cached copy, disk full.
    """
    name, _, config = source.partition(":")
    local = _is_local(source)
    offline = not local and not _hub_reachable()
    if offline and not _is_cached(name):
        raise UserError(f"{name} can't be fetched: the Hugging Face Hub can't be reached and no "
                        f"copy is cached; {advice}")
    if offline:
        _set_offline()
    try:
        import datasets
    except ImportError:
        raise UserError("data.corpus: text from the Hub needs the package datasets: "
                        "pip install datasets") from None
    datasets.logging.set_verbosity_error()
    try:
        return datasets.load_dataset(str(Path(name).expanduser()) if local else name,
                                     config or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as e:
        raise UserError(f"data.path: {source} can't be loaded: {' '.join(str(e).split())[:300]} "
                        f"({advice})") from None


def _is_local(source: str) -> bool:
    return Path(source.partition(":")[0]).expanduser().is_dir()


def _hub_reachable() -> bool:
    told_not_to = any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
                      for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    return not told_not_to and reachable(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")


def reachable(url: str, timeout_sec: float = 0.6) -> bool:
    """Whether a connection to the host of `url` (or to the proxy on the way to it) can be made.
    In a thread of its own, for a name look-up can't be given a time limit."""
    host = urlsplit(url)
    proxy = urllib.request.getproxies().get(host.scheme)
    if proxy and not urllib.request.proxy_bypass(host.hostname):
        host = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = host.port or (443 if host.scheme == "https" else 80)
    answer: list[bool] = []

    def probe() -> None:
        try:
            socket.create_connection((host.hostname, port), timeout=timeout_sec).close()
            answer.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(timeout_sec)
    return bool(answer)


def _is_cached(name: str) -> bool:
    """Whether `datasets` has Arrow files of this dataset; told by folder names alone, since
    importing `datasets` to ask costs a second."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")
    cache = os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets")
    wanted = name.replace("/", "___").replace("_", "").lower()  # TinyStories -> tiny_stories
    return any(Path(folder).parts[-4].replace("_", "").lower() == wanted
               for folder in glob.glob(os.path.join(cache, "*", "*", "*", "*"))
               if os.path.isdir(folder))


def _set_offline() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):  # already imported: too late
        if module in sys.modules:                                     # for the variable
            sys.modules[module].HF_HUB_OFFLINE = True
