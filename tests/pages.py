"""Pages of studies in the repository against those that their records make."""
import re

from tiny import ROOT

NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")


def split(text: str) -> tuple[str, list[float]]:
    """The words of a text, and its numbers."""
    return NUMBER.sub("#", text), [float(x.replace(",", "")) for x in NUMBER.findall(text)]


def assert_same(made: str, name: str, relative: float = 0.02) -> None:
    """A page made again has the same words as analysis/<name> and, up to the rounding of another
    machine, the same numbers."""
    made, kept = split(made), split((ROOT / "analysis" / name).read_text(encoding="utf-8"))
    assert made[0] == kept[0]
    for a, b in zip(made[1], kept[1], strict=True):
        assert abs(a - b) <= relative * max(abs(a), abs(b)) + 0.002, (a, b)


def assert_pictures(name: str, at_least: int) -> None:
    """Every picture of analysis/<name> is there and small."""
    text = (ROOT / "analysis" / name).read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(pictures) >= at_least
    for picture in pictures:
        assert 5_000 < (ROOT / "analysis" / picture).stat().st_size < 200_000
