"""Generation: 200 tokens at d256 L4, for one prompt and for 16, beside nanoGPT's generate; for 16
also beside nanoGPT's sample.py, which writes one sample after another.

The same weights, temperature and top_k. nanoGPT has no cache and feeds the last block_size tokens
for every new one; ours feeds the last half block again when a block is full (slm/generate.py), so
that beyond the first block the two read different contexts. Within it their greedy texts must be
equal."""
from __future__ import annotations

import tempfile

from benchmarks.child import Child, once
from benchmarks.measure import NO_NANOGPT, Options, Reach, Row, interleave, skip
from benchmarks.training import SEED_SHAPE, TINY_SHAPE

TEMPERATURE, TOP_K, PROMPT = 0.8, 200, 8   # the first two as in nanoGPT's sample.py
MANY, ONE_BY_ONE = 16, "nanoGPT, one by one"


def prompts(n: int, vocab_size: int) -> list[list[int]]:
    return [[(7 * i + 31 * j + 1) % vocab_size for j in range(PROMPT)] for i in range(n)]


class Ours:
    def __init__(self, shape: dict[str, int], folder: str) -> None:
        import torch
        from slm.device import tune_malloc
        from slm.model import GPT
        from slm.shape import GPTConfig
        tune_malloc()
        self.model = GPT(GPTConfig(**shape, bias=False)).eval()
        self.model.load_state_dict(torch.load(f"{folder}/weights.pt"))
        self.vocab_size = shape["vocab_size"]

    def __call__(self, n: int, tokens: int, greedy: bool = False) -> dict:
        from slm.generate import generate_ids
        how = {"temperature": 0} if greedy else {"temperature": TEMPERATURE, "top_k": TOP_K}
        texts = generate_ids(self.model, prompts(n, self.vocab_size), tokens, **how)
        return {"text": texts[0] if greedy else None}


class NanoGPT:
    def __init__(self, nanogpt: str, shape: dict[str, int], folder: str) -> None:
        import torch
        from benchmarks.peer import make_model
        self.model = make_model(nanogpt, shape, torch.load(f"{folder}/weights.pt")).eval()
        self.vocab_size = shape["vocab_size"]

    def __call__(self, n: int, tokens: int, greedy: bool = False) -> dict:
        import torch
        how = {"top_k": 1} if greedy else {"temperature": TEMPERATURE, "top_k": TOP_K}
        idx = torch.tensor(prompts(n, self.vocab_size))
        text = self.model.generate(idx, tokens, **how)
        return {"text": text[0].tolist() if greedy else None}


def rows(options: Options) -> list[Row]:
    out = [row for vocab_size in ((512,) if options.quick else (50304, 4096))
           for row in rows_of(options, vocab_size)]
    return out + ([] if options.nanogpt else [skip("  beside nanoGPT", NO_NANOGPT)])


def rows_of(options: Options, vocab_size: int) -> list[Row]:
    shape = {**(TINY_SHAPE if options.quick else SEED_SHAPE), "vocab_size": vocab_size}
    tokens = 40 if options.quick else 200
    with tempfile.TemporaryDirectory() as folder:
        once("benchmarks.training:make_inputs", folder=folder, shape=shape)
        sides = {"ours": Child("benchmarks.writing:Ours", shape=shape, folder=folder)}
        if options.nanogpt:
            sides["nanoGPT"] = Child("benchmarks.writing:NanoGPT", shape=shape, folder=folder,
                                     nanogpt=str(options.nanogpt))
        try:
            inside = shape["block_size"] - PROMPT
            greedy = {name: side(n=1, tokens=inside, greedy=True)["text"]
                      for name, side in sides.items()}
            found = {n: measured(sides, n, tokens, options.rounds(rounds))
                     for n, rounds in ((1, 7), (MANY, 3))}
        finally:
            for side in sides.values():
                side.stop()
    note = f"block of {shape['block_size']}, temperature {TEMPERATURE}, top_k {TOP_K}"
    if options.nanogpt:
        same = next((i for i, (a, b) in enumerate(zip(*greedy.values())) if a != b),
                    len(greedy["ours"])) - PROMPT
        note += f"; greedy, the first {same} of {inside} tokens are the same"
    out = []
    for n, rates in found.items():
        what = f"V={vocab_size:,}, {tokens} tokens, " \
            + ("one prompt" if n == 1 else f"{n} prompts at once")
        out.append(Row(what, "tokens/s", rates["ours"], rates.get("nanoGPT", []), "nanoGPT",
                       Reach(5 if n == 1 else 20, "ratio"), note if n == 1 else
                       "nanoGPT's generate is given them as one batch too"))
    if options.nanogpt:
        out.append(Row(f"  {MANY} at once beside one after another", "tokens/s", rates["ours"],
                       rates[ONE_BY_ONE], "nanoGPT", Reach(20, "ratio"), "its sample.py writes its "
                       "samples one after another: the rate of one is the rate of all"))
    return out


def measured(sides: dict[str, Child], n: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each side for n prompts at once and, where n > 1, of nanoGPT for one."""
    calls = {name: (side, n) for name, side in sides.items()}
    if n > 1 and "nanoGPT" in sides:
        calls[ONE_BY_ONE] = (sides["nanoGPT"], 1)
    return interleave({name: lambda side=side, m=m: m * tokens / side(n=m, tokens=tokens)["sec"]
                       for name, (side, m) in calls.items()}, rounds, 1)
