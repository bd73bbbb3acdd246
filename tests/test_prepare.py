"""Prepare: right ids on disk, once, whole or not at all, in bounded memory."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slm import mirror, tokenise
from slm import prepare as prepare_module
from slm.corpora import EOT
from slm.errors import UserError
from slm.loader import validation
from slm.prepare import find_prepared, open_prepared, prepare
from slm.schema import Data
from slm.tokenizer import BytePairTokenizer
from slm.vocabularies import GPT2_PATTERN, trained

ROOT = Path(__file__).resolve().parent.parent


class Fake:
    """A corpus with a known floor: document i of n has surprisal i."""

    name, floor_known = "fake", True

    def __init__(self, train: int = 900, val: int = 60, text: str = "Doc {} «é».\nTwo."):
        self.n = {"train": train, "val": val}
        self.text = text
        self.fingerprint = f"{train}-{val}-{hash(text)}"
        self.notes = ["a choice"]

    def documents(self, split):
        return (self.text.format(i if split == "train" else -i) for i in range(self.n[split]))

    def surprisals(self, split):
        return (float(i) for i in range(self.n[split]))

    def entropy(self):
        return 12.5


@pytest.fixture
def fake(monkeypatch):
    """Makes prepare use a given corpus."""
    def use(corpus):
        monkeypatch.setattr(prepare_module, "open_corpus", lambda data: corpus)
        return corpus
    return use


def data(tmp_path: Path, **keys) -> Data:
    return Data(**({"cache": str(tmp_path / "cache"), "tokenizer": "gpt2"} | keys))


def text_file(tmp_path: Path, n: int = 3000) -> Path:
    file = tmp_path / "stories.txt"
    file.write_text("".join(f"Story {i}. The fox went to see the big house.\n{EOT}\n"
                            for i in range(n)))
    return file


def documents_of(ids: np.ndarray, tokenizer) -> list[str]:
    ends = np.flatnonzero(ids == tokenizer.eot)
    return [tokenizer.decode(part[part != tokenizer.eot]) for part in np.split(ids, ends + 1)[:-1]]


def test_what_is_written(tmp_path, fake):
    corpus = fake(Fake())
    said = []
    p = prepare(data(tmp_path), said.append)
    for split, ids in (("train", p.train), ("val", p.val)):
        texts = list(corpus.documents(split))
        assert documents_of(ids, p.tokenizer) == texts
        part = p.meta[split]
        n_bytes = sum(len(t.encode()) for t in texts)
        assert (part["documents"], part["tokens"]) == (len(texts), len(ids))
        assert part["bytes"] == part["token_bytes"] == n_bytes
        assert part["surprisal_nats"] == sum(range(len(texts)))
    assert p.val_surprisal.tolist() == list(range(60))
    m = p.meta
    assert m["entropy_nats_per_document"] == 12.5 and m["floor_known"] and m["format"] == 1
    assert (m["vocab_size"], m["n_vocab"], m["eot"], m["dtype"]) == (50304, 50257, 50256, "uint16")
    assert (m["corpus"], m["tokenizer"]) == ("fake", "gpt2")
    assert m["corpus_fingerprint"] == corpus.fingerprint
    assert m["tokenizer_fingerprint"] == p.tokenizer.fingerprint
    assert str(tmp_path) not in json.dumps(m)
    assert "a choice" in said and "900 documents" in said[-1]
    assert m["overlap"]["val_documents"] == 60 and "13-grams" in said[-2]


def test_wide_ids_are_not_cut(tmp_path, fake, monkeypatch):
    """More than 65,536 ids: uint32, and an id above 65,535 comes back."""
    ranks = {bytes([i]): i for i in range(256)}
    wide = BytePairTokenizer("wide", GPT2_PATTERN, ranks, {EOT: 70_000}, 70_016)
    monkeypatch.setattr(prepare_module, "get_tokenizer", lambda *args: wide)
    fake(Fake(text="x{}"))
    p = prepare(data(tmp_path), print)
    assert p.train.dtype == np.uint32 and p.train.max() == 70_000
    assert documents_of(p.train, p.tokenizer)[5] == "x5"


def test_blocks_do_not_show(tmp_path, fake, monkeypatch):
    corpus = fake(Fake(train=50))
    whole = prepare(data(tmp_path / "a")).train
    for documents, chars in ((1, 10**6), (7, 10**6), (10**6, 40)):
        monkeypatch.setattr(tokenise, "BLOCK_DOCUMENTS", documents)
        monkeypatch.setattr(tokenise, "BLOCK_CHARS", chars)
        fake(corpus)
        assert np.array_equal(prepare(data(tmp_path / f"{documents}{chars}")).train, whole)


def test_reused_by_what_it_is_made_of(tmp_path, monkeypatch):
    d = data(tmp_path, corpus="files", path=str(text_file(tmp_path)), tokenizer="bpe:300")
    assert find_prepared(d) is None
    first = prepare(d)
    monkeypatch.setattr(prepare_module, "_make", None)  # to make it again would fail
    said = []
    again = prepare(d, said.append)
    assert again.folder == first.folder and find_prepared(d) == first.meta == again.meta
    assert len(said) == 1 and "prepared before" in said[0]
    text_file(tmp_path, 2999)
    for other in (d, data(tmp_path, corpus="files", path=d.path, tokenizer="bpe:301")):
        assert find_prepared(other) is None
        with pytest.raises(TypeError):
            prepare(other)


def test_find_prepared_is_light(tmp_path):
    d = data(tmp_path, corpus="files", path=str(text_file(tmp_path)))
    prepare(d)
    code = ("import sys; from slm.prepare import find_prepared; from slm.schema import Data;"
            f"print(find_prepared(Data(**{d.model_dump(exclude={'fables'})!r}))['eot'],"
            "{'torch', 'tiktoken', 'pandas', 'datasets', 'pyarrow'} & set(sys.modules))")
    assert alone(code).stdout == "50256 set()\n"


def alone(code: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def test_many_processes_prepare_once(tmp_path):
    d = data(tmp_path, corpus="files", path=str(text_file(tmp_path, 20_000)), tokenizer="bpe:400")
    code = ("from slm.prepare import prepare; from slm.schema import Data;"
            f"print(len(prepare(Data(**{d.model_dump(exclude={'fables'})!r})).train))")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    runs = [subprocess.Popen([sys.executable, "-c", code], env=env, text=True,
                             stdout=subprocess.PIPE) for _ in range(5)]
    outs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * 5
    assert sum("data: preparing" in out for out in outs) == 1
    assert sum("prepared before" in out for out in outs) == 4
    assert len({out.splitlines()[-1] for out in outs}) == 1


def test_a_failure_leaves_nothing(tmp_path, fake):
    class Breaks(Fake):
        def documents(self, split):
            yield "one"
            if split == "train":
                raise UserError("the text ends here")

    fake(Breaks())
    with pytest.raises(UserError, match="ends here"):
        prepare(data(tmp_path))
    cache = tmp_path / "cache"
    assert [f.name for f in cache.iterdir() if not f.name.endswith(".lock")] == []
    name = next(cache.iterdir()).name.removesuffix(".lock")
    (cache / f"{name}.part-123").mkdir()  # as a killed process leaves it
    Breaks.documents = Fake.documents
    prepare(data(tmp_path))
    assert not list(cache.glob(".*part*"))


def test_a_folder_that_does_not_match_is_refused(tmp_path, fake):
    fake(Fake())
    folder = prepare(data(tmp_path)).folder
    train, meta = folder / "train.bin", folder / "meta.json"
    whole, described = train.read_bytes(), meta.read_text()
    other = bytes([whole[0] ^ 1]) + whole[1:]
    for content, message in ((whole[:-2], "truncated"), (whole + b"xx", "another file"),
                             (other, "not the file that meta.json describes")):
        train.write_bytes(content)
        for use in (lambda: open_prepared(folder), lambda: prepare(data(tmp_path))):
            with pytest.raises(UserError, match=message) as e:
                use()
            assert "train.bin" in str(e.value) and "delete the folder" in str(e.value)
    train.write_bytes(whole)
    for text, message in ((described[:50], "damaged"), ("{}", "damaged"), ("[]", "damaged"),
                          (described.replace('"format": 1', '"format": 0'), "format 0, not 1"),
                          (described.replace("50257", "70000"), "can't hold 70,000 ids"),
                          (described.replace("uint16", "uint64"), "uint64")):
        meta.write_text(text)
        with pytest.raises(UserError, match=message):
            open_prepared(folder)
    meta.write_text(described)
    train.unlink()
    with pytest.raises(UserError, match="No such file"):
        open_prepared(folder)


def test_nowhere_to_write(tmp_path, fake):
    fake(Fake())
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="data.cache: .*choose another folder"):
        prepare(data(tmp_path))
    if os.geteuid():  # root may write anywhere
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(UserError, match="Permission denied"):
            prepare(data(tmp_path, cache=str(tmp_path / "shut")))


def test_full_disk(tmp_path):
    """A limit on the size of files stands for a disk that is full: one line, nothing left."""
    d = data(tmp_path, corpus="files", path=str(text_file(tmp_path, 20_000)))
    out = alone(f"""
