"""Run folders as a training would leave them, in milliseconds: the loop's part is made up."""
import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from slm.facts import describe_run
from slm.plan import make_plan
from slm.record import Record
from slm.spec import as_dict, identity, load_spec, run_folder

MACHINE = SimpleNamespace(world=1, name=lambda: "a CPU", type="cpu", precision="fp32",
                          compile=False)
SPLIT = {"documents": 10, "tokens": 1_000_000, "bytes": 3_500_000, "sha256": "aa"}
META = {"corpus": "fables", "corpus_fingerprint": "c", "tokenizer": "bpe:512", "n_vocab": 512,
        "tokenizer_fingerprint": "t", "train": SPLIT, "val": {**SPLIT, "tokens": 40_000,
                                                              "sha256": "bb"}}
VERSIONS = {"slm": "0.1.0", "torch": "2.13.0", "git_sha": "abc"}
BASE = {"model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16, "model.block_size": 32,
        "data.tokenizer": "bpe:512", "train.batch_tokens": 1024, "train.tokens": 20_480,
        "optim.lr": 0.003, "track.name": "x", "track.wandb": "disabled"}


def spec_of(folder: Path, **changes):
    """A spec (dots as double underscores: train__tokens=5) whose runs go to folder."""
    changed = {k.replace("__", "."): v for k, v in changes.items()}
    return load_spec([], {**BASE, "track.dir": str(folder), "data.cache": str(folder / "none"),
                          **changed})


def write_run(folder: Path, loss: float = 4.0, status: str | None = "finished", reason: str = "",
              texts: tuple[str, ...] = (), **changes) -> Path:
    """A run folder whose validation loss falls to `loss` (None: was not finite). status None: its
    process was killed, half-way."""
    spec = spec_of(folder, **changes)
    plan = make_plan(spec, META["n_vocab"], SPLIT["tokens"])
    with patch("slm.facts.versions", lambda: VERSIONS):     # it asks git, twice
        facts = describe_run(spec, plan, META, MACHINE)
    last = plan.steps if status == "finished" else plan.steps // 2
    with patch.object(Record, "_plot", lambda self: None), \
            Record.open(run_folder(spec), as_dict(spec), identity(spec)) as record:
        record.start(0, facts)
        for step in range(0, last + 1, 5):
            at = {"tokens": step * plan.tokens_per_step,
                  "flops": step * plan.tokens_per_step * plan.flops_per_token["matmul"]}
            if step:
                record.log(step, {**at, "train/loss": loss and loss + 1 / step, "lr": 0.003,
                                  "grad_norm": 0.5, "tokens_per_sec": 1e4})
            if step % 10 == 0:
                value = loss and (loss if step == last else 6.0)
                record.log(step, {**at, "val/loss": value, "val/loss_se": 0.01, "val/floor": 1.5,
                                  "val/perplexity": 9.0, "val/bits_per_byte": 1.25})
        for text in texts:
            record.sample(last, at["tokens"], "Once", text)
        if status:
            record.finish(status, reason)
    return run_folder(spec)


def edit_summary(folder: Path, **values) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
