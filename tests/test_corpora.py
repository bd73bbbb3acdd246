"""Corpora: what is read, how it is split, and what bad input gets."""
from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm.corpora import EOT, files, hub, open_corpus
from slm.errors import UserError
from slm.schema import Data

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [f"Story {i}.\nA «fox» said \"{'la ' * (i % 7)}\"." for i in range(400)]
TINY = "data/{}-00000-of-00001-2d5a1467fff1081b.parquet"


def write(path: Path, documents: list[str], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        path.write_text("".join(f"{d}\n{EOT}\n" for d in documents), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, column: d}) + "\n" for d in documents))
    else:
        pq.write_table(pa.table({"id": [1] * len(documents), column: documents}), path)
    return path


def corpus(tmp_path: Path, path, kind: str = "files", **keys):
    return open_corpus(Data(corpus=kind, path=str(path), cache=str(tmp_path / "cache"), **keys))


def both(c) -> tuple[list[str], list[str]]:
    return list(c.documents("train")), list(c.documents("val"))


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_every_kind_gives_the_same_documents(tmp_path, kind):
    c = corpus(tmp_path, write(tmp_path / f"a{kind}", DOCUMENTS))
    train, val = both(c)
    assert sorted(train + val) == sorted(DOCUMENTS)
    assert [d for d in DOCUMENTS if d in set(val)] == val  # in their order
    assert both(c) == (train, val)  # restartable


def test_held_out_share_depends_on_the_text_alone(tmp_path):
    shuffled = random.Random(0).sample(DOCUMENTS, len(DOCUMENTS)) + DOCUMENTS[:50]
    one = corpus(tmp_path, write(tmp_path / "a.txt", DOCUMENTS), val_fraction=0.25)
    two = corpus(tmp_path, write(tmp_path / "b.jsonl", shuffled), val_fraction=0.25)
    assert set(both(one)[1]) == set(both(two)[1])
    assert not set(both(two)[0]) & set(both(two)[1])  # though 50 documents are there twice
    assert 60 < len(both(one)[1]) < 140
    assert len(both(corpus(tmp_path, tmp_path / "a.txt", val_fraction=0.01))[1]) < 20


def test_own_validation_part_and_its_duplicates(tmp_path):
    write(tmp_path / "d" / "train.txt", DOCUMENTS)
    write(tmp_path / "d" / "validation.jsonl", DOCUMENTS[:3] + ["another"])
    write(tmp_path / "d" / "test.txt", ["never seen"])
    write(tmp_path / "d" / "notes.txt", ["neither"])
    c = corpus(tmp_path, tmp_path / "d")
    train, val = both(c)
    assert val == DOCUMENTS[:3] + ["another"] and train == DOCUMENTS[3:]
    notes = "\n".join(c.notes)
    assert "3 training documents equal a validation document" in notes
    assert "validation.jsonl" in notes and "not used" in notes and "test.txt" in notes


def test_folders_and_globs_name_parts_too(tmp_path):
    write(tmp_path / "test" / "train" / "0.txt", DOCUMENTS[:5])
    write(tmp_path / "test" / "val" / "0.txt", DOCUMENTS[5:])
    expected = DOCUMENTS[:5], DOCUMENTS[5:]
    assert both(corpus(tmp_path, tmp_path / "test")) == expected  # the root's own name is no part
    assert both(corpus(tmp_path, tmp_path / "test" / "**" / "*.txt")) == expected


def test_one_of_two_kinds_with_the_same_name(tmp_path):
    write(tmp_path / "d" / "a.txt", DOCUMENTS)
    write(tmp_path / "d" / "a.parquet", DOCUMENTS)
    c = corpus(tmp_path, tmp_path / "d")
    assert len(sum(both(c), [])) == len(DOCUMENTS)
    assert c.notes == ["data: a.txt left out: a.parquet holds the same by its name"]