import resource
from slm.errors import UserError
from slm.prepare import prepare
from slm.schema import Data
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    prepare(Data(**{d.model_dump(exclude={'fables'})!r}), lambda line: None)
except UserError as e:
    print(e)
""")
    assert out.stdout.startswith("data.cache: ") and "make room" in out.stdout, out.stderr
    assert out.stdout.count("\n") == 1
    assert not list((tmp_path / "cache").glob("*/meta.json"))
    assert not list((tmp_path / "cache").glob(".*part*"))


@pytest.mark.parametrize("train, val, message", [
    (0, 0, "is empty"), (9, 0, "not enough documents"), (0, 9, "no training documents")])
def test_too_few_documents(tmp_path, fake, train, val, message):
    fake(Fake(train, val))
    with pytest.raises(UserError, match=message):
        prepare(data(tmp_path))


def test_empty_and_single_files(tmp_path):
    (tmp_path / "empty.txt").write_text(f"\n{EOT}\n")
    (tmp_path / "same.txt").write_text(f"the same\n{EOT}\n" * 300)
    for folder, val in (("equal", "a fox"), ("no_val", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.txt").write_text("a fox")
        (tmp_path / folder / "validation.txt").write_text(val)
    for name, message in (("empty.txt", "empty.txt is empty"),
                          ("same.txt", "same.txt: all its documents are the same text"),
                          ("equal", "equal: no training documents are left: each of them equals"),
                          ("no_val", "no_val: no document in its validation part")):
        for tokenizer in ("gpt2", "bpe:300"):
            with pytest.raises(UserError, match=message):
                prepare(data(tmp_path, corpus="files", path=str(tmp_path / name),
                             tokenizer=tokenizer))


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_one_long_document_is_cut_in_two(tmp_path, kind):
    """As in every nanoGPT folder: one text with no mark between its documents."""
    file, text = tmp_path / f"input{kind}", "".join(f"Line {i} «é».\n" for i in range(2000)).strip()
    file.write_text(text if kind == ".txt" else json.dumps({"text": text}) + "\n")
    d = data(tmp_path, corpus="files", path=str(file), val_fraction=0.1, tokenizer="bpe:300")
    said = []
    p = prepare(d, said.append)
    (train,), (val,) = documents_of(p.train, p.tokenizer), documents_of(p.val, p.tokenizer)
    assert train + val == text and len(val) == round(0.1 * len(text))
    assert any("is one document: its last 10.0%" in line for line in said)
    assert ": 1 document, " in said[-1] and "of its 1 document are" in said[-2]
    assert prepare(d).folder == p.folder
    for mode in ("windows", "stories"):
        v = validation(p, mode, block_size=32)
        assert len(p.val) - 32 <= v.tokens <= len(p.val), mode
    assert p.tokenizer.ranks == trained([train], 300)[1]  # on nothing that is held out


def test_end_of_text_inside_a_document(tmp_path, fake):
    fake(Fake(text=f"bad {EOT} {{}}"))
    with pytest.raises(UserError, match="literal <|endoftext|>"):
        prepare(data(tmp_path))


def test_a_tokenizer_that_changes_the_text_is_told(tmp_path, fake, monkeypatch):
    class Lossy(BytePairTokenizer):
        def encode(self, text):
            return super().encode(text.lower())

    ranks = {bytes([i]): i for i in range(256)}
    lossy = Lossy("lossy", GPT2_PATTERN, ranks, {EOT: 256}, 320)
    monkeypatch.setattr(prepare_module, "get_tokenizer", lambda *args: lossy)
    fake(Fake())
    said = []
    prepare(data(tmp_path), said.append)
    assert any("does not give back the text of 60 of 60" in line for line in said)


def test_memory_is_bounded(tmp_path):
    """300 MB of text; the tokenizer is a stand-in, so that only our own bookkeeping counts."""
    out = alone(f"""
