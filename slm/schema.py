"""The schema of an experiment: each key with its type, range, default and meaning, once.

`--help`, the JSON Schema for editors, type coercion and error messages are all made from this.
A default of None is filled in by slm/spec.py when the spec is resolved, or means "off" where the
description says so. Fields carry two marks in `json_schema_extra`:
  only_if: {key: [values]}   the key means something only then (else it resolves to None);
  any_of: {key: [values]}    the same where one of several will do;
  identity: False            the key is no part of what a run *is* (see spec.identity).
"""
from __future__ import annotations

from typing import Annotated, Literal, Optional, Union

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=False, protected_namespaces=())


def key(default, description: str, *, only_if: dict | None = None, any_of: dict | None = None,
        identity: bool = True, **range_):
    """One key of the spec: a pydantic Field with this project's marks."""
    extra = {k: v for k, v in {"only_if": only_if, "any_of": any_of, "identity": identity}.items()
             if v not in (None, True)}
    return Field(default, description=description, json_schema_extra=extra or None, **range_)


Positive = Annotated[int, Field(gt=0)]
MAX_SEED = 2**63 - 1  # the largest that torch and a 64-bit reader of JSON both take
MUP = {"model.parametrization": ["mup", "completep"]}


class Model(Section):
    preset: Literal["gpt2", "modern", "llama"] = key(
        "gpt2", "architecture: gpt2 = GPT-2 as in nanoGPT; modern = RoPE, RMSNorm, QK-norm, ReLU^2,"
        " untied, zero-init; llama = RoPE, RMSNorm, SwiGLU, untied")
    n_layer: int = key(4, "transformer blocks", gt=0)
    n_head: Optional[Positive] = key(None, "attention heads; left out: n_embd / head_size")
    n_embd: Optional[Positive] = key(None, "width; left out: n_layer * aspect_ratio, rounded up to"
                                     " a multiple of head_size (or of n_head)")
    head_size: Optional[Positive] = key(None, "width of one head (default 64), instead of n_head")
    aspect_ratio: Optional[Annotated[float, Field(gt=0)]] = key(
        None, "width per layer (default 64), instead of n_embd: one dial, n_layer, makes a ladder")
    block_size: int = key(128, "context length in tokens", gt=0)
    dropout: float = key(0.0, "dropout after embedding, attention and MLP", ge=0, lt=1)
    bias: Optional[bool] = key(None, "biases in Linear and LayerNorm; left out: as the preset")
    norm: Optional[Literal["layernorm", "rmsnorm"]] = key(None, "left out: as the preset")
    position: Optional[Literal["learned", "rope"]] = key(None, "left out: as the preset")
    activation: Optional[Literal["gelu", "gelu_tanh", "relu2", "swiglu"]] = key(
        None, "of the MLP (gelu_tanh: as OpenAI's GPT-2); left out: as the preset")
    qk_norm: Optional[bool] = key(None, "RMS-normalise queries and keys; left out: as the preset")
    tied: Optional[bool] = key(None, "output head shares the embedding; left out: as the preset")
    zero_init: Optional[bool] = key(
        None, "residual projections and untied head start at zero (good with Muon; AdamW does"
        " better without: analysis/study-tokens.md); left out: as the preset")
    d_ff: Optional[Positive] = key(None, "MLP width; left out: 4 n_embd (SwiGLU: 8/3, to 64)")
    init_std: float = key(0.02, "standard deviation of the initial weights", gt=0)
    parametrization: Literal["sp", "mup", "completep"] = key(
        "sp", "how init, learning rate and multipliers follow width (mup) and depth (completep)")
    base_width: int = key(256, "n_embd at which the parametrizations agree", gt=0, only_if=MUP)
    base_depth: int = key(4, "n_layer at which completep agrees with mup", gt=0,
                          only_if={"model.parametrization": ["completep"]})
    base_head_size: Optional[Positive] = key(
        None, "head size at which attention scales agree; give it where n_head is fixed and n_embd"
        " grows; left out: the model's own", only_if=MUP)
    input_mult: float = key(1.0, "muP multiplier of the embedding", gt=0, only_if=MUP)
    output_mult: float = key(1.0, "muP multiplier of the logits", gt=0, only_if=MUP)
    init_from: Optional[str] = key(
        None, "start from weights: hf:<folder or name of the Hub> with GPT-2's, or another run's"
        " folder; left out: random", identity=False)
    init_fingerprint: Optional[str] = key(
        None, "of init_from's weights, and they are refused where they differ; left out: a hash of"
        " their files (for a name of the Hub the name)")


FABLES = {"data.corpus": ["fables"]}
TEXT = {"data.corpus": ["files", "hub"]}


class Fables(Section):
    seed: int = key(0, "which world: facts and stories", ge=0, le=MAX_SEED, only_if=FABLES)
    stories: int = key(20_000, "training stories", gt=0, only_if=FABLES)
    val_stories: int = key(500, "validation stories", gt=0, only_if=FABLES)
    facts: int = key(1000, "size of the table of world facts", gt=0, only_if=FABLES)
    zipf: float = key(1.0, "exponent of the frequency with which facts are met", ge=0,
                      only_if=FABLES)


