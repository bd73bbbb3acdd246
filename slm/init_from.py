"""Starting weights from elsewhere: `model.init_from`.

    hf:<folder>     a folder of transformers with GPT-2 weights, such as slm.export writes
    hf:<name>       the same from the Hugging Face Hub, as in hf:openai-community/gpt2
    runs/<run>      the final weights of another run

What a run is must not depend on where a folder lies, and must change with what is in it: so not
`init_from` but `init_fingerprint` is part of a run's identity. It is a hash of the weights' files;
for a name of the Hub, whose files may not be here yet, it is the name.
"""
from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from slm.errors import ImpossiblePoint, UserError
from slm.files import private
from slm.shape import GPTConfig

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
FILES = ["config.json", "model*.safetensors", "tokenizer.json"]
# Of a run's shape: what the weights and the function they compute hang on.
SHAPE = ("n_layer", "n_head", "n_embd", "d_ff", "vocab_size", "bias", "norm", "position",
         "activation", "qk_norm", "tied")


def is_hub_name(source: str) -> bool:
    """hf:<name>, where no such folder is here."""
    name = source.removeprefix("hf:")
    return (source.startswith("hf:") and not Path(name).expanduser().is_dir()
            and name.count("/") <= 1 and name[:1] not in "./~")


def fingerprint(source: str) -> str:
    """What the weights are: 16 hex digits over the bytes of their files, or the name of the Hub.
    Raises UserError where no weights are there."""
    if is_hub_name(source):
        return source
    digest = hashlib.sha256()
    for file in weight_files(source):
        stat = file.stat()
        digest.update(_sha256(file, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=None)
def _sha256(file: Path, size: int, mtime_ns: int) -> bytes:
    """Remembered, since a sweep resolves its specs by the hundred."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").digest()


def weight_files(source: str) -> list[Path]:
    """The files that hold the weights of a folder, in order. Raises UserError: no folder, none in
    it, a run that has not finished."""
    folder = _folder(source)
    if not folder.is_dir():
        raise UserError(f"no such folder as {private(str(folder))}")
    if source.startswith("hf:"):
        for pattern in WEIGHTS:
            if files := sorted(folder.glob(pattern)):
                return files
        raise UserError(f"{private(str(folder))} has neither {' nor '.join(WEIGHTS)}")
    from slm.record import Record
    files = sorted(folder.glob("checkpoints/step-*.pt"))
    status = (Record.peek(folder) or {}).get("status", "no run")
    if not files or status != "finished":
        raise UserError(f"{private(str(folder))} is {status}, not a finished run with checkpoints"
                        " (a folder of transformers is hf:<folder>)")
    return files[-1:]


def _folder(source: str) -> Path:
    return Path(os.path.expanduser(source.removeprefix("hf:")))


def check(source: str, config: GPTConfig) -> None:
    """Raises ImpossiblePoint, a line for each value of the spec that does not fit the weights.
    Reads no weights; says nothing of a name of the Hub, whose files may not be here."""
    if not is_hub_name(source) and _folder(source).is_dir():
        _refuse(source, _config_faults(source, _folder(source), config))


def _config_faults(source: str, folder: Path, config: GPTConfig) -> list[str]:
    if source.startswith("hf:"):
        from slm.hf import config_faults
        return config_faults(_read_json(folder / "config.json"), config)
    shape = _read_json(folder / "summary.json").get("shape", {})
    faults = [f"model.{key} = {getattr(config, key)}: the weights have {shape.get(key)}"
              for key in SHAPE if getattr(config, key) != shape.get(key)]
    if config.position == "learned" and config.block_size > shape.get("block_size", 0):
        faults.append(f"model.block_size = {config.block_size}: the weights know "
                      f"{shape.get('block_size')} positions (fewer are fine)")
    return faults


def _refuse(source: str, faults: list[str]) -> None:
    if faults:
        raise ImpossiblePoint("\n".join(f"model.init_from = {private(source)}: {line}"
                                        for line in faults))


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{private(str(file))}: can't be read ({e})") from None


def start_from(source: str, known: str, model, tokenizer) -> None:
    """Put the weights of `source` into a model.

    known: their fingerprint, as resolved; model: a slm.model.GPT on any device; tokenizer: the
    run's. Raises UserError where the weights are gone, not those that were meant, or can't be
    fetched; ImpossiblePoint with every mismatch of shape and tokenizer."""
    import torch
    try:
        found = fingerprint(source)
    except UserError as e:
        raise UserError(f"model.init_from = {private(source)}: {e}") from None
    if found != known:
        raise UserError(f"model.init_from = {private(source)}: its weights are {found}, not "
                        f"{known} as in the spec (model.init_fingerprint)")
    folder = _fetched(source.removeprefix("hf:")) if is_hub_name(source) else _folder(source)
    faults = _config_faults(source, folder, model.config)
    if not faults:
        faults = _tokenizer_faults(source, folder, tokenizer)
    _refuse(source, faults)
    try:
        state = _hf_state(folder, model.config) if source.startswith("hf:") \
            else _run_state(source, model.config)
    except ImpossiblePoint as e:
        _refuse(source, str(e).splitlines())
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(state[name])


def _hf_state(folder: Path, config: GPTConfig) -> dict:
    from slm.hf import from_hf
    theirs: dict = {}
    for file in weight_files(f"hf:{folder}"):
        if file.suffix == ".safetensors":
            theirs |= _safetensors().load_file(file)
        else:
            import torch
            theirs |= torch.load(file, map_location="cpu", weights_only=True)
    return from_hf(config, theirs)


def _safetensors():
    try:
        import safetensors.torch
    except ImportError:
        raise UserError("weights of transformers need the package safetensors: pip install "
                        "safetensors") from None
    return safetensors.torch


def _run_state(source: str, config: GPTConfig) -> dict:
    from slm import checkpoint
    from slm.parametrization import multipliers
    saved = checkpoint.load(weight_files(source)[0])
    theirs = GPTConfig(**saved["config"])
    if multipliers(theirs) != multipliers(config):
        raise ImpossiblePoint(
            f"model.parametrization = {config.parametrization}: gives other multipliers than the "
            f"weights were trained with ({theirs.parametrization}, base_width "
            f"{theirs.base_width}, base_depth {theirs.base_depth})")
    state = saved["model"]
    if config.position == "learned":
        state["wpe.weight"] = state["wpe.weight"][:config.block_size]
    return state


def _tokenizer_faults(source: str, folder: Path, tokenizer) -> list[str]:
    """A fault where the folder's tokenizer, if it says which, gives other ids than the run's."""
    if not source.startswith("hf:"):
        from slm.tokenizer import load_tokenizer
        theirs = load_tokenizer(folder)
        return [] if theirs.fingerprint == tokenizer.fingerprint else [
            f"data.tokenizer: {tokenizer.name} gives other ids than the weights' {theirs.name} "
            "(a bpe is trained on its corpus: the same corpus gives the same one)"]
    vocab = _read_json(folder / "config.json").get("vocab_size", 50257)
    if vocab < tokenizer.n_vocab:
        return [f"data.tokenizer: {tokenizer.name} has {tokenizer.n_vocab} ids, the weights only "
                f"{vocab}"]
    ranks = getattr(tokenizer, "ranks", None)
    if not (folder / "tokenizer.json").exists() or ranks is None:
        return []
    from slm.vocabularies import byte_alphabet
    character = {b: c for c, b in byte_alphabet().items()}
    ours = {"".join(character[b] for b in token): i for token, i in ranks.items()}
    theirs = _read_json(folder / "tokenizer.json").get("model", {}).get("vocab", {})
    other = [token for token, i in ours.items() if theirs.get(token) != i]
    return [f"data.tokenizer: {tokenizer.name} gives other ids than the weights' tokenizer.json: "
            f"{other[0]!r} is {ours[other[0]]} here, {theirs.get(other[0])} there"] if other else []


def _fetched(name: str) -> Path:
    """The folder of a name of the Hub, from its cache or fetched. Raises UserError."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError("model.init_from: a name of the Hub needs the package huggingface_hub: "
                        "pip install huggingface_hub") from None
    from slm.corpora.hub import _hub_reachable
    online = _hub_reachable()
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=not online))
    except Exception as e:  # a dozen of its own, of requests' and of the system's
        why = f"{type(e).__name__}" if online else "the Hugging Face Hub can't be reached and no " \
            "copy is cached"
        raise UserError(f"model.init_from = hf:{name}: there is no such folder here, and it can't "
                        f"be fetched ({why}): give hf:<folder> with config.json and "
                        "model.safetensors") from None
