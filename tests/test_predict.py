"""Predictions: said in advance, kept as they were said, judged by what came."""
import functools
import json
import math
import shutil

import numpy as np
import pytest
from run_folders import spec_of, write_run

from analysis import scaling
from analysis.predict import DATA, check_data, main, predict_spec
from analysis.predict.record import append, outcomes, read_predictions
from analysis.runs import load_runs
from slm.cost import count_params, flops_per_token
from slm.errors import UserError
from slm.resolve import gpt_config
from slm.spec import identity, run_folder, to_yaml

WIDTHS, TOKENS = (16, 32, 48, 64), (20_480, 40_960, 81_920, 163_840)
NEW = {"model__n_embd": 96, "train__tokens": 327_680}


def true_loss(n: float, d: float) -> float:
    return 1.5 + 30 / n**0.35 + 60 / d**0.4


def size(spec) -> int:
    return count_params(gpt_config(spec, 512))["matmul"]


@pytest.fixture(autouse=True)
def fewer_starts(monkeypatch):
    """Law by law a third of the time, and the same optimum."""
    monkeypatch.setattr(scaling, "fit_law", functools.partial(scaling.fit_law, polish=16))


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """A folder of 16 finished runs whose losses follow a law up to noise of 0.1 %, and of one that
    diverged."""
    top, rng = tmp_path_factory.mktemp("ladder") / "runs", np.random.default_rng(0)
    for width in WIDTHS:
        for tokens in TOKENS:
            changes = {"model__n_embd": width, "train__tokens": tokens}
            loss = true_loss(size(spec_of(top, **changes)), tokens)
            write_run(top, loss * math.exp(rng.normal(0, 1e-3)), **changes)
    write_run(top, None, "diverged", "not finite", train__seed=1)
    return top


@pytest.fixture
def plan(ladder, tmp_path, monkeypatch):
    """(a folder of runs of its own, a spec file of a larger run, the spec) for the command."""
    top = tmp_path / "runs"
    shutil.copytree(ladder, top)
    spec = spec_of(top, **NEW)
    path = tmp_path / "x.yaml"
    path.write_text(to_yaml(spec))
    monkeypatch.chdir(tmp_path)
    return top, path, spec


def test_the_numbers_are_the_plans_and_the_laws(plan):
    top, path, spec = plan
    runs = load_runs(top)
    found = predict_spec(runs, path, bootstrap=300)
    assert found.identity == identity(spec) and found.name == run_folder(spec).name
    per_token = flops_per_token(gpt_config(spec, 512))["matmul"]
    assert (found.n_params, found.tokens, found.flops) == \
        (size(spec), 327_680, 327_680 * per_token)
    law = scaling.fit_law(runs, bootstrap=300)
    said = law.predict(n_params=found.n_params, tokens=found.tokens)
    assert (found.value, found.low, found.high) == (said.value, said.low, said.high)
    assert found.value == pytest.approx(true_loss(found.n_params, found.tokens), rel=0.01)
    assert found.seen == "" and found.outcome is None
    assert found.outside["tokens"] == pytest.approx(2)
    assert found.outside["n_params"] == pytest.approx(size(spec) / runs["n_params"].max())
    assert "D 2x the largest" in str(found) and "left out: diverged" in str(found)
    known = predict_spec(runs, path, {"train.tokens": 10_240}, floor="floor", bootstrap=100)
    assert known.law.params["E"] == known.floor == 1.5
    assert known.outside["tokens"] == pytest.approx(0.5)
    # the run itself, once trained, takes no part in its own prediction
    own = runs.iloc[[3]].assign(identity=found.identity, loss=9.0, run="own")
    with_own = runs.merge(own, how="outer")
    assert predict_spec(with_own, path, bootstrap=300).value == pytest.approx(found.value, rel=1e-9)


