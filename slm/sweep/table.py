"""Calm tables and figures for a terminal."""
from __future__ import annotations


def table(head: list[str], rows: list[list[str]], left: set[int] = frozenset()) -> list[str]:
    """Lines of a table; columns right-aligned but those in `left`."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        cells = (c.ljust(w) if i in left else c.rjust(w)
                 for i, (c, w) in enumerate(zip(row, widths)))
        return "  ".join(cells).rstrip()

    return [line(row) for row in [head, *rows]]


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[:width - 1] + "…"


def count(x: float) -> str:
    """1234567 -> '1.23M'"""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= 0.9995 * size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"


def memory(x: float) -> str:
    """Bytes -> '512 MB', '3.2 GB'"""
    if x < 1e6:
        return "< 1 MB"
    return f"{x / 1e9:.1f} GB" if x >= 1e9 else f"{x / 1e6:.0f} MB"


def duration(seconds: float | None, digits: int = 3) -> str:
    """93 -> '1.55 min'; with two digits '1.6 min'"""
    if seconds is None:
        return ""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"


def numbers(values: list[int]) -> str:
    """[1, 2, 3, 7] -> '1-3,7'"""
    out: list[str] = []
    start = previous = None
    for n in [*values, None]:
        if previous is not None and n == previous + 1:
            previous = n
            continue
        if start is not None:
            out.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = n
    return ",".join(out)
