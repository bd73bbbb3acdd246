"""Text from a trained model: `slm.load("runs/<run>").generate("Once upon a time")`, or
`python -m slm.generate runs/<run> "Once upon a time"`.

Each token is computed once (KV cache). A model knows block_size positions; when a text has filled
them, its last half is fed again as a new beginning and generation goes on, so that every later
token sees between half a block and a block of context at about two tokens of work each. (nanoGPT
feeds the last block_size tokens for every new one.)

What a row of a batch becomes depends on its own prompt and seed alone: unequal prompts are padded
on the left and the padding is masked, each row has its own window and its own random numbers.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slm import checkpoint
from slm.decode import Decoder
from slm.errors import UserError
from slm.model import GPT, KVCache
from slm.schema import MAX_SEED
from slm.screen import amount, command, say
from slm.shape import GPTConfig

GROUP = 16   # values of which likeliest looks at the largest first


def likeliest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """x.topk(k) of (b, n): values and their places, (b, k) each; up to twice as fast on a CPU where
    k is far below n.

    Of groups of 16 values, only the k with the largest maxima can hold one of the k largest."""
    m = x.shape[-1] // GROUP                                     # group i: i, m + i, 2 m + i, ...
    if m < 2 * k or x.device.type != "cpu":
        return x.topk(k, dim=-1)
    maxima = x[:, :GROUP * m].unflatten(1, (GROUP, m)).amax(dim=1)
    best = maxima.topk(k, dim=-1, sorted=False)[1]
    places = (best[:, None] + torch.arange(0, GROUP * m, m)[:, None]).flatten(1)     # (b, 16 k)
    rest = torch.arange(GROUP * m, x.shape[-1]).expand(len(x), -1)                   # in no group
    places = torch.cat((places, rest), dim=1)
    values, order = x.gather(1, places).topk(k, dim=-1)
    return values, places.gather(1, order)


def pick(logits: Tensor, u: Tensor, temperature: float, top_k: int | None,
         top_p: float | None) -> Tensor:
    """One token id per row, (b,).

    logits: (b, v) of real ids only. u: (b,) uniform in [0, 1), used to invert the distribution
    function. temperature 0: the likeliest. top_k: among the k likeliest. top_p: among the likeliest
    that together reach this mass (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    ids = None
    if top_k is not None or top_p is not None:
        k = min(top_k or logits.shape[-1], logits.shape[-1])
        logits, ids = likeliest(logits, k)                       # sorted, (b, k) each
    p = (logits.float() / temperature).softmax(dim=-1)
    if top_p is not None:
        p = p * (p.cumsum(dim=-1) - p < top_p)                   # mass before this one < top_p
    cdf = p.cumsum(dim=-1)
    # just below the whole mass, so that rounding can't point past the last possible token
    point = u.clamp(max=1 - 1e-6)[:, None] * cdf[:, -1:]
    choice = torch.searchsorted(cdf, point, right=True)          # first with cdf > point, (b, 1)
    return (choice if ids is None else ids.gather(1, choice)).squeeze(1)


def uniforms(seeds: list[int], n: int) -> Tensor:
    """Random numbers in [0, 1) of each row's own generator on the CPU, (b, n): the same on every
    device, and torch's global generator is never touched."""
    return torch.stack([torch.rand(n, generator=torch.Generator().manual_seed(s)) for s in seeds])


class Batch:
    """Unfinished texts with their cache: feeds what the model has not seen of each."""

    def __init__(self, model: GPT, texts: list[list[int]], room_tokens: int) -> None:
        self.model, self.texts, self.room_tokens = model, texts, room_tokens
        self.block, self.device = model.config.block_size, model.wte.weight.device
        self.begin = [max(0, len(text) - self.block) for text in texts]      # of each window
        self.cache: KVCache | None = None
        self.decoder: Decoder | None = None

    def next_logits(self, new: Tensor | None) -> Tensor:
        """Logits of the next token of every text, (b, v). new: (b,) the last tokens, if any are."""
        if self.cache is not None and self.cache.length < self.cache.size:
            self.decoder = self.decoder or Decoder(self.model, len(self.texts))
            return self.decoder.logits(new, self.cache)
        idx = self._windows()                                                # (b, t)
        h = self.model.hidden(idx, self.cache)                               # (b, t, d)
        return self.model.logits(h[:, -1:])[:, 0]

    def _windows(self) -> Tensor:
        """All windows from their beginning, padded on the left, and an empty cache for them."""
        for i, text in enumerate(self.texts):
            if len(text) - self.begin[i] > self.block:
                self.begin[i] = len(text) - max(1, self.block // 2)
        rows = [text[begin:] for text, begin in zip(self.texts, self.begin)]
        longest = max(len(row) for row in rows)
        pad = [longest - len(row) for row in rows]
        padding = torch.tensor(pad, device=self.device) if any(pad) else None
        self.cache = KVCache(min(self.block, longest + self.room_tokens), padding)
        return torch.tensor([[0] * n + row for n, row in zip(pad, rows)], device=self.device)

    def keep(self, rows: list[int]) -> None:
        """Go on with these texts only."""
        self.texts = [self.texts[i] for i in rows]
        self.begin = [self.begin[i] for i in rows]
        if rows:
            self.cache.keep(torch.tensor(rows, device=self.device))


@torch.inference_mode()
def generate_ids(model: GPT, prompts: list[list[int]], max_new_tokens: int = 100, *,
                 temperature: float = 0.8, top_k: int | None = None, top_p: float | None = None,
                 seeds: list[int] | None = None, eot: int | None = None,
                 n_vocab: int | None = None) -> list[list[int]]:
    """Continue each prompt by up to max_new_tokens; returns prompts with their continuations.

    prompts: token ids, at least one each. eot: a text ends with this id (which stays at its end);
    None: never. n_vocab: only ids below are sampled (default: all). seeds: one a prompt (default
    0, 1, ...); how to sample: see pick. A batch gives what its prompts give one by one, up to
    rounding of the logits.
    """
    was_training = model.training
    model.eval()
    texts = [list(prompt) for prompt in prompts]
    u = uniforms(seeds if seeds is not None else list(range(len(texts))), max_new_tokens)
    u = u.to(model.wte.weight.device)
    batch = Batch(model, list(texts), max_new_tokens)           # the same lists: they grow in place
    new = None
    try:
        for i in range(max_new_tokens):
            logits = batch.next_logits(new)[:, :n_vocab]
            new = pick(logits, u[:, i], temperature, top_k, top_p)
            tokens = new.tolist()
            for text, token in zip(batch.texts, tokens):
                text.append(token)
            alive = [row for row, token in enumerate(tokens) if token != eot]
            if len(alive) < len(tokens):
                batch.keep(alive)
                u, new = u[alive], new[alive]
            if not alive:
                break
    finally:
        model.train(was_training)
    return texts


@dataclass
class Writer:
    """A model that writes. tokenizer: encode(text), decode(ids), eot, n_vocab."""
    model: GPT
    tokenizer: object

    def __repr__(self) -> str:
        c = self.model.config
        n = sum(p.numel() for p in self.model.parameters())
        return (f"Writer({amount(n)} parameters, {c.n_layer} layers x {c.n_head} heads x width "
                f"{c.n_embd}, {self.tokenizer.n_vocab:,} tokens of vocabulary, on "
                f"{self.model.wte.weight.device})")

    def generate(self, prompt: str | list[str] = "", max_new_tokens: int = 100,
                 temperature: float = 0.8, top_k: int | None = None, top_p: float | None = None,
                 seed: int = 0, stop: bool = True) -> str | list[str]:
        """The prompt and its continuation, as the beginning of a document: the model first reads an
        end-of-text, as before every document that it was trained on. Of a list of prompts a list of
        texts: see generate_many.

        max_new_tokens: at most so many. temperature, top_k, top_p: see pick. seed: the same seed
        gives the same text. stop: end at the model's end-of-text. Raises UserError.
        """
        if isinstance(prompt, (list, tuple)):
            return self.generate_many(list(prompt), max_new_tokens, temperature, top_k, top_p, seed,
                                      stop)
        return self.generate_many([prompt], max_new_tokens, temperature, top_k, top_p, seed,
                                  stop)[0]

    def generate_many(self, prompts: list[str], max_new_tokens: int = 100,
                      temperature: float = 0.8, top_k: int | None = None,
                      top_p: float | None = None, seed: int = 0, stop: bool = True) -> list[str]:
        """Several prompts at once; prompt i gives what generate(prompt, seed=seed + i) gives."""
        check_sampling(max_new_tokens, temperature, top_k, top_p, seed)
        odd = [prompt for prompt in prompts if not isinstance(prompt, str)]
        if odd:
            raise UserError(f"prompt={odd[0]!r} should be text, or a list of texts")
        eot = self.tokenizer.eot
        starts = [[eot, *self.tokenizer.encode(prompt)] for prompt in prompts]
        texts = generate_ids(self.model, starts, max_new_tokens, temperature=temperature,
                             top_k=top_k, top_p=top_p, eot=eot if stop else None,
                             seeds=[seed + i for i in range(len(prompts))],
                             n_vocab=self.tokenizer.n_vocab) if prompts else []
        new = [text[len(start):] for text, start in zip(texts, starts)]
        if stop:
            new = [ids[:-1] if ids[-1:] == [eot] else ids for ids in new]
        # decoded together: a character may be split between the prompt and its continuation
        return [self.tokenizer.decode(start[1:] + ids) for start, ids in zip(starts, new)]


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None,
                   top_p: float | None, seed: int = 0) -> None:
    """Raises UserError, naming the value, where one makes no sense."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} must be above 0 and at most 1")
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed={seed} must be from 0 to {MAX_SEED}")


def find_checkpoint(run: Path, which: str) -> Path:
    """A run folder's best or last checkpoint file. Raises UserError where there is none."""
    if which not in ("best", "last"):
        raise UserError(f"which={which!r} is not one of best, last")
    if not run.is_dir():
        raise UserError(f"{run} is not a folder: give a run's folder, runs/<name>-<hash>")
    best, last = run / "checkpoints" / checkpoint.BEST, checkpoint.last(run / "checkpoints")
    wanted, other = (best, last) if which == "best" else (last, best)
    if wanted is not None and wanted.is_file():
        return wanted
    if other is None or not other.is_file():
        raise UserError(f"{run} has no checkpoints/*.pt: its run has not saved one yet, or it is "
                        "no run folder")
    say(f"{run.name} has no {which} checkpoint: using {other.name}")
    return other


def load_model(path: Path) -> GPT:
    """The model of one checkpoint file, on the CPU, in evaluation mode. Raises UserError for a file
    that is truncated, from elsewhere or of another version."""
    state = checkpoint.load(path)
    try:
        model = GPT(GPTConfig(**state["config"]))
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: weights and config do not make a model of this version "
                        f"({str(error).splitlines()[0]})") from error
    return model.eval()


