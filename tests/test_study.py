"""The study in the repository says what its records say."""
import re

from tiny import ROOT

from analysis.runs import load_runs
from analysis.studies.fables import page

NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")


def split(text: str) -> tuple[str, list[float]]:
    """The words of a text, and its numbers."""
    return NUMBER.sub("#", text), [float(x.replace(",", "")) for x in NUMBER.findall(text)]


def test_the_page_follows_from_the_records():
    """Made again, it has the same words and, up to the rounding of another machine, numbers."""
    template = (page.HERE / "template.md").read_text(encoding="utf-8")
    made = split(template.format(**page.facts(page.load())))
    kept = split((ROOT / "analysis" / "study-fables.md").read_text(encoding="utf-8"))
    assert made[0] == kept[0]
    for a, b in zip(made[1], kept[1]):
        assert abs(a - b) <= 0.02 * max(abs(a), abs(b)) + 0.002, (a, b)


def test_the_predictions_were_made_before_the_run_and_without_it():
    runs = load_runs(page.HERE / "runs")
    told = page.outcomes(page.read_predictions(page.PREDICTIONS), runs)
    assert told["honest"].all() and told["counts"].sum() == 1 and told["loss"].notna().all()
    fitted = runs["identity"].isin(told["fitted"].iloc[0])
    predicted = runs["identity"] == told["identity"].iloc[0]
    assert not (fitted & predicted).any() and predicted.sum() == 1
    assert runs["flops"][predicted].iloc[0] > 3.99 * runs["flops"][fitted].max()


def test_every_picture_of_the_page_is_there_and_small():
    text = (ROOT / "analysis" / "study-fables.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(pictures) >= 4
    for name in pictures:
        assert 5_000 < (ROOT / "analysis" / name).stat().st_size < 200_000
