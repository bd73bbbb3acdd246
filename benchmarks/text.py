"""Text to tokens on disk: slm.prepare beside nanoGPT's prepare.py, on the TinyStories sample.

Both read the same parquet files and write the same ids in GPT-2's encoding. nanoGPT's own script is
run, told only where the text lies, how many cores there are (its num_proc is 8), and to hold out
enough documents for its 1,024 shards of each split (it fails on fewer)."""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.child import Child, ChildFailed, environment
from benchmarks.machine import cores
from benchmarks.measure import NO_NANOGPT, Options, Reach, Row, interleave, skip
from benchmarks.peer import substituted

COPIES = 4              # of the sample: 42 MB, so that a second of start-up is not the measurement
QUICK_DOCUMENTS = 2600
SHARDS = 1024           # of nanoGPT's writer, for each split

# What nanoGPT's script imports instead of `datasets.load_dataset`: the same, from local files, with
# GPT-2's encoding from here (tiktoken would fetch it), and the seconds from loading that to the
# end. Ours loads it within its time too.
STAND_IN = '''
import atexit, time
import datasets, tiktoken
from slm.tokenizer import get_tokenizer
started = time.perf_counter()
encoding = get_tokenizer("gpt2", None, ".", print).encoding
tiktoken.get_encoding = lambda name: encoding
def load_dataset(name, num_proc=None):
    atexit.register(lambda: print("work_sec", time.perf_counter() - started, flush=True))
    return datasets.load_dataset("parquet", data_files={"train": ["train.parquet",
                                 "validation.parquet"]}, cache_dir="cache")
'''


class MemoryWatch:
    """Peak memory of a process and its descendants together: the sum of their proportional sets
    (PSS: what they share is counted once), sampled 20 times a second."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak_bytes, self.over = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.over.wait(0.05):
            self.peak_bytes = max(self.peak_bytes, sum(map(pss_bytes, family(self.pid))))

    def stop(self) -> int:
        self.over.set()
        self.thread.join()
        return self.peak_bytes


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(x) for x in (task / "children").read_text().split()]
        except OSError:  # it has just ended
            continue
    return found


def pss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return next(int(x.split()[1]) * 1024 for x in f if x.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def sample(folder: Path, data: Path, quick: bool) -> int:
    """Write train.parquet and validation.parquet; returns the bytes of their text."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    total = 0
    for name in ("train", "validation"):
        texts = pq.read_table(data / "tinystories" / f"{name}.parquet", columns=["text"])["text"]
        texts = texts.slice(0, QUICK_DOCUMENTS // 2) if quick else \
            pa.chunked_array(texts.chunks * COPIES)
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet", row_group_size=1000)
        total += sum(len(text.encode()) for text in texts.to_pylist())
    return total


class Prepare:
    """slm.prepare.prepare into a fresh cache each time."""

    def __init__(self, folder: str) -> None:
        from slm.spec import load_spec
        self.folder, self.calls, self.load_spec = folder, 0, load_spec

    def __call__(self) -> dict:
        from slm.prepare import prepare
        self.calls += 1
        cache = tempfile.mkdtemp(dir=self.folder)
        data = self.load_spec([], {"data": {
            "corpus": "tinystories", "path": self.folder, "tokenizer": "gpt2", "cache": cache},
            "train.steps": 1}).data
        started = time.perf_counter()
        meta = prepare(data).meta
        return {"work_sec": time.perf_counter() - started, "threads": threads_of_prepare(),
                "tokens": meta["train"]["tokens"] + meta["val"]["tokens"]}


def threads_of_prepare() -> int:
    from slm.tokenise import THREADS
    return THREADS


def ours(folder: Path) -> dict:
    """One preparation in a process of its own: work_sec, wall_sec, peak_bytes, tokens."""
    with Child("benchmarks.text:Prepare", folder=str(folder)) as child:
        watch = MemoryWatch(child.process.pid)
        found = child()
        return found | child.close() | {"peak_bytes": watch.stop()}


def nanogpt(folder: Path, script: str) -> dict:
    """One run of nanoGPT's prepare.py: the same."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        here = Path(place)
        for name in ("train", "validation"):
            (here / f"{name}.parquet").symlink_to(folder / f"{name}.parquet")
        (here / "stand_in.py").write_text(STAND_IN)
        (here / "prepare.py").write_text(script)
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "prepare.py"], cwd=here, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment(HF_HOME=str(here / "hf"), HF_HUB_OFFLINE="1",
                                                    HF_DATASETS_DISABLE_PROGRESS_BARS="1"))
        watch = MemoryWatch(process.pid)
        out, errors = process.communicate()
        wall, peak = time.perf_counter() - started, watch.stop()
        if process.returncode:
            raise ChildFailed(f"nanoGPT's prepare.py: {errors[-2000:]}")
        seconds = [float(x.split()[1]) for x in out.splitlines() if x.startswith("work_sec ")]
        tokens = sum(len(np.memmap(here / f"{name}.bin", dtype=np.uint16)) for name in
                     ("train", "val"))
        return {"work_sec": max(seconds), "wall_sec": wall, "peak_bytes": peak, "tokens": tokens}


def rows(options: Options) -> list[Row]:
    if options.data is None or not (options.data / "tinystories").is_dir():
        return [skip("text to tokens", "no TinyStories sample: set SLM_REFERENCE_DATA to a folder "
                     "with tinystories/train.parquet and validation.parquet")]
    import pyarrow.parquet as pq
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = sample(folder, options.data, options.quick)
        documents = sum(pq.read_metadata(folder / f"{name}.parquet").num_rows
                        for name in ("train", "validation"))
        sides = {"ours": lambda: ours(folder)}
        if options.nanogpt:
            script = substituted(
                options.nanogpt / "data" / "openwebtext" / "prepare.py",
                ("from datasets import load_dataset", "from stand_in import load_dataset"),
                ("num_proc = 8", f"num_proc = {cores()}"),
                ("test_size=0.0005", f"test_size={max(0.0005, (SHARDS + 50) / documents)}"))
            sides["nanoGPT"] = lambda: nanogpt(folder, script)
        found = interleave(sides, 1 if options.quick else 3)
    return rows_of(found, size, documents)


def rows_of(found: dict[str, list[dict]], size: int, documents: int) -> list[Row]:
    mine, theirs = found["ours"], found.get("nanoGPT", [])
    counts = {r["tokens"] for r in mine + theirs}
    assert len(counts) == 1, f"not the same tokens: {json.dumps(sorted(counts))}"

    def rate(results: list[dict], key: str) -> list[float]:
        return [size / 1e6 / r[key] for r in results]

    peer = f"nanoGPT's prepare.py, num_proc={cores()}"
    work = Row("text to tokens", "MB/s", rate(mine, "work_sec"), rate(theirs, "work_sec"), peer,
               Reach(10, "ratio"),
               f"{size / 1e6:.1f} MB, {documents:,} documents, {counts.pop():,} tokens on both "
               f"sides; ours on {mine[0]['threads']} threads; without start-up and imports")
    whole = Row("  the whole command, imports included", "MB/s", rate(mine, "wall_sec"),
                rate(theirs, "wall_sec"), peer)
    memory = Row("  peak memory", "MB", [r["peak_bytes"] / 1e6 for r in mine],
                 [r["peak_bytes"] / 1e6 for r in theirs], peer, Reach(300, at_most=True),
                 "all processes together, what they share counted once")
    return [work, whole, memory] + ([] if theirs else [skip("  beside nanoGPT", NO_NANOGPT)])