def load(folder: str | Path, which: str = "best", device: str | None = None) -> Writer:
    """A run's model with its tokenizer, ready to write.

    folder: runs/<run>. which: 'best' (by validation loss) or 'last'. device: default CUDA where
    there is one, else CPU. Raises UserError: no folder, no checkpoint, a truncated one.
    """
    from slm.tokenizer import load_tokenizer
    model = load_model(find_checkpoint(Path(folder), which))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device!r} is not here ({str(error).splitlines()[0]})") from error
    return Writer(model, load_tokenizer(folder))


def main(arguments: list[str] | None = None) -> int:
    """`python -m slm.generate`; returns the exit code."""
    parser = argparse.ArgumentParser("python -m slm.generate", description="Write with a run's "
                                     "model.", allow_abbrev=False)
    parser.add_argument("folder", help="run folder, runs/<run>")
    parser.add_argument("prompt", nargs="?", default="", help="default: begin a new document")
    parser.add_argument("--max-new-tokens", "--max_new_tokens", type=int, default=100, metavar="N",
                        help="at most so many (default 100)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T",
                        help="0: greedy (default 0.8)")
    parser.add_argument("--top-k", "--top_k", type=int, metavar="K",
                        help="only the k likeliest tokens (default: all)")
    parser.add_argument("--top-p", "--top_p", type=float, metavar="P",
                        help="only the likeliest tokens up to this mass (default: all)")
    parser.add_argument("--seed", type=int, default=0,
                        help="the same seed gives the same text (default 0)")
    parser.add_argument("--which", default="best", choices=("best", "last"),
                        help="checkpoint (default: best, by validation loss)")
    parser.add_argument("--device", help="cpu, cuda, ...; default: CUDA where there is one")
    args = parser.parse_args(arguments)
    try:
        writer = load(args.folder, args.which, args.device)
        check_sampling(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed)
        n, block = len(writer.tokenizer.encode(args.prompt)), writer.model.config.block_size
        if n > block:
            print(f"the prompt has {n} tokens, more than the model's context: only the last "
                  f"{block} are read", file=sys.stderr)
        print(writer.generate(args.prompt, args.max_new_tokens, args.temperature, args.top_k,
                              args.top_p, args.seed))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    command(main)
