"""A run as a folder that transformers loads: `python -m slm.export runs/<run> --to DIR`.

    model = transformers.AutoModelForCausalLM.from_pretrained(DIR)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DIR)

Logits are the run's up to rounding and token ids are the same; slm/hf.py says which shapes have a
counterpart. The folder holds model.safetensors, config.json, generation_config.json, the tokenizer
and README.md, a model card made from the run's summary.json and spec.yaml alone. Padded ids are
suppressed when generating, as slm.generate never samples them.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from slm.errors import UserError
from slm.files import private, write_whole
from slm.screen import command
from slm.shape import GPTConfig

# All that an export may hold: what an earlier one left is removed first.
FILES = ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json",
         "tokenizer_config.json", "tokenizer.model", "README.md")


def export(run: str | Path, to: str | Path, which: str = "best") -> list[str]:
    """Write a run's model into the folder `to`.

    run: runs/<run>; which: checkpoint, 'best' (by validation loss) or 'last'. Returns lines that
    the user should read. Raises UserError: no run, no counterpart in transformers, a folder that
    holds something else, safetensors missing."""
    from slm import checkpoint
    from slm.generate import find_checkpoint, load_model
    from slm.hf import hf_config
    from slm.model_card import card
    from slm.record import Record
    from slm.tokenizer import load_tokenizer
    run, to = Path(run), Path(to)
    file = find_checkpoint(run, which)
    model, saved = load_model(file), checkpoint.load(file)
    tokenizer, summary = load_tokenizer(run), Record.peek(run) or {}
    config = hf_config(model.config)                         # refuses before anything is written
    clear(to)
    about = {"run": run.name, "identity": saved["identity"], "step": saved["step"],
             "tokenizer": tokenizer.name, "tokenizer_sha256": tokenizer.fingerprint}
    ids = {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot,
           "pad_token_id": tokenizer.eot}
    write_model(to, model.config, model.state_dict(), {**config, **ids, "slm": about})
    notes = write_tokenizer(to, tokenizer, model.config.block_size)
    spec = read_spec(run)
    sampling = generation(spec.get("sample", {}), model.config, tokenizer.n_vocab)
    write_json(to / "generation_config.json", {**ids, **sampling})
    write_whole(to / "README.md", private(card(summary, spec, saved, which, config, notes)))
    return notes


def clear(to: Path) -> None:
    """Make the folder, or remove an earlier export's files from it. Raises UserError where it holds
    anything else."""
    if to.is_dir() and any(to.iterdir()):
        try:
            mine = "slm" in json.loads((to / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            mine = False
        if not mine:
            raise UserError(f"{private(str(to))} is not empty and no export of slm's: give a new "
                            "folder")
        for name in FILES[1:]:      # config.json, which marks the folder, is replaced in one piece
            (to / name).unlink(missing_ok=True)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{private(str(to))}: can't be made ({e.strerror})") from None


def write_model(to: Path, config: GPTConfig, state: dict, described: dict) -> None:
    """config.json (`described`) and model.safetensors of GPT(config)'s weights `state`. Raises
    UserError where the shape has no counterpart, safetensors is missing or the disk refuses."""
    from slm.hf import to_hf
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError("an export needs the package safetensors: pip install safetensors") \
            from None
    weights = to_hf(config, state)
    try:
        write_json(to / "config.json", described)
        write_whole(to / "model.safetensors", save(weights, {"format": "pt"}))
    except OSError as e:
        raise UserError(f"{private(str(to))}: can't be written ({e.strerror})") from None


def write_json(path: Path, values: dict) -> None:
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def generation(sample: dict, config: GPTConfig, n_vocab: int) -> dict:
    """generation_config.json's way to say the spec's `sample` section, padded ids left out. The
    length is the context: transformers' GPT-2 fails beyond it, where slm.generate moves on."""
    temperature = sample.get("temperature", 0.8)
    out: dict = {"max_length": config.block_size, "do_sample": temperature > 0}
    if temperature > 0:         # transformers' own top_k is 50 unless told
        out |= {"temperature": temperature, "top_k": sample.get("top_k") or 0,
                "top_p": sample.get("top_p") or 1.0}
    return out | ({"suppress_tokens": list(range(n_vocab, config.vocab_size))}
                  if n_vocab < config.vocab_size else {})


