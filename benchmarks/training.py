"""One training step of the seed shape, and its memory: ours beside nanoGPT's eager step.

Both sides start from the same weights and read the same batches with the same AdamW, learning rate
and clipping, so their losses must agree. Ours is slm.train.Trainer's own step, as run.py takes it.
Each side is a process of its own."""
from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.child import Child, once
from benchmarks.measure import NO_NANOGPT, Options, Reach, Row, interleave, rounded, skip

LR, WEIGHT_DECAY, BETAS, CLIP = 6e-4, 0.1, (0.9, 0.95), 1.0
SEED_SHAPE = dict(n_layer=4, n_head=8, n_embd=256, block_size=128)
TINY_SHAPE = dict(n_layer=1, n_head=2, n_embd=32, block_size=32)
BATCH = 12
STEPS = 100  # for which there are batches


def make_inputs(folder: str, shape: dict[str, int], batch: int = BATCH,
                fables: bool = False) -> Any:
    """A child's work: weights.pt, tokens.bin and starts.npy, read by all sides. Tokens are drawn
    at random, or with `fables` those of stories, as many ids as the shape has."""
    def work() -> None:
        import torch
        from slm.loader import Loader
        from slm.model import GPT
        from slm.shape import GPTConfig
        torch.save(GPT(GPTConfig(**shape, bias=False)).state_dict(), f"{folder}/weights.pt")
        v, t = shape["vocab_size"], shape["block_size"]
        if fables:
            from slm.prepare import prepare
            from slm.spec import load_spec
            data = {"tokenizer": f"bpe:{v}", "cache": f"{folder}/prepared",
                    "fables": {"stories": 4000, "val_stories": 50}}
            tokens = np.asarray(prepare(load_spec([], {"data": data, "train": {"steps": 1}}).data)
                                .train)
        else:
            p = 1 / (np.arange(v) + 3.0)           # like words: there is something to learn
            tokens = np.random.default_rng(0).choice(v, 200_000, p=p / p.sum())
        tokens.astype(np.uint16).tofile(f"{folder}/tokens.bin")
        loader = Loader(tokens, t, batch, seed=0)
        np.save(f"{folder}/starts.npy", np.stack([loader.starts(i) for i in range(STEPS)]))
    return work


class OurStep:
    """slm.train.Trainer.train_step. folder: of make_inputs; None: own weights, random tokens.
    preset, optimizer, and keys of the spec's `device` section: as in the spec. schedule: None for
    a constant rate, else (warm-up steps, steps, final rate / LR) of a cosine."""

    def __init__(self, shape: dict[str, int], folder: str | None = None, batch: int = BATCH,
                 preset: str = "gpt2", optimizer: str = "adamw",
                 schedule: tuple[int, int, float] | None = None, **device: Any) -> None:
        import torch
        from slm.cost import memory_bytes
        from slm.device import setup
        from slm.plan import make_plan
        from slm.spec import load_spec
        from slm.train import Trainer
        model = {k: v for k, v in shape.items() if k != "vocab_size"}
        rate, horizon = {"schedule": "constant", "warmup": 0}, 10_000
        if schedule:
            warmup, horizon, final = schedule
            rate = {"schedule": "cosine", "final_lr": final,
                    "warmup_tokens": warmup * batch * shape["block_size"]}
        spec = load_spec([], {
            "model": {**model, "preset": preset, "bias": False}, "device": device,
            "data": {"eval_mode": "windows"},           # random tokens hold no whole story
            "train": {"batch_tokens": batch * shape["block_size"], "steps": horizon},
            "optim": {"name": optimizer, "lr": LR, "weight_decay": WEIGHT_DECAY, "grad_clip": CLIP,
                      "beta1": BETAS[0], "beta2": BETAS[1], **rate}})
        plan = make_plan(spec, shape["vocab_size"])
        self.estimate_bytes = memory_bytes(plan.config, plan.micro_batch,
                                           optimizer=optimizer)["total"]
        assert plan.config.vocab_size == shape["vocab_size"], "padded: not the peer's shape"
        machine = setup(spec.device)
        self.trainer = Trainer(spec, plan, prepared(folder, shape["vocab_size"]), machine,
                               SimpleNamespace(folder=Path(".")))
        if folder:
            self.trainer.model.load_state_dict(torch.load(f"{folder}/weights.pt"))

    def __call__(self) -> dict[str, float]:
        trainer = self.trainer
        trainer.loss_sum.zero_()
        trainer.train_step()
        return {"loss": trainer.loss_sum.item(), "estimate_bytes": self.estimate_bytes}