@pytest.mark.parametrize("block", [1, 5, 13, 14, 64])
def test_separator_across_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "BLOCK_BYTES", block)
    text = f"\ufeffone é\r\ntwo\n{EOT}\n\n{EOT}three<|endof{EOT}   \n{EOT}last"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert list(files.read_file(tmp_path / "a.txt", "text")) == ["one é\r\ntwo", "three<|endof",
                                                                 "last"]


def test_fingerprint_follows_the_text(tmp_path):
    a = corpus(tmp_path, write(tmp_path / "a.txt", DOCUMENTS)).fingerprint
    assert corpus(tmp_path, write(tmp_path / "b.txt", DOCUMENTS)).fingerprint == a
    assert corpus(tmp_path, tmp_path / "a.txt", val_fraction=0.5).fingerprint != a
    assert corpus(tmp_path, write(tmp_path / "b.txt", DOCUMENTS[1:])).fingerprint != a
    for remembered in (tmp_path / "cache" / ".fingerprints").iterdir():
        assert str(tmp_path) not in remembered.read_text()  # no path is kept


def bad(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Files that can't be used, each with what its message must say."""
    write(tmp_path / "fine.txt", DOCUMENTS)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "eot.parquet", ["fine", f"a {EOT} b"])
    write(tmp_path / "eot.jsonl", ["fine", f"a {EOT} b"])
    write(tmp_path / "column.parquet", ["x"], column="story")
    write(tmp_path / "column.jsonl", ["x"], column="story")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "number.parquet")
    (tmp_path / "latin.txt").write_bytes(f"fine{EOT}caf\xe9".encode("latin-1"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "half.jsonl").write_text('{"text": "a\\ud83d"}\n')
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "eot.parquet").read_bytes()[:90])
    (tmp_path / "story.pdf").write_text("x")
    return {
        "fine.tx": "did you mean", "empty": "(empty)", "*.md": "no .parquet, .jsonl, .txt",
        "story.pdf": "unknown kind of file '.pdf'; known: .parquet, .jsonl, .txt",
        "eot.parquet": "document 2: holds a literal <|endoftext|>",
        "eot.jsonl": "document 2: holds a literal <|endoftext|>",
        "column.parquet": "no column 'text' (there: id, story)",
        "column.jsonl": "line 1: no column 'text' (there: id, story)",
        "number.parquet": "document 1: column 'text' holds int",
        "latin.txt": "latin.txt: not UTF-8 text at byte 20 (0xe9)",
        "latin.jsonl": "latin.jsonl: not UTF-8 text at byte 27 (0xe9)",
        "broken.jsonl": "line 2: not JSON", "list.jsonl": "there: no object",
        "half.jsonl": "half of a surrogate pair at character 1",
        "broken.parquet": "not a sound .parquet",
    }


def test_bad_input_gets_one_clear_line(tmp_path):
    for name, message in bad(tmp_path).items():
        with pytest.raises(UserError) as e:
            list(corpus(tmp_path, tmp_path / name).documents("train"))
        assert message in str(e.value), str(e.value)
        assert "\n" not in str(e.value)
    for kind in ("files", "hub"):
        with pytest.raises(UserError, match="data.path"):
            open_corpus(Data(corpus=kind))


def test_one_document_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 2**20)
    (tmp_path / "a.txt").write_text("one two " * 300_000)
    with pytest.raises(UserError, match="between documents"):
        list(files.read_file(tmp_path / "a.txt", "text"))


# -- TinyStories and the Hub -------------------------------------------------------------------


def test_real_tinystories(tmp_path, reference_data):
    c = corpus(tmp_path, reference_data / "tinystories", "tinystories")
    train, val = both(c)
    assert (len(train), sum(len(d.encode()) for d in train)) == (9835, 8_088_922)
    assert (len(val), sum(len(d.encode()) for d in val)) == (3118, 2_466_724)
    assert c.notes == ["data: tinystories from train.parquet, the first choice "
                       "(also there: train.txt)"]
    assert list(files.read_file(reference_data / "tinystories" / "train.txt", "text")) == train