class Data(Section):
    corpus: Literal["fables", "tinystories", "files", "hub"] = key(
        "fables", "fables = generated here, entropy known; tinystories = roneneldan/TinyStories;"
        " files = local .txt, .jsonl or .parquet under data.path; hub = any Hub dataset")
    path: Optional[str] = key(
        None, "files: a file or folder; tinystories: a local copy of the Hub's folder (optional);"
        " hub: the dataset's name", only_if={"data.corpus": ["files", "tinystories", "hub"]})
    column: str = key("text", "the text column of .jsonl, .parquet and Hub datasets", only_if=TEXT)
    val_fraction: float = key(
        0.05, "share of documents held out where the corpus has no validation part; of one single"
        " document, of its characters, at its end", gt=0, lt=1, only_if=TEXT)
    tokenizer: str = key("gpt2", "gpt2, another tiktoken name, bpe:<vocab_size> trained on the"
                         " corpus, or sentencepiece:<model file>")
    seed: int = key(0, "order of the training batches", ge=0, le=MAX_SEED)
    cache: str = key("data", "folder for prepared tokens", identity=False)
    eval_mode: Optional[Literal["stories", "windows"]] = key(
        None, "validation on whole stories from their beginning, or on windows of the token"
        " stream; left out: stories for fables, else windows")
    eval_tokens: Optional[Positive] = key(
        None, "validation tokens used per evaluation; left out: 200,000 (or all, if fewer)")
    fables: Fables = Field(default_factory=Fables, description="the generated corpus")


WSD = {"optim.schedule": ["wsd"]}
MUON = {"optim.name": ["muon"]}
Fraction = Annotated[float, Field(ge=0, lt=1)]
RULES = {"train.batch_rule": ["power_lines"], "optim.decay_rule": ["horizon"]}


class Train(Section):
    batch_tokens: int = key(1536, "tokens per optimiser step, a multiple of block_size", gt=0)
    batch_rule: Optional[Literal["power_lines"]] = key(
        None, "power_lines: the batch is batch_tokens * (D / reference_tokens)^0.383, D the horizon"
        " in tokens (arXiv 2505.13738), rounded; left out: batch_tokens at every horizon")
    reference_tokens: Optional[Positive] = key(
        None, "horizon at which batch_tokens, lr and weight_decay were tuned, for batch_rule and"
        " decay_rule", any_of=RULES)
    micro_batch: Optional[Positive] = key(
        None, "sequences per forward pass; left out: the whole batch, or what fits 64k tokens")
    steps: Optional[Positive] = key(None, "horizon in optimiser steps (any one of five)")
    tokens: Optional[Positive] = key(None, "horizon in training tokens")
    epochs: Optional[Annotated[float, Field(gt=0)]] = key(None, "horizon in passes over the data")
    flops: Optional[Annotated[float, Field(gt=0)]] = key(
        None, "horizon in training FLOPs (exact matmul count, head included)")
    tokens_per_param: Optional[Annotated[float, Field(gt=0)]] = key(
        None, "horizon in tokens per matmul parameter (blocks and head)")
    branches: list[Positive] = key(
        [], "shorter horizons in tokens, each finished by its own decay from this run's trunk and"
        " recorded as a run of its own (needs optim.schedule=wsd)", only_if=WSD)
    eval_interval: Optional[Annotated[int, Field(ge=0)]] = key(
        None, "steps between evaluations; 0: only at start and end; left out: 20 in the run")
    patience: Optional[Positive] = key(
        None, "stop after so many evaluations without a better val loss; left out: never")
    time_limit_sec: Optional[Annotated[float, Field(gt=0)]] = key(
        None, "stop, save and finish after so much training time; left out: never")
    seed: int = key(0, "initial weights and dropout", ge=0, le=MAX_SEED)