def prepared(folder: str | None, vocab_size: int) -> SimpleNamespace:
    """What the trainer wants of prepared data."""
    if folder:
        tokens = np.memmap(f"{folder}/tokens.bin", dtype=np.uint16, mode="r")
    else:
        tokens = np.random.default_rng(0).integers(0, vocab_size, 200_000).astype(np.uint16)
    lengths = SimpleNamespace(token_bytes=lambda: np.ones(vocab_size, dtype=np.int64))
    meta = {"eot": 0, "val": {"bytes": 1, "token_bytes": 1}}
    return SimpleNamespace(train=tokens, val=tokens[:2000], tokenizer=lengths, meta=meta,
                           val_surprisal=None)


class NanoGPTStep:
    """The step of nanoGPT's train.py: its batch, model, clipping and optimiser, on the CPU.
    schedule: as OurStep's, by its get_lr."""

    def __init__(self, nanogpt: str, shape: dict[str, int], folder: str | None = None,
                 batch: int = BATCH, schedule: tuple[int, int, float] | None = None) -> None:
        import torch
        from benchmarks.peer import get_lr, make_model
        weights = torch.load(f"{folder}/weights.pt") if folder else None
        self.model = make_model(nanogpt, shape, weights)
        self.optimizer = self.model.configure_optimizers(WEIGHT_DECAY, LR, BETAS, "cpu")
        self.tokens = prepared(folder, shape["vocab_size"]).train
        self.length = shape["block_size"]
        rng = np.random.default_rng(1)
        self.starts = np.load(f"{folder}/starts.npy") if folder else \
            rng.integers(0, len(self.tokens) - self.length - 1, (STEPS, batch))
        self.step = 0
        self.rate = get_lr(nanogpt, LR, *schedule) if schedule else lambda step: LR

    def batch(self, shift: int):
        import torch
        return torch.stack([torch.from_numpy(self.tokens[i + shift:i + shift + self.length]
                                             .astype(np.int64)) for i in self.starts[self.step]])

    def __call__(self) -> dict[str, float]:
        import torch
        x, y = self.batch(0), self.batch(1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.step += 1
        _, loss = self.model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item()}


# -- the sections ------------------------------------------------------------------------------

def steps(options: Options) -> list[Row]:
    """Seconds of a step at two vocabularies, and as a share of the machine's GEMM peak."""
    rows = step_rows(options, 50304, rounds=12, at_least=1.45, of_peak=75)
    return rows if options.quick else rows + step_rows(options, 4096, rounds=24, at_least=1.10)


def step_rows(options: Options, vocab_size: int, rounds: int, at_least: float,
              of_peak: float | None = None) -> list[Row]:
    shape = {**(TINY_SHAPE if options.quick else SEED_SHAPE),
             "vocab_size": 512 if options.quick else vocab_size}
    variants = {"ours": {}, "plain head": {"loss": "plain"},
                "torch's head": {"loss": "torch"}, "malloc untuned": {"malloc": False}}
    if not has_torch_head():
        del variants["torch's head"]
    if options.quick:
        variants = {"ours": {}}
    with tempfile.TemporaryDirectory() as folder:
        once("benchmarks.training:make_inputs", folder=folder, shape=shape)
        sides = {name: Child("benchmarks.training:OurStep", shape=shape, folder=folder, **device)
                 for name, device in variants.items()}
        if options.nanogpt:
            sides["nanoGPT"] = Child("benchmarks.training:NanoGPTStep", shape=shape, folder=folder,
                                     nanogpt=str(options.nanogpt))
        sides["peak"] = Child("benchmarks.machine:Gemm", size=256 if options.quick else 2048)
        try:
            for side in sides.values():
                side.wait()
            found = interleave(sides, options.rounds(rounds), warmup=2)
        finally:
            for side in sides.values():
                side.stop()
    return rows_of(found, shape, at_least, of_peak)


