"""The data loader: its share of a step, and its memory over 100,000 batches, beside nanoGPT's
get_batch."""
from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.child import Child, memory
from benchmarks.measure import NO_NANOGPT, Options, Reach, Row, interleave, skip

BATCH, BLOCK, TOKENS, STEP_SEC = 12, 128, 20_000_000, 0.05
PER_CALL = 2000


class Ours:
    def __init__(self, folder: str) -> None:
        from slm.loader import Loader
        tokens = np.memmap(Path(folder) / "train.bin", dtype=np.uint16, mode="r")
        self.loader, self.next = Loader(tokens, BLOCK, BATCH, seed=0), 0

    def __call__(self, n: int) -> dict[str, int]:
        for _ in range(n):
            self.loader.batch(self.next)
            self.next += 1
        return {"own_bytes": memory("RssAnon"), "bytes": memory("VmRSS")}


class NanoGPT:
    def __init__(self, nanogpt: str, folder: str) -> None:
        from benchmarks.peer import get_batch
        self.batch = get_batch(nanogpt, Path(folder), BATCH, BLOCK)

    def __call__(self, n: int) -> dict[str, int]:
        for _ in range(n):
            self.batch("train")
        return {"own_bytes": memory("RssAnon"), "bytes": memory("VmRSS")}


def rows(options: Options) -> list[Row]:
    n, calls = (50, 4) if options.quick else (PER_CALL, 50)
    with tempfile.TemporaryDirectory() as folder:
        np.random.default_rng(0).integers(0, 50257, 10 ** 6 if options.quick else TOKENS,
                                          dtype=np.uint16).tofile(Path(folder) / "train.bin")
        sides = {"ours": Child("benchmarks.loading:Ours", folder=folder)}
        if options.nanogpt:
            sides["nanoGPT"] = Child("benchmarks.loading:NanoGPT", folder=folder,
                                     nanogpt=str(options.nanogpt))
        try:
            found = interleave({name: lambda side=side: side(n=n) for name, side in sides.items()},
                               calls)
        finally:
            for side in sides.values():
                side.stop()
    ms = {name: [1000 * r["sec"] / n for r in results[1:]] for name, results in found.items()}
    theirs = ms.get("nanoGPT", [])
    growth = {name: [(results[-1]["own_bytes"] - results[0]["own_bytes"]) / 1e6]
              for name, results in found.items()}
    mapped = (found["ours"][-1]["bytes"] - found["ours"][-1]["own_bytes"]) / 1e6
    total = f"from batch {n:,} to batch {n * calls:,}"
    out = [Row(f"a batch of {BATCH}x{BLOCK}", "ms", ms["ours"], theirs, "nanoGPT's get_batch"),
           Row("  its share of a 50 ms step", "% of a step",
               [x / 1000 / STEP_SEC * 100 for x in ms["ours"]], reach=Reach(1, at_most=True)),
           Row(f"  growth of memory {total}", "MB", growth["ours"], reach=Reach(5, at_most=True),
               note="the process's own (anonymous) memory; pages of the mapped file are the "
                    f"system's to take back (at the end {mapped:.0f} MB with the libraries)"
                    + (f"; nanoGPT's {growth['nanoGPT'][0]:.1f} MB" if theirs else ""))]
    return out + ([] if theirs else [skip("  beside nanoGPT", NO_NANOGPT)])