def test_other_data_are_refused_unless_told(plan):
    top, path, _ = plan
    runs = load_runs(top)
    for column, key, value in [("tokenizer", "data.tokenizer", "bpe:1024"),
                               ("eval_mode", "data.eval_mode", "windows")]:
        with pytest.raises(UserError, match=f"{column}: .*not comparable.*--allow-mixed"):
            predict_spec(runs, path, {key: value})
    with pytest.raises(UserError, match="corpus: fables in the spec, tinystories in the runs"):
        predict_spec(runs.assign(corpus="tinystories"), path)
    assert check_data(runs, {"eval_tokens": 40_000.0} | dict.fromkeys(DATA[:-1]), False)
    with pytest.raises(UserError, match="eval_tokens: 4,000 in the spec, 40,000 in the runs: .*"):
        check_data(runs[["eval_tokens"]], {"eval_tokens": 4000.0}, False)
    mixed = predict_spec(runs, path, {"data.eval_mode": "windows"}, allow_mixed=True, bootstrap=50)
    assert any("eval_mode: windows" in line for line in mixed.notes)
    assert any("not prepared" in line for line in mixed.notes)


def test_the_command_records_once_and_judges_by_what_came(plan, capsys):
    top, path, spec = plan
    command = [str(top), "--spec", str(path), "--form", "chinchilla", "--level=0.9",
               "--bootstrap=100"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "90% interval" in said and f"recorded in {top}/predictions.jsonl" in said
    assert main(command) == 0 and "recorded" in capsys.readouterr().out
    file = top / "predictions.jsonl"
    first, = file.read_text().splitlines()          # the same prediction is not said twice
    record = json.loads(first)
    assert record["identity"] == identity(spec) and record["n_runs"] == 16
    assert "track" not in record["spec"] and len(record["fitted"]) == 16
    assert main([*command, "--train.seed=7"]) == 0  # another run
    with open(file, "a") as f:
        f.write('{"identity": "cut sho')            # a line that a full disk cut short
    loss = record["value"] * 1.0005
    folder = write_run(top, loss, **NEW)
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"{folder.name} is done: loss {loss:.4f}" in said and "hindsight" in said
    assert f"predicted {record['made']}, before it was trained" in said and "inside, off by" in said
    assert file.read_text().startswith(first) and len(read_predictions(file)) == 2
    # one made when the run had finished, and one with it among the fitted, are no predictions
    late = predict_spec(load_runs(top), path, bootstrap=50).to_record()
    assert late["seen"] == "finished"
    assert append({**late, "made": "2999-01-01T00:00:00+00:00"}, file)
    assert append({**record, "fitted": [record["identity"]], "made": "2000-01-01"}, file)
    table = outcomes(file, load_runs(top))
    assert list(table["honest"]) == [False, True, True, False]
    assert list(table["counts"]) == [False, True, True, False]
    assert "fitted" in table["note"][0] and "had finished" in table["note"][3]
    assert table["loss"][1] == loss and table["inside"][1] is True
    assert table["error"][1] == pytest.approx(loss / record["value"] - 1)
    assert math.isnan(table["loss"][2]) and table["inside"][2] is None


def test_bad_input_is_a_line_and_exit_code_2(plan, capsys):
    top, path, _ = plan
    for args, match in [
            (["none", "--spec", path], "no such folder"),
            ([top, "--spec", "none.yaml"], "there is no such file"),
            ([top, "--spec", path, "--model.n_layers=3"], "did you mean model.n_layer"),
            ([top, "--spec", path, "--form=kaplen"], "no law form"),
            ([top, "--spec", path, "--floor=flor"], "no number and no column"),
            ([top, "--spec", path, "--floor=9"], "not above the known floor"),
            ([top, "--spec", path, "--level=95"], "between 0 and 1"),
            ([top, "--spec", path, "--floor", "-1"], "floor=-1.0: a known floor is"),
            ([top, "--spec", path, "--where=n_embd < 17"], "needs at least"),
            ([top, "--spec", path, "--out", "none/p.jsonl"], "can't be written")]:
        assert main([*map(str, args), "--bootstrap=50"]) == 2
        said = capsys.readouterr().err
        assert match in said and "Traceback" not in said