def has_torch_head() -> bool:
    """Whether torch has F.linear_cross_entropy; asked without importing it."""
    major, minor = (machine.version("torch") or "0.0").split(".")[:2]
    return (int(major), int(minor)) >= (2, 13)


def rows_of(found: dict[str, list[dict]], shape: dict[str, int], at_least: float,
            of_peak: float | None) -> list[Row]:
    """The rows of one vocabulary, from what interleave() gave."""
    from slm.cost import flops_per_token
    from slm.shape import GPTConfig
    tokens = BATCH * shape["block_size"]
    flops = tokens * flops_per_token(GPTConfig(**shape, bias=False))["matmul"]
    peak = max(r["flops_per_sec"] for r in found.pop("peak"))
    ms = {name: [1000 * r["sec"] for r in results] for name, results in found.items()}
    losses = {name: [r["loss"] for r in results] for name, results in found.items()}
    name = f"step, V={shape['vocab_size']:,}, {BATCH}x{shape['block_size']}, fp32"
    best = min(range(len(ms["ours"])), key=ms["ours"].__getitem__)
    note = (f"ours {tokens / ms['ours'][best] * 1000:,.0f} tokens/s at best; loss "
            f"{losses['ours'][0]:.4f} -> {losses['ours'][-1]:.4f}")
    theirs = ms.get("nanoGPT", [])
    if theirs:
        worst = max(abs(a - b) for a, b in zip(losses["ours"], losses["nanoGPT"]))
        note += f", at most {worst:.1e} from nanoGPT's in these {len(theirs)} steps"
    more = {"losses": losses, "gemm_peak_flops_per_sec": peak, "flops_per_step": flops,
            "cpu_sec": {name: [rounded(r["cpu_sec"]) for r in results]
                        for name, results in found.items()}}
    share = [[100 * flops / (t / 1000) / peak for t in ms.get(side, [])]
             for side in ("ours", "nanoGPT")]
    rows = [Row(name, "ms", ms["ours"], theirs, "nanoGPT eager", Reach(at_least, "ratio"), note,
                more=more),
            Row("  the same as a share of this machine's GEMM peak", "% of peak", *share,
                "nanoGPT eager", Reach(of_peak) if of_peak else None,
                f"best float32 product in these rounds: {peak / 1e9:.0f} GFLOP/s; a step is "
                f"{flops / 1e9:.1f} GFLOP (exact matrix products with the head, full attention)")]
    if not theirs:
        rows.insert(1, skip("  beside nanoGPT", NO_NANOGPT))
    return rows + [Row(f"  ours beside itself: {side}", "ms", ms["ours"], ms[side], side)
                   for side in ms if side not in ("ours", "nanoGPT")]


def memory(options: Options) -> list[Row]:
    """Peak resident set of a process that takes four steps at V=50,304."""
    shape = {**(TINY_SHAPE if options.quick else SEED_SHAPE),
             "vocab_size": 512 if options.quick else 50304}

    def peak_mb(target: str, **arguments: Any) -> float:
        with Child(f"benchmarks.training:{target}", shape=shape, **arguments) as child:
            for _ in range(options.rounds(4)):
                child()
            return child.close()["peak_bytes"] / 1e6

    theirs = [peak_mb("NanoGPTStep", nanogpt=str(options.nanogpt))] if options.nanogpt else []
    rows = [] if theirs else [skip("peak memory beside nanoGPT", NO_NANOGPT)]
    name = f"peak memory, V={shape['vocab_size']:,}, {BATCH}x{shape['block_size']}, "
    variants = {"as run.py chooses": ({}, Reach(1000, at_most=True)),
                "chunked head": ({"loss": "chunked"}, None),
                "chunked head, malloc untuned": ({"loss": "chunked", "malloc": False}, None),
                "plain head": ({"loss": "plain"}, None),
                "plain head, malloc untuned": ({"loss": "plain", "malloc": False}, None)}
    if options.quick:
        variants = {"as run.py chooses": variants["as run.py chooses"]}
    return rows + [Row(name + what, "MB", [peak_mb("OurStep", **device)], theirs, "nanoGPT eager",
                       reach, "Python and torch are in it") for what, (device, reach)
                   in variants.items()]