class Optim(Section):
    name: Literal["adamw", "muon"] = key(
        "adamw", "muon: Muon for the hidden matrices, AdamW for the rest")
    lr: Union[Annotated[float, Field(gt=0)], Literal["auto"]] = key(
        1e-3, "peak learning rate (AdamW groups); auto: by lr_law")
    lr_law: str = key(
        "step-law", "of size and horizon: step-law (arXiv 2503.04715), or the JSON file of python"
        " -m analysis.lr_law, which resolves to the law as text", only_if={"optim.lr": ["auto"]})
    lr_rule: Optional[Literal["sqrt_batch"]] = key(
        None, "sqrt_batch: lr and muon_lr times sqrt(batch / batch_tokens); left out: as they are",
        only_if={"train.batch_rule": ["power_lines"]})
    muon_lr: float = key(0.02, "peak learning rate of Muon's matrices", gt=0, only_if=MUON)
    muon_momentum: float = key(0.95, "Muon's Nesterov momentum", ge=0, lt=1, only_if=MUON)
    weight_decay: float = key(0.1, "decoupled, on matrices only", ge=0)
    decay_rule: Optional[Literal["horizon"]] = key(
        None, "horizon: weight_decay times sqrt(batch / batch_tokens) * reference_tokens / D (arXiv"
        " 2405.13698); left out: as it is")
    beta1: float = key(0.9, "AdamW", ge=0, lt=1)
    beta2: float = key(0.95, "AdamW", ge=0, lt=1)
    eps: float = key(1e-8, "AdamW", gt=0)
    grad_clip: float = key(1.0, "largest gradient norm; 0: no clipping", ge=0)
    schedule: Literal["cosine", "linear", "wsd", "constant"] = key(
        "cosine", "after the linear warm-up: cosine or linear to the end, constant then decay"
        " (wsd), or constant")
    warmup: Optional[Fraction] = key(None, "warm-up as a fraction of the run (default 0.02)")
    warmup_tokens: Optional[Annotated[int, Field(ge=0)]] = key(None, "warm-up in tokens, instead")
    final_lr: float = key(0.1, "learning rate at the end, as a fraction of the peak", ge=0, le=1,
                          only_if={"optim.schedule": ["cosine", "linear", "wsd"]})
    decay: float = key(0.2, "share of the run that decays (wsd)", gt=0, le=1, only_if=WSD)


class Sample(Section):
    prompts: list[str] = key(["Once upon a time"], "fixed prompts")
    interval: Optional[Annotated[int, Field(ge=0)]] = key(
        None, "steps between samples; 0: only at the end; left out: five times in the run")
    max_new_tokens: int = key(100, "length of a sample", gt=0)
    temperature: float = key(0.8, "0: greedy", ge=0)
    top_k: Optional[Positive] = key(None, "keep only the k likeliest tokens; left out: all")
    top_p: Optional[Annotated[float, Field(gt=0, le=1)]] = key(
        None, "keep the likeliest tokens up to this mass; left out: all")
    seed: int = key(0, "of the samples alone: never touches training", ge=0, le=MAX_SEED)


class Track(Section):
    dir: str = key("runs", "where run folders go", identity=False)
    name: Optional[str] = key(None, "readable part of the run's name; left out: the file's name",
                              identity=False)
    wandb: Literal["auto", "online", "offline", "disabled"] = key(
        "auto", "auto: online where an API key is configured, else disabled", identity=False)
    project: str = key("slm", "W&B project", identity=False)
    entity: Optional[str] = key(None, "W&B entity; left out: the account's own", identity=False)
    group: Optional[str] = key(None, "W&B group", identity=False)
    tags: list[str] = key([], "W&B tags", identity=False)
    log_interval: int = key(10, "steps between lines of metrics.jsonl", gt=0, identity=False)
    dynamics_interval: int = key(
        0, "steps between measurements of the gradient noise scale, update sizes, attention entropy"
        " and loss by position (each costs two to three steps); 0: never", ge=0, identity=False)
    checkpoint_interval: Optional[Annotated[int, Field(ge=0)]] = key(
        None, "steps between checkpoints; 0: only at the end; left out: ten in the run",
        identity=False)
    keep: int = key(2, "checkpoints kept (and the best, and the last)", gt=0, identity=False)


class Device(Section):
    name: str = key("auto", "auto, cpu, cuda, cuda:<i>, mps", identity=False)
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = key(
        "auto", "auto: bf16 on a GPU that has it, fp16 with a GradScaler on older, fp32 on CPU")
    compile: Literal["auto", True, False] = key("auto", "torch.compile; auto: on CUDA only")
    memory_fraction: Optional[Annotated[float, Field(gt=0, le=1)]] = key(
        None, "share of the GPU's memory this process may take; left out: all", identity=False)
    threads: Optional[Positive] = key(None, "CPU threads; left out: torch's choice, or"
                                      " OMP_NUM_THREADS", identity=False)
    deterministic: bool = key(False, "bitwise reproducible kernels on CUDA (slower)")
    loss: Literal["auto", "plain", "chunked", "torch"] = key(
        "auto", "how head and cross-entropy are computed; equal up to rounding")
    malloc: bool = key(True, "tune glibc's malloc on Linux CPUs (1.3x at a 50k vocabulary; more"
                       " memory)", identity=False)


class Spec(Section):
    model: Model = Field(default_factory=Model, description="the GPT")
    data: Data = Field(default_factory=Data, description="the text and its tokens")
    train: Train = Field(default_factory=Train, description="how long, in what batches")
    optim: Optim = Field(default_factory=Optim, description="optimiser and schedule")
    sample: Sample = Field(default_factory=Sample, description="stories written on the way")
    track: Track = Field(default_factory=Track, description="records; no effect on the numbers")
    device: Device = Field(default_factory=Device, description="where and in what precision")
