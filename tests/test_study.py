"""The study in the repository says what its records say."""
from pages import assert_pictures, assert_same

from analysis.runs import load_runs
from analysis.studies.fables import page


def test_the_page_follows_from_the_records():
    template = (page.HERE / "template.md").read_text(encoding="utf-8")
    assert_same(template.format(**page.facts(page.load())), "study-fables.md")


def test_the_predictions_were_made_before_the_run_and_without_it():
    runs = load_runs(page.HERE / "runs")
    told = page.outcomes(page.read_predictions(page.PREDICTIONS), runs)
    assert told["honest"].all() and told["counts"].sum() == 1 and told["loss"].notna().all()
    fitted = runs["identity"].isin(told["fitted"].iloc[0])
    predicted = runs["identity"] == told["identity"].iloc[0]
    assert not (fitted & predicted).any() and predicted.sum() == 1
    assert runs["flops"][predicted].iloc[0] > 3.99 * runs["flops"][fitted].max()


def test_every_picture_of_the_page_is_there_and_small():
    assert_pictures("study-fables.md", at_least=4)
