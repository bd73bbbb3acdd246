"""Two sides measured by turns, their medians and spreads, and the table that shows them."""
from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Sequence

SMALL_IS_GOOD = {"ms": True, "s": True, "µs": True, "MB": True, "MB/s": False, "tokens/s": False,
                 "% of peak": False, "% of a step": True, "%": True, "% off": True, "nats": True}


@dataclass(frozen=True)
class Options:
    """What a section is told. nanogpt: a checkout of karpathy/nanoGPT, None: its rows are left out;
    data: the folder with tinystories/ and chinchilla/, if any; plot: where growth's picture goes;
    quick: tiny sizes and few rounds, to try the harness: its numbers mean nothing."""
    nanogpt: Path | None = None
    data: Path | None = None
    plot: Path | None = None
    quick: bool = False

    def rounds(self, full: int) -> int:
        return min(full, 2) if self.quick else full


@dataclass(frozen=True)
class Spread:
    """The median of n measurements and the quartiles around it."""
    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Quartiles interpolated between measurements, as numpy's; of one value: itself."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


def interleave(sides: dict[str, Callable[[], Any]], rounds: int,
               warmup: int = 0) -> dict[str, list]:
    """Call the sides by turns, A B A B ..., and return what each gave, round by round.

    What disturbs a machine lasts longer than a turn, so it hits all sides alike and falls out of
    the ratio of two results of one round. The first `warmup` rounds are not returned."""
    results: dict[str, list] = {name: [] for name in sides}
    for i in range(warmup + rounds):
        for name, side in sides.items():
            value = side()
            if i >= warmup:
                results[name].append(value)
    return results


@dataclass(frozen=True)
class Reach:
    """A figure to reach: `of` the ratio to the peer or of our own median, at least or at most."""
    value: float
    of: str = "ours"                         # ours | ratio
    at_most: bool = False

    def met_by(self, row: Row) -> bool | None:
        found = row.ratio if self.of == "ratio" else row.mine
        if found is None:
            return None
        return found.median <= self.value if self.at_most else found.median >= self.value

    def text(self, unit: str) -> str:
        sign = "<=" if self.at_most else ">="
        return f"{sign} {number(self.value)}" + ("x" if self.of == "ratio" else f" {unit}")


@dataclass
class Row:
    """One line of the table. ours, peer: measurements in `unit`, those of one round at one index.
    note: what a reader must know; skipped: why there is no measurement."""
    what: str
    unit: str = ""
    ours: Sequence[float] = ()
    peer: Sequence[float] = ()
    peer_name: str = ""
    reach: Reach | None = None
    note: str = ""
    skipped: str = ""
    more: dict[str, Any] = field(default_factory=dict)    # for the JSON only

    @property
    def mine(self) -> Spread | None:
        return Spread.of(self.ours) if self.ours else None

    @property
    def ratio(self) -> Spread | None:
        """How many times better ours is, by rounds: above 1 it is faster, or smaller."""
        if not self.ours or not self.peer:
            return None
        pairs = zip(self.ours, self.peer, strict=True)
        return Spread.of([peer / ours if SMALL_IS_GOOD[self.unit] else ours / peer
                          for ours, peer in pairs])

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"what": self.what, "unit": self.unit}
        for name, values in (("ours", self.ours), ("peer", self.peer)):
            if values:
                out[name] = spread_json(Spread.of(values))
                out[name]["values"] = [rounded(v) for v in values]
        if self.peer:
            out["peer"]["name"] = self.peer_name
            out["ratio"] = spread_json(self.ratio)
        if self.reach:
            out["reach"] = self.reach.text(self.unit)
            out["reached"] = self.reach.met_by(self)
        out |= {k: v for k, v in (("note", self.note), ("skipped", self.skipped)) if v}
        return out | self.more


def skip(what: str, why: str) -> Row:
    return Row(what, skipped=why)


NO_NANOGPT = "needs nanoGPT beside it: --nanogpt DIR, a checkout of karpathy/nanoGPT"


def rounded(x: float) -> float:
    return float(f"{x:.5g}")


def spread_json(s: Spread) -> dict[str, float]:
    return {"median": rounded(s.median), "low": rounded(s.low), "high": rounded(s.high), "n": s.n}


def number(x: float) -> str:
    """To three or four digits: 1,402 or 53.1 or 0.0123."""
    if x and abs(x) < 0.01:
        return f"{x:.2g}"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}" if abs(x) < 100 else f"{x:.0f}"


def show(s: Spread | None, unit: str = "") -> str:
    """'1,402 [1,391 .. 1,433] ms'; one measurement has no spread."""
    if s is None:
        return "-"
    spread = f" [{number(s.low)} .. {number(s.high)}]" if s.n > 1 else ""
    return f"{number(s.median)}{spread}{'' if unit == 'x' else ' '}{unit}".rstrip()


def table(rows: Sequence[Row]) -> str:
    """what | ours | peer | ratio | reach, with notes beneath their rows."""
    head = ("what", "ours", "peer", "ratio", "reach")
    cells = [head]
    for row in rows:
        peer = f"{show(Spread.of(row.peer), row.unit)} ({row.peer_name})" if row.peer else "-"
        met = row.reach.met_by(row) if row.reach else None
        reach = "" if not row.reach else row.reach.text(row.unit) \
            + {True: ": yes", False: ": NO", None: ""}[met]
        cells.append((row.what, "skipped" if row.skipped else show(row.mine, row.unit), peer,
                      show(row.ratio, "x"), reach))
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = []
    for line, row in zip(cells, [None, *rows]):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        if row is not None:
            lines += [f"    {text}" for text in (row.note, row.skipped) if text]
    return "\n".join(lines)
