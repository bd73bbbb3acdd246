"""How much of the validation text was trained on: against a count by sets of tuples."""
import json

import numpy as np
import pytest
from tiny import only_run, write_spec

import run
from slm import overlap
from slm.prepare import open_prepared

EOT = 7
LENGTHS = (0, 1, 12, 13, 14, 40, 200)


def text(rng, planted=(), n=60, ids=6) -> list[tuple[int, ...]]:
    """Documents of few different ids, of all awkward lengths, with some of others among them."""
    docs = [tuple(rng.integers(0, ids, rng.choice(LENGTHS)).tolist()) for _ in range(n)]
    for i, doc in enumerate(planted):
        docs.insert(3 * i, doc)
    return docs


def write(folder, train, val, dtype="uint16") -> dict:
    meta = {"vocab_size": 8, "eot": EOT, "dtype": dtype, "train": {}, "val": {}}
    for name, docs in (("train", train), ("val", val)):
        ids = np.array([i for doc in docs for i in (*doc, EOT)], dtype)
        ids.tofile(folder / f"{name}.bin")
        meta[name]["tokens"] = len(ids)
    return meta


def by_sets(train, val) -> tuple[int, int, int, int]:
    """13-grams of val, those in train, documents of val, those in train."""
    grams = [doc[i:i + 13] for doc in val for i in range(len(doc) - 12)]
    there = {doc[i:i + 13] for doc in train for i in range(len(doc) - 12)}
    whole = [doc for doc in val if doc]
    return (len(grams), sum(g in there for g in grams), len(whole),
            sum(doc in set(train) for doc in whole))


def counts(found: dict) -> tuple[int, ...]:
    return tuple(found[k] for k in ("val_ngrams", "val_ngrams_in_train", "val_documents",
                                    "val_documents_in_train"))


@pytest.mark.parametrize("chunk", [2**20, 300, 31, 13])
@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_those_of_sets_wherever_chunks_are_cut(chunk, seed, tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "CHUNK_TOKENS", chunk)
    rng = np.random.default_rng(seed)
    train = text(rng)
    long = max(train, key=len)
    val = text(rng, planted=(long, train[5], long[:50], (1, 2), long[100:140] + (3, 3)))
    meta = write(tmp_path, train, val, "uint32" if seed else "uint16")
    found = overlap.measure(tmp_path, meta)
    assert counts(found) == by_sets(train, val) and found["sample"] == 1
    assert found["val_ngrams_in_train"] > 100 and found["val_documents_in_train"] >= 2


def test_an_ngram_across_documents_is_none(tmp_path):
    """Twelve shared ids to both sides of an end of text: 24 in a row, but no document has 13."""
    docs = [tuple(range(6)) * 2, tuple(range(6)) * 2]
    assert counts(overlap.measure(tmp_path, write(tmp_path, docs, docs))) == (0, 0, 2, 2)
    assert "has no 13-grams" in overlap.describe(overlap.measure(tmp_path, write(tmp_path, docs,
                                                                                docs)))


def test_a_sample_of_a_large_text_is_unbiased(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    train = text(rng, n=400)
    val = text(rng, planted=train[::2], n=200)
    meta = write(tmp_path, train, val)
    n, shared, *docs = by_sets(train, val)
    monkeypatch.setattr(overlap, "MOST_NGRAMS", meta["val"]["tokens"] // 4)
    found = overlap.measure(tmp_path, meta)
    assert found["sample"] == pytest.approx(0.25, rel=1e-3) and list(counts(found)[2:]) == docs
    assert found["val_ngrams"] == pytest.approx(n / 4, rel=0.1)
    assert found["val_ngrams_in_train"] / found["val_ngrams"] == pytest.approx(shared / n, abs=0.04)
    assert "(a sample of 25.0%)" in overlap.describe(found)


def test_it_is_kept_in_meta_json_printed_and_recorded(tmp_path, capsys):
    spec = write_spec(tmp_path, train__steps=2)
    assert run.main([str(spec)]) == 0
    meta_file = next((tmp_path / "data").glob("*/meta.json"))
    meta = json.loads(meta_file.read_text())
    prepared = open_prepared(meta_file.parent)
    docs = []
    for ids in (prepared.train, prepared.val):
        parts = np.split(ids.astype(int), np.flatnonzero(ids == meta["eot"]) + 1)[:-1]
        docs.append([tuple(p[:-1].tolist()) for p in parts])
    assert counts(meta["overlap"]) == by_sets(*docs)
    assert overlap.describe(meta["overlap"]) in capsys.readouterr().out
    facts = json.loads((only_run(tmp_path) / "summary.json").read_text())
    assert facts["data"]["overlap"] == meta["overlap"]
    assert facts["horizon"]["unique_tokens"] == meta["train"]["tokens"]
    assert facts["horizon"]["epochs"] == 2 * 128 / meta["train"]["tokens"]
    # a folder of an older version serves as it did
    del meta["overlap"]
    meta_file.write_text(json.dumps(meta))
    assert run.main([str(spec), "--train.seed=1"]) == 0
    assert "overlap of validation and training text not measured" in capsys.readouterr().out