def read_spec(run: Path) -> dict:
    import yaml
    try:
        return yaml.safe_load((run / "spec.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        raise UserError(f"{private(str(run))}: has no readable spec.yaml") from None


# -- tokenizer --------------------------------------------------------------------------------

def write_tokenizer(to: Path, tokenizer, block_size: int) -> list[str]:
    """tokenizer.json and tokenizer_config.json, with which transformers gives the same ids. Returns
    a line instead for a tokenizer that has no exact counterpart."""
    from slm.corpora import EOT
    from slm.tokenizer import SENTENCEPIECE_FILE, SentencePieceTokenizer
    if isinstance(tokenizer, SentencePieceTokenizer):
        write_whole(to / SENTENCEPIECE_FILE, tokenizer.model)
        return [f"tokenizer {tokenizer.name}: transformers' copies of SentencePiece differ in "
                "spaces and normalisation, so none is written; tokenizer.model is the file for "
                "sentencepiece.SentencePieceProcessor"]
    hf = hf_tokenizer(tokenizer)
    if hf is None:
        return [f"tokenizer {tokenizer.name}: not written, since it cuts text otherwise than "
                f"GPT-2's; use tiktoken.get_encoding({tokenizer.name!r}), which gives the ids"]
    hf.save(str(to / "tokenizer.json"))
    write_json(to / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size,
        "bos_token": EOT, "eos_token": EOT, "pad_token": EOT, "unk_token": EOT,
        "clean_up_tokenization_spaces": False})
    return []


def hf_tokenizer(tokenizer):
    """A tokenizers.Tokenizer that gives the ids of a slm.tokenizer.BytePairTokenizer; None where
    its pattern is not GPT-2's, the only one of which that is known (a test reads all of Unicode).

    tiktoken merges the pair whose union has the lowest rank, `tokenizers` goes down a list of
    merges. The merge of a token is the pair it consists of once all lower ranks are merged."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    from slm.vocabularies import GPT2_PATTERN, byte_alphabet
    if tokenizer.pattern != GPT2_PATTERN:
        return None
    character = {b: c for c, b in byte_alphabet().items()}

    def text(token: bytes) -> str:
        return "".join(character[b] for b in token)

    ranks = dict(sorted(tokenizer.ranks.items(), key=lambda item: item[1]))
    pairs = [parts(ranks, token, rank) for token, rank in ranks.items() if len(token) > 1]
    if any(len(pair) != 2 for pair in pairs):
        return None
    vocab = {text(token): i for token, i in ranks.items()} | tokenizer.special
    hf = Tokenizer(models.BPE(vocab, [(text(a), text(b)) for a, b in pairs]))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    hf.decoder = decoders.ByteLevel()
    hf.post_processor = processors.ByteLevel(trim_offsets=False)
    hf.add_special_tokens([AddedToken(name, normalized=False, special=True)
                           for name in tokenizer.special])
    return hf


def parts(ranks: dict[bytes, int], token: bytes, below: int) -> list[bytes]:
    """What the bytes of a token are merged into by the ranks below one, lowest first."""
    pieces = [token[i:i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        rank, i = min((ranks.get(pieces[i] + pieces[i + 1], below), i)
                      for i in range(len(pieces) - 1))
        if rank >= below:
            break
        pieces[i:i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def main(arguments: list[str] | None = None) -> int:
    """`python -m slm.export`; returns the exit code."""
    parser = argparse.ArgumentParser("python -m slm.export", description="Write a run's model as a "
                                     "folder that transformers loads.", allow_abbrev=False)
    parser.add_argument("folder", help="run folder, runs/<run>")
    parser.add_argument("--to", required=True, metavar="DIR", help="a new folder, or an earlier "
                        "export")
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    args = parser.parse_args(arguments)
    try:
        notes = export(args.folder, args.to, args.which)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in notes:
        print(line)
    print(f"written to {args.to}: transformers.AutoModelForCausalLM.from_pretrained loads it")
    return 0


if __name__ == "__main__":
    command(main)