import resource
import numpy as np
from slm import prepare as p
from slm.schema import Data
from slm.tokenizer import get_tokenizer
class Many:
    name, floor_known, fingerprint = "many", False, "many"
    def documents(self, split):
        return ("x" * 1000 for _ in range(300_000 if split == "train" else 1000))
gpt2 = get_tokenizer("gpt2", None, {str(tmp_path)!r})
gpt2.encode_documents = lambda documents: np.zeros(len(documents) * 250, dtype=np.uint32)
p.open_corpus, p.get_tokenizer = lambda data: Many(), lambda *args: gpt2
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
p.prepare(Data(cache={str(tmp_path)!r}), lambda line: None)
print((peak() - before) / 1024)
""")
    assert float(out.stdout) < (100 if sys.platform == "linux" else math.inf), out.stderr


def test_fables(tmp_path):
    """The real generator, if small: floor and documents agree with the corpus itself."""
    from slm.corpora import open_corpus
    fables = {"stories": 400, "val_stories": 40, "facts": 50, "zipf": 1.0, "seed": 3}
    d = data(tmp_path, corpus="fables", tokenizer="bpe:600", fables=fables)
    p, corpus = prepare(d), open_corpus(d)
    assert documents_of(p.val, p.tokenizer) == list(corpus.documents("val"))
    assert np.allclose(p.val_surprisal, list(corpus.surprisals("val")))
    assert math.isclose(p.meta["train"]["surprisal_nats"], sum(corpus.surprisals("train")))
    assert math.isclose(p.meta["entropy_nats_per_document"], corpus.entropy())


def test_real_tinystories(tmp_path, reference_data):
    """Counts as published with the sample, from either kind of file."""
    p = prepare(data(tmp_path, corpus="tinystories", path=str(reference_data / "tinystories")))
    assert (p.meta["train"]["tokens"], p.meta["val"]["tokens"]) == (1_995_669, 609_755)
    assert len(np.unique(np.concatenate([p.train, p.val]))) - 1 == 10_349
    text = (reference_data / "tinystories" / "validation.txt").read_text(encoding="utf-8")
    stories = [s.strip() for s in text.split(EOT)][:-1]
    assert documents_of(p.val[:100_000], p.tokenizer)[:400] == stories[:400]


def test_help_is_no_fault(capsys):
    assert prepare_module.main(["--help"]) == 0
    assert "python -m slm.prepare" in capsys.readouterr().out
    assert prepare_module.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as e:
        mirror.main(["--help"])
    assert e.value.code == 0 and "runs/<run>" in capsys.readouterr().out


def test_command(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {steps: 1}\ndata: {corpus: files, tokenizer: gpt2}\n")
    command = [sys.executable, "-m", "slm.prepare", str(tmp_path / "a.yaml"),
               f"--data.path={text_file(tmp_path)}", f"--data.cache={tmp_path / 'c'}"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert len(list((tmp_path / "c").glob("*/meta.json"))) == 1
    out = subprocess.run([*command, "--data.tokenizer=gpt3"], cwd=ROOT, capture_output=True)
    assert out.returncode == 2 and out.stderr.count(b"\n") == 1