@pytest.mark.parametrize("train, val", [
    (TINY.format("train"), TINY.format("validation")),
    ("TinyStories-train.txt", "TinyStories-valid.txt"),
    ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt")])
def test_tinystories_in_the_hubs_layout(tmp_path, train, val):
    write(tmp_path / "d" / train, DOCUMENTS[:9])
    write(tmp_path / "d" / val, DOCUMENTS[9:])
    assert both(corpus(tmp_path, tmp_path / "d", "tinystories")) == (DOCUMENTS[:9], DOCUMENTS[9:])


def test_tinystories_elsewhere(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        corpus(tmp_path, tmp_path / "nowhere", "tinystories")
    with pytest.raises(UserError, match="no TinyStories in .* wanted one of data/train-"):
        corpus(tmp_path, tmp_path, "tinystories")


def run_alone(code: str, **variables: str) -> str:
    """Run code in a process whose Hub is a closed port; returns what it prints."""
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True,
                          check=True).stdout


ASK = """
import sys
from slm.corpora import open_corpus
from slm.errors import UserError
from slm.schema import Data
try:
    c = open_corpus(Data(corpus="tinystories", cache="unused"))
    print([len(list(c.documents(s))) for s in ("train", "val")])
except UserError as e:
    print(e, "datasets" in sys.modules)
"""


def test_no_network_and_no_copy_fails_before_anything_slow(tmp_path):
    out = run_alone(ASK, HF_HOME=str(tmp_path))
    assert out == ("roneneldan/TinyStories can't be fetched: the Hugging Face Hub can't be reached "
                   "and no copy is cached; set data.path to a local copy of it, or use "
                   "--data.corpus=fables False\n")


def test_no_network_but_a_cached_copy(tmp_path):
    """A dataset that `datasets` once loaded and cached is used without a network."""
    source, home = tmp_path / "TinyStories", tmp_path / "home"
    write(source / TINY.format("train"), DOCUMENTS)
    write(source / TINY.format("validation"), ["held out"])
    run_alone(f"import datasets; datasets.load_dataset({str(source)!r})", HF_HOME=str(home))
    cached, = (home / "datasets").glob("*/default/*/*/dataset_info.json")
    target = home / "datasets/roneneldan___tiny_stories/default/0.0.0"
    shutil.copytree(cached.parent, target / cached.parent.name)
    assert run_alone(ASK, HF_HOME=str(home)) == "[400, 1]\n"
    assert run_alone(ASK, HF_HOME=str(home), HF_HUB_OFFLINE="1") == "[400, 1]\n"


def test_hub_corpus_with_a_folder_for_a_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    write(tmp_path / "d" / "train.parquet", DOCUMENTS, column="story")
    c = corpus(tmp_path, tmp_path / "d", "hub", column="story")
    train, val = both(c)
    assert sorted(train + val) == sorted(DOCUMENTS) and 5 < len(val) < 50
    assert c.fingerprint == corpus(tmp_path, tmp_path / "d", "hub", column="story").fingerprint
    with pytest.raises(UserError, match=r"no column 'text' \(there: id, story\)"):
        list(corpus(tmp_path, tmp_path / "d", "hub").documents("train"))


def test_probe(monkeypatch):
    import socket
    import threading
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert hub.reachable(here)
        monkeypatch.setenv("https_proxy", here)  # then the proxy is what must be reachable
        assert hub.reachable("https://host.invalid")
        monkeypatch.delenv("https_proxy")
    assert not hub.reachable("http://127.0.0.1:9")
    asked, over = threading.Event(), threading.Event()

    def a_name_server_that_does_not_answer(*args, **kwargs):
        asked.set()
        over.wait()
        raise OSError

    monkeypatch.setattr(socket, "create_connection", a_name_server_that_does_not_answer)
    assert not hub.reachable(here, timeout_sec=0.05)
    assert asked.wait(10)
    over.set()
