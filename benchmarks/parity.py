"""Is our gpt2 preset nanoGPT? Losses of 100 steps from the same weights and batches, in float32.

Everything that a step is made of takes part: the order of batches, the model, its gradients,
clipping, AdamW's groups, warm-up and cosine. The text is fables, where the loss falls; differences
of rounding grow with each step, so a later step is a harder test than an earlier one."""
from __future__ import annotations

import tempfile

from benchmarks.child import Child, once
from benchmarks.measure import NO_NANOGPT, Options, Reach, Row, rounded, skip
from benchmarks.training import SEED_SHAPE, TINY_SHAPE

WARMUP, STEPS, FINAL = 10, 100, 0.1


def rows(options: Options) -> list[Row]:
    """The largest difference of loss in STEPS steps, for each head; needs nanoGPT."""
    what = f"{STEPS} steps of the gpt2 preset against nanoGPT's, fp32: largest difference of loss"
    if not options.nanogpt:
        return [skip(what, NO_NANOGPT)]
    shape = {**(TINY_SHAPE if options.quick else SEED_SHAPE), "vocab_size": 1024}
    schedule = (WARMUP, STEPS, FINAL)
    with tempfile.TemporaryDirectory() as folder:
        once("benchmarks.training:make_inputs", folder=folder, shape=shape, fables=True)

        def losses(target: str, **arguments) -> list[float]:
            with Child(f"benchmarks.training:{target}", shape=shape, folder=folder,
                       schedule=schedule, **arguments) as child:
                return [child()["loss"] for _ in range(options.rounds(STEPS))]

        theirs = losses("NanoGPTStep", nanogpt=str(options.nanogpt))
        ours = {head: losses("OurStep", loss=head) for head in ("plain", "chunked")}
    note = (f"V={shape['vocab_size']:,}, fables, {WARMUP} steps of warm-up, cosine to {FINAL:g} of "
            f"the peak; nanoGPT's loss {theirs[0]:.4f} -> {theirs[-1]:.4f}")
    return [Row(f"{what}, {head} head", "nats", [max(abs(a - b) for a, b in zip(mine, theirs))],
                reach=Reach(1e-5, at_most=True), note=note if head == "plain" else "",
                more={"losses": {"ours": [rounded(x) for x in mine],
                                 "nanoGPT": [rounded(x) for x in theirs]}})
            for head, mine in ours.items()]
