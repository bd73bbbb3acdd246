"""Text to ids and back: tiktoken encodings, a BPE trained on the corpus, SentencePiece models.

Every tokenizer has one id, `eot`, that ends a document. Ids from n_vocab up to vocab_size are
padding: the model has them for speed, no text gives them and none may be sampled.
"""
from __future__ import annotations

import base64
import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Callable, Iterable

import numpy as np

from slm import screen
from slm.corpora import EOT, Corpus
from slm.errors import UserError

FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
TIKTOKEN_VOCABS = {"gpt2": 50257, "r50k_base": 50257, "p50k_base": 50281, "p50k_edit": 50284,
                   "cl100k_base": 100277, "o200k_base": 200019, "o200k_harmony": 201088}
MIN_BPE, MAX_BPE = 257, 2**20  # the bytes and the end of text; beyond 2^20 surely a slip


class Tokenizer(ABC):
    """What the project asks of a tokenizer.

    Attributes: name; n_vocab: ids in use, eot included; vocab_size: n_vocab as stated by the
    name, padded to a multiple of 64; eot: the id that ends a document.
    """

    name: str
    n_vocab: int
    vocab_size: int
    eot: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""

    @abstractmethod
    def encode_documents(self, documents: list[str]) -> np.ndarray:
        """Ids of many documents, each followed by eot: integers (n_ids,).

        Precondition: no document holds a literal <|endoftext|>.
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, never an error."""

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for: int32 (vocab_size,); 0 for eot and padding."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of all that decides the ids."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write what load_tokenizer needs into a folder."""


class BytePairTokenizer(Tokenizer):
    """A tiktoken.Encoding of our own making, so that it can be saved and loaded as text.

    Args: ranks: bytes of each token -> id; pattern: the regex that cuts a text first;
        special: the special tokens, <|endoftext|> among them.
    """

    def __init__(self, name: str, pattern: str, ranks: dict[bytes, int], special: dict[str, int],
                 vocab_size: int):
        import tiktoken
        self.name, self.pattern, self.ranks, self.special = name, pattern, ranks, special
        self.encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks,
                                          special_tokens=special)
        self.eot = special[EOT]
        self.n_vocab = self.encoding.n_vocab
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def encode_documents(self, documents: list[str]) -> np.ndarray:
        if not documents:
            return np.empty(0, dtype=np.uint32)
        # One call for many documents: twice as fast as encode_ordinary_batch, for it makes no
        # future for every story of 800 bytes. Of the specials only the separator is special.
        joined = EOT.join(documents) + EOT
        return self.encoding.encode_to_numpy(joined, allowed_special={EOT}, disallowed_special=())

    def decode(self, ids: Iterable[int]) -> str:
        table = self._bytes_of
        return b"".join(table.get(int(i), b"\xff") for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        lengths, n = np.zeros(self.vocab_size, dtype=np.int32), len(self.ranks)
        ids = np.fromiter(self.ranks.values(), dtype=np.int64, count=n)
        lengths[ids] = np.fromiter(map(len, self.ranks), dtype=np.int32, count=n)
        return lengths

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        return ({i: token for token, i in self.ranks.items()}
                | {i: token.encode() for token, i in self.special.items()})

    @cached_property
    def _payload(self) -> dict:
        ranks = "\n".join(f"{base64.b64encode(token).decode()} {i}"
                          for token, i in sorted(self.ranks.items(), key=lambda item: item[1]))
        return {"kind": "bpe", "name": self.name, "vocab_size": self.vocab_size,
                "pattern": self.pattern, "special": self.special, "ranks": ranks}

    @cached_property
    def fingerprint(self) -> str:
        return _sha256(self._payload)

    def save(self, folder: str | Path) -> None:
        _write(Path(folder), self._payload, self.fingerprint)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file. Its eos piece ends a document; without one, an id is added.

    Many such models change the text (NFKC, spaces); prepare says so where they do.
    """

    def __init__(self, file: Path, name: str):
        try:
            import sentencepiece
        except ImportError:
            raise UserError("data.tokenizer: sentencepiece:<model file> needs the package "
                            "sentencepiece: pip install sentencepiece") from None
        try:
            self.model = file.read_bytes()
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except OSError as e:
            raise UserError(f"data.tokenizer: {file}: can't be read ({e.strerror})") from None
        except RuntimeError:
            raise UserError(f"data.tokenizer: {file}: not a SentencePiece model") from None
        self.name = name
        pieces, eos = self.processor.get_piece_size(), self.processor.eos_id()
        self.eot = eos if eos >= 0 else pieces
        self.n_vocab = max(pieces, self.eot + 1)
        self.vocab_size = pad64(self.n_vocab)

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def encode_documents(self, documents: list[str]) -> np.ndarray:
        ids: list[int] = []
        for document in self.processor.encode(documents, num_threads=1):
            ids += document
            ids.append(self.eot)
        return np.array(ids, dtype=np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        pieces = self.processor.get_piece_size()
        return self.processor.decode([int(i) for i in ids if int(i) < pieces])

    def token_bytes(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        p = self.processor
        for i in range(p.get_piece_size()):
            if p.is_byte(i):
                lengths[i] = 1
            elif not (p.is_control(i) or p.is_unknown(i) or p.is_unused(i)):
                lengths[i] = len(p.id_to_piece(i).replace("\u2581", " ").encode())
        return lengths

    @cached_property
    def _payload(self) -> dict:
        return {"kind": "sentencepiece", "name": self.name, "vocab_size": self.vocab_size,
                "model_sha256": hashlib.sha256(self.model).hexdigest()}

    @cached_property
    def fingerprint(self) -> str:
        return _sha256(self._payload)

    def save(self, folder: str | Path) -> None:
        (Path(folder) / SENTENCEPIECE_FILE).write_bytes(self.model)
        _write(Path(folder), self._payload, self.fingerprint)


def pad64(n: int) -> int:
    """n rounded up to a multiple of 64: matrix shapes that GPUs like."""
    return -(-n // 64) * 64


def nominal_vocab(name: str) -> int:
    """The padded vocabulary that a name promises: gpt2 -> 50304, bpe:4096 -> 4096. Loads nothing,
    but for sentencepiece, where only the model file can tell.

    Raises: UserError: unknown name, bpe of an impossible size, not a SentencePiece model.
    """
    if name in TIKTOKEN_VOCABS:
        return pad64(TIKTOKEN_VOCABS[name])
    kind, _, size = name.partition(":")
    if kind == "sentencepiece" and size:
        return SentencePieceTokenizer(Path(size).expanduser(), name).vocab_size
    if kind != "bpe":
        near = difflib.get_close_matches(name, [*TIKTOKEN_VOCABS, "bpe:4096"], 1)
        raise UserError(f"data.tokenizer: unknown tokenizer {name!r}"
                        + (f"; did you mean {near[0]}?" if near else "")
                        + f" (known: {', '.join(TIKTOKEN_VOCABS)}, bpe:<vocab_size>, "
                        "sentencepiece:<model file>)")
    if not size.isdecimal() or not MIN_BPE <= int(size) <= MAX_BPE:
        raise UserError(f"data.tokenizer: {name!r}: bpe:<vocab_size> wants a whole number from "
                        f"{MIN_BPE} (the 256 bytes and the end of text) to {MAX_BPE}")
    return pad64(int(size))


def identity(name: str) -> str:
    """What a tokenizer is, told without loading it: with the corpus, the key of prepared data.

    tiktoken's vocabularies are pinned by sha256, so their names are enough, and a BPE is decided
    by its size and the corpus; of a SentencePiece model the file is hashed.
    Raises: UserError: unknown name, model file that can't be read.
    """
    kind, _, argument = name.partition(":")
    if kind != "sentencepiece" or not argument:
        nominal_vocab(name)  # raises for an unknown name
        return name
    file = Path(argument).expanduser()
    try:
        return f"sentencepiece:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    except OSError as e:
        raise UserError(f"data.tokenizer: {file}: can't be read ({e.strerror})") from None


def get_tokenizer(name: str, corpus: Corpus | None, cache_dir: str | Path,
                  say: Callable[[str], None] = screen.say) -> Tokenizer:
    """The tokenizer of a name.

    Args: name: gpt2 or another of tiktoken's, bpe:<vocab_size>, sentencepiece:<model file>;
        corpus: what a bpe is trained on (its train split); cache_dir: where a trained one is
        kept, by corpus and size; say: told what was decided for the user.
    Raises: UserError: unknown name, a vocabulary that can't be fetched, bpe without a
        corpus or training text.
    """
    kind, _, argument = name.partition(":")
    if kind == "sentencepiece" and argument:
        file = Path(argument).expanduser()
        return SentencePieceTokenizer(file, f"sentencepiece:{file.name}")
    vocab_size = nominal_vocab(name)
    if kind != "bpe":
        from slm.vocabularies import published
        pattern, ranks, special = published(name)
        return BytePairTokenizer(name, pattern, ranks, special, vocab_size)
    if corpus is None:
        raise UserError(f"data.tokenizer: {name} is trained on a corpus, and there is none here")
    from slm.corpora.text import no_documents
    from slm.vocabularies import TRAINER, trained
    key = hashlib.sha256(f"{corpus.fingerprint}|{argument}|{TRAINER}".encode()).hexdigest()
    folder = Path(cache_dir) / "tokenizers" / f"bpe-{argument}-{key[:12]}"
    if (folder / FILE).exists():
        return load_tokenizer(folder)
    if next(iter(corpus.documents("train")), None) is None:
        raise no_documents(corpus, "train")
    pattern, ranks, special = trained(corpus.documents("train"), int(argument), say)
    tokenizer = BytePairTokenizer(name, pattern, ranks, special, vocab_size)
    tokenizer.save(folder)
    return tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into a folder; needs no network and no corpus.

    Raises: UserError: no tokenizer there, or not as it was written.
    """
    file = Path(folder) / FILE
    try:
        payload = json.loads(file.read_text(encoding="utf-8"))
        sha256 = payload.pop("sha256")
        if _sha256(payload) != sha256:
            raise ValueError
        if payload["kind"] == "sentencepiece":
            tokenizer = SentencePieceTokenizer(Path(folder) / SENTENCEPIECE_FILE, payload["name"])
            if tokenizer.fingerprint != sha256:
                raise ValueError
            return tokenizer
        lines = (line.split() for line in payload["ranks"].splitlines())
        ranks = {base64.b64decode(token): int(i) for token, i in lines}
        return BytePairTokenizer(payload["name"], payload["pattern"], ranks, payload["special"],
                                 payload["vocab_size"])
    except OSError as e:
        raise UserError(f"{file}: no tokenizer here ({e.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: not a tokenizer of this project, or damaged") from None


def _sha256(payload: dict) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, payload: dict, sha256: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{FILE}.part"
    part.write_text(json.dumps(payload | {"sha256": sha256}, indent=1), encoding="utf-8")
    part.replace(folder / FILE)
