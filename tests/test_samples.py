"""Measures of stories by brute force; fables against their own world; tables; fresh stories."""
import json
import string
from collections import Counter
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

import slm
from analysis.samples.copies import TrainingIndex, documents_of, words_of
from analysis.samples import (fable_verdicts, fresh_samples, longest_repeat, measures, ngrams,
                              named, reference_measures, sample_table, sentences, side_by_side)
from slm import checkpoint
from slm.corpora import EOT
from slm.corpora.fables import Fables
from slm.errors import UserError
from slm.model import GPT
from slm.shape import GPTConfig
from slm.tokenizer import BytePairTokenizer

SPEC = {"data": {"corpus": "fables", "tokenizer": "bpe:512",
                 "fables": {"seed": 3, "facts": 40, "stories": 300, "val_stories": 20}}}


@pytest.fixture(scope="module")
def fables() -> Fables:
    return Fables(**SPEC["data"]["fables"])


# -- measures ------------------------------------------------------------------------------------

def test_measures_written_out_by_hand():
    out = measures(["Once, the cat sat. The cat sat", "Once!"], prompts=["Once, ", "Tom"])
    # the cat sat the cat sat | once
    assert out["n_texts"] == 2 and out["words"] == 3.5 and out["sentences"] == 1.5
    assert out["distinct_1"] == 4 / 7 and out["distinct_2"] == 3 / 5 and out["distinct_3"] == 3 / 4
    assert out["repeated_4"] == 0.0 and out["longest_repeat"] == 1.5 and "copied_8" not in out
    again = measures(["a b c d a b c d a b c d e"])
    assert again["repeated_4"] == pytest.approx(1 - 5 / 10) and again["longest_repeat"] == 8
    empty = measures(["", "..."])
    assert empty["words"] == 0 and np.isnan(empty["distinct_1"]) and np.isnan(empty["repeated_4"])
    assert words_of("Don't stop, Mia’s dog-cat 42!") == ["don't", "stop", "mia’s", "dog", "cat",
                                                         "42"]
    assert [sentences(t) for t in ('"Hi!" said Tom. He ran', "Dr.No... yes?!", "", "?")] == [
        3, 2, 0, 1]


def test_longest_repeat_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(200):
        words = list(rng.choice(list("abc"), size=rng.integers(0, 14)))
        spans = Counter(tuple(words[i:j]) for i in range(len(words))
                        for j in range(i + 1, len(words) + 1))
        assert longest_repeat(words) == max((len(s) for s, n in spans.items() if n > 1), default=0)


def test_texts_that_can_not_be_measured():
    for call, message in ((lambda: measures([]), "no texts"),
                          (lambda: measures(["a", None]), "text 1 is None"),
                          (lambda: measures(["a"], prompts=[]), "1 texts and 0 prompts"),
                          (lambda: TrainingIndex(n=0), "at least 1")):
        with pytest.raises(UserError, match=message):
            call()


def test_measures_are_named_as_people_say_them():
    assert [named(c) for c in ("repeated_4", "copied_8", "distinct_2", "facts_right", "read")] == [
        "repeated 4-grams", "copied 8-grams", "distinct-2", "facts right", "read"]


# -- copies --------------------------------------------------------------------------------------

def test_copied_ngrams_by_brute_force(fables):
    training = [fables.story(i) for i in range(300)]
    index = TrainingIndex(n=5).add(training[:100]).add(iter(training[100:]))
    every = {g for t in training for g in ngrams(words_of(t), 5)}
    assert len(index.table) == len(every) and index.documents == 300
    new = [fables.story(10_000 + i) for i in range(50)] + ["never said by anybody", ""]
    grams = [g for t in new for g in ngrams(words_of(t), 5)]
    share = measures(new, index)["copied_5"]
    assert share == sum(g in every for g in grams) / len(grams) and 0 < share < 1
    assert measures(training[:3], index)["copied_5"] == 1
    assert np.isnan(measures(["short"], index)["copied_5"])
    assert index.copied("b a " * 20)[0] == 0                       # order counts
    small = TrainingIndex(n=5, limit=2000).add(training)           # bounded, and still unbiased
    assert len(small.table) <= 2000 and small.halvings >= 2
    assert measures(new, small)["copied_5"] == pytest.approx(share, abs=0.06)
    assert small.copied(new[0])[1] < index.copied(new[0])[1]


def test_documents_of_a_spec(fables):
    assert list(documents_of(SPEC, "train", 2)) == [fables.story(0), fables.story(1)]
    with pytest.raises(UserError, match="names no corpus"):
        documents_of({"model": {}})
    index = TrainingIndex().add(documents_of(SPEC))
    out = reference_measures(SPEC, 20, index)
    assert out["sound"] == out["parsed"] == out["facts_right"] == 1 and 0 < out["copied_8"] < 1


# -- fables --------------------------------------------------------------------------------------

def test_names_and_facts_are_checked_exactly(fables):
    stories = [fables.story(i) for i in range(200)]
    good = fable_verdicts(stories, fables)
    assert good["parsed"].all() and good["sound"].all() and (good["read"] == 1).all()
    assert (good["facts"] == good["facts_right"]).all() and (good["facts"] > 0).all()

    hero = fables.subject(0)
    story = next(s for s in stories if s.count(hero["name"] + " ") > 1 and hero["home"] in s
                 and fables.subject(1)["name"] not in s)
    at = story.rindex(hero["name"] + " ")
    other = fables.subject(1)["name"]
    renamed = story[:at] + other + story[at + len(hero["name"]):]
    home = next(h for h in (fables.subject(k)["home"] for k in range(40)) if h != hero["home"])
    moved = story.replace(hero["home"], home)
    v = fable_verdicts([renamed, moved, story[:60], "My cat is a robot.", ""], fables)
    assert v["name_slips"].tolist()[:3] == [1, 0, 0] and not v["sound"][0] and v["parsed"][0]
    assert v["fact_slips"][1] >= 1 and v["facts_right"][1] == v["facts"][1] - 1
    assert v["unfinished"].tolist() == [False, False, True, False, True]
    assert v["sound"].tolist() == [False, False, True, False, False]
    assert v["read"][3] < 0.3 and not fable_verdicts([story], Fables(seed=9, facts=40))["sound"][0]


def run_folders(tmp_path, fables) -> pd.DataFrame:
    """Two runs with samples: the small one (listed last) writes worse."""
    from analysis.runs import load_runs
    good = [fables.story(i) for i in range(6)]
    for name, matmul, texts in (("a-large", 5000, good), ("b-small", 100, ["Once" + t[4:40] + " xx"
                                                                          for t in good])):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "spec.yaml").write_text(json.dumps(SPEC))
        (folder / "summary.json").write_text(json.dumps({
            "status": "finished", "name": name, "identity": name, "params": {"matmul": matmul},
            "tokens": 64, "flops": 10, "val_loss": 2.0, "steps_done": 20,
            "data": {"corpus": "fables", "tokenizer": "bpe:512"}}))
        (folder / "metrics.jsonl").write_text('{"step": 20, "tokens": 64, "val/loss": 2.0}\n')
        rows = [{"step": 10 * (i // 3), "tokens": 32 * (i // 3), "prompt": t[:4], "text": t}
                for i, t in enumerate(texts)]
        (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return load_runs(tmp_path / "runs")


def test_tables_of_samples(tmp_path, fables):
    from analysis.runs import load_samples
    runs = run_folders(tmp_path, fables)
    samples = load_samples(runs)
    table = sample_table(samples, runs, by=("run", "step"))
    assert table["run"].tolist() == ["b-small"] * 2 + ["a-large"] * 2      # by size, then step
    assert table["step"].tolist() == [0, 10] * 2 and (table["n_texts"] == 3).all()
    assert table["n_params"].tolist() == [100, 100, 5000, 5000]
    large = table[table["run"] == "a-large"]
    assert (large["sound"] == 1).all() and (large["facts_right"] == 1).all()
    assert (table[table["run"] == "b-small"]["sound"] == 0).all()
    single = sample_table(samples.drop_duplicates(["run", "prompt"]), by=("run", "prompt"))
    assert "sound" not in single and set(single["text"]) <= set(samples["text"])
    assert "sound" in sample_table(runs)                                   # a table of runs will do
    (tmp_path / "runs" / "b-small" / "spec.yaml").write_text("data: [")
    assert "b-small" in sample_table(samples, runs).attrs["notes"][0]

    prompts = list(dict.fromkeys(samples["prompt"]))
    sides = side_by_side(samples, runs=runs)
    assert list(sides.columns) == [("b-small", 10), ("a-large", 10)]
    every = side_by_side(samples, prompts[:1], runs, steps="all")
    assert every.shape == (1, 4) and every.columns[3] == ("a-large", 10)
    assert every.loc[prompts[0], ("a-large", 0)] == fables.story(0)
    for call, message in ((lambda: side_by_side(samples, ["Hm"]), "no sample begins with 'Hm'"),
                          (lambda: side_by_side(samples, steps="first"), "last, all"),
                          (lambda: sample_table(samples.iloc[:0]), "no samples"),
                          (lambda: sample_table(runs.drop(columns="where")), "no text")):
        with pytest.raises(UserError, match=message):
            call()


def test_fresh_samples_are_those_of_the_command(tmp_path):
    letters = string.ascii_letters + " .,!?'\"\n-:"
    tokenizer = BytePairTokenizer("letters", r"[^\r]", {c.encode(): i for i, c in
                                                        enumerate(letters)}, {EOT: 62}, 64)
    folder = tmp_path / "run-1"
    tokenizer.save(folder)
    net = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=64, init_std=0.5),
              torch.Generator().manual_seed(0))
    checkpoint.save(folder / "checkpoints" / "best.pt",
                    {"model": net.state_dict(), "config": asdict(net.config), "step": 7})
    (folder / "summary.json").write_text('{"batch": {"tokens": 8}}')
    found = fresh_samples(folder, ["Once", "A cat sat"], 2, max_new_tokens=40, temperature=2.0,
                          seed=5)
    assert found["sample"].tolist() == [0, 1, 0, 1] and set(found["run"]) == {"run-1"}
    assert (found["step"] == 7).all() and (found["tokens"] == 56).all()
    writer = slm.load(folder)
    for _, row in found.iterrows():
        assert row.text == writer.generate(row.prompt, 40, temperature=2.0, seed=5 + row["sample"])
        assert row.ended == (len(row.text) < len(row.prompt) + 40)
    table = sample_table(found, by=("run",))
    assert table["ended"][0] == found["ended"].mean() and table["n_texts"][0] == 4
    with pytest.raises(UserError, match="at least 1"):
        fresh_samples(folder, [])
