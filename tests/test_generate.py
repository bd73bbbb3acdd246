"""Sampling: cached equals uncached, a batch equals its rows, filters by enumeration, the CLI."""
import string
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import slm
from slm import checkpoint, generate
from slm.corpora import EOT
from slm.decode import Decoder
from slm.errors import UserError
from slm.generate import Writer, generate_ids, likeliest, load, pick
from slm.model import GPT, KVCache
from slm.shape import PRESETS, GPTConfig
from slm.tokenizer import BytePairTokenizer

V, BLOCK = 64, 16
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], list(range(12, 42))]


def model(preset: str = "gpt2", **changes) -> GPT:
    """Random weights large enough for texts that vary and greedy choices that are clear."""
    switches = {**PRESETS[preset], "zero_init": False, "tied": False}
    config = GPTConfig(**{**dict(n_layer=2, n_head=4, n_embd=32, block_size=BLOCK, vocab_size=V,
                                 init_std=0.5), **switches, **changes})
    return GPT(config, torch.Generator().manual_seed(3))


def uncached(net: GPT, prompt: list[int], n: int, eot: int | None = None,
             n_vocab: int = V) -> list[int]:
    """Greedy text without a cache, by the window rule alone: a full window is cut to its half."""
    text, begin = list(prompt), max(0, len(prompt) - BLOCK)
    net.eval()
    for _ in range(n):
        if len(text) - begin > BLOCK:
            begin = len(text) - BLOCK // 2
        with torch.no_grad():
            logits = net(torch.tensor([text[begin:]]))[0, -1, :n_vocab]
        text.append(int(logits.argmax()))
        if text[-1] == eot:
            break
    return text


def test_a_writer_says_in_a_line_what_it_is():
    said = repr(Writer(model(), SimpleNamespace(n_vocab=V)))
    assert "\n" not in said and len(said) < 150
    assert "2 layers x 4 heads x width 32" in said and "64 tokens of vocabulary" in said


@pytest.mark.parametrize("preset", PRESETS)
def test_cached_text_equals_uncached_beyond_the_block(preset):
    net = model(preset)
    for prompt in PROMPTS:
        assert generate_ids(net, [prompt], 50, temperature=0)[0] == uncached(net, prompt, 50)


@pytest.mark.parametrize("parametrization", ["sp", "mup", "completep"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_of_unequal_prompts_equals_its_rows(preset, parametrization):
    net = model(preset, parametrization=parametrization, base_width=16, base_depth=1)
    eot = uncached(net, PROMPTS[0], 6)[-1]       # so that some rows end early
    together = generate_ids(net, PROMPTS, 40, temperature=0, eot=eot)
    assert together == [uncached(net, prompt, 40, eot) for prompt in PROMPTS]
    assert len({len(text) - len(prompt) for text, prompt in zip(together, PROMPTS)}) > 1
    sampled = generate_ids(net, PROMPTS, 40, temperature=1.5, seeds=[7, 8, 9, 10], eot=eot)
    for i, prompt in enumerate(PROMPTS):
        alone = generate_ids(net, [prompt], 40, temperature=1.5, seeds=[7 + i], eot=eot)
        assert alone == [sampled[i]]


@pytest.mark.parametrize("parametrization", ["sp", "mup", "completep"])
@pytest.mark.parametrize("preset", PRESETS)
def test_logits_of_one_more_token_are_those_of_training(preset, parametrization):
    """One text and three (whose head is cut into blocks: 4001 is no multiple of one), unpadded and
    padded on the left."""
    net = model(preset, parametrization=parametrization, base_width=16, base_depth=1,
                base_head_size=4, input_mult=2.0, output_mult=3.0, vocab_size=4001)
    ids = torch.randint(4001, (3, BLOCK), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for rows, pad in ((1, None), (3, None), (3, torch.tensor([0, 4, 2]))):
            cache, decoder = KVCache(BLOCK, pad), Decoder(net, rows)
            net(ids[:rows, :6], cache=cache)
            got = torch.stack([decoder.logits(ids[:rows, i], cache) for i in range(6, BLOCK)], 1)
            for row, skip in enumerate([0] * rows if pad is None else pad.tolist()):
                expected = net(ids[row:row + 1, skip:])[0, 6 - skip:]
                torch.testing.assert_close(got[row], expected, atol=2e-4, rtol=2e-5)


def test_greedy_text_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    net = model(tied=True, block_size=40)
    twin = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_positions=40, n_embd=32, n_layer=2, n_head=4, activation_function="gelu",
        bos_token_id=0, eos_token_id=None))
    state = {f"transformer.{name}": p.T if "c_" in name and p.ndim == 2 else p
             for name, p in net.state_dict().items()}
    twin.load_state_dict(state | {"lm_head.weight": net.wte.weight})
    prompt = torch.tensor([PROMPTS[2]])
    theirs = twin.eval().generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                                  max_new_tokens=30, pad_token_id=0)
    assert generate_ids(net, [PROMPTS[2]], 30, temperature=0)[0] == theirs[0].tolist()


def test_seed_alone_decides_and_the_global_generator_is_left_alone():
    net = model()
    net.train()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = generate_ids(net, [[1]], 30, seeds=[5])
    assert torch.equal(torch.get_rng_state(), state) and net.training
    torch.manual_seed(2)
    assert generate_ids(net, [[1]], 30, seeds=[5]) == one
    assert generate_ids(net, [[1]], 30, seeds=[6]) != one


def test_padded_ids_are_never_sampled():
    net = model()
    with torch.no_grad():
        net.lm_head.weight[50:] *= 20      # what would be likely, were it allowed
    texts = generate_ids(net, [[1], [2]], 60, temperature=3.0, n_vocab=50)
    assert max(max(text) for text in texts) < 50
    assert max(max(text) for text in generate_ids(net, [[1], [2]], 60, temperature=3.0)) >= 50


@pytest.mark.parametrize("settings", [dict(), dict(temperature=0.5), dict(top_k=3),
                                      dict(top_p=0.6), dict(top_k=4, top_p=0.7),
                                      dict(top_p=1e-9), dict(top_k=100), dict(top_p=1.0)])
def test_sampling_frequencies_by_enumeration(settings):
    """An even grid of u visits each id in proportion to its filtered, renormalised probability."""
    logits = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.9, -4.0])
    n = 20_000
    u = (torch.arange(n) + 0.5) / n
    chosen = pick(logits.expand(n, -1), u, **{**dict(temperature=1.0, top_k=None, top_p=None),
                                              **settings})
    p = (logits.double() / settings.get("temperature", 1.0)).softmax(0).numpy()
    order = np.argsort(-p)
    kept, mass = [], 0.0
    for i in order[:settings.get("top_k", len(p))]:
        if mass >= settings.get("top_p", 1.1) * p[order[:settings.get("top_k", len(p))]].sum():
            break
        kept.append(i)
        mass += p[i]
    expected = np.zeros(len(p))
    expected[kept] = p[kept] / p[kept].sum()
    assert np.abs(np.bincount(chosen, minlength=len(p)) / n - expected).max() < 2e-4


def test_extreme_random_numbers_pick_possible_ids():
    logits = torch.full((2, 1000), -1e4)
    logits[:, 3], logits[:, 700] = 1.0, 1.0
    u = torch.tensor([0.0, 1 - 2**-24])
    assert pick(logits, u, 1.0, None, None).tolist() == [3, 700]
    assert set(pick(logits, u, 1.0, 500, 0.9).tolist()) <= {3, 700}
    assert pick(logits, u, 0, None, None).tolist() == [3, 3]


# -- text ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    """62 bytes and the end of text: 63 ids, padded to 64."""
    letters = string.ascii_letters + " .,!?'\"\n-:"
    ranks = {letter.encode(): i for i, letter in enumerate(letters)}
    return BytePairTokenizer("letters", r"[^\r]", ranks, {EOT: len(ranks)}, 64)


@pytest.fixture()
def run(tmp_path: Path, tokenizer) -> Path:
    """A run folder with an untrained model: two numbered checkpoints and a better one."""
    folder = tmp_path / "run-12345678"
    for seed, name in enumerate(("step-00000002.pt", "step-00000010.pt", "best.pt")):
        net = GPT(model().config, torch.Generator().manual_seed(seed))
        checkpoint.save(folder / "checkpoints" / name,
                        {"model": net.state_dict(), "config": asdict(net.config)})
    tokenizer.save(folder)
    return folder


def test_text_in_text_out(run, tokenizer):
    writer = slm.load(str(run))
    text = writer.generate("Once upon a time", max_new_tokens=20, seed=4, stop=False)
    assert text.startswith("Once upon a time")
    assert len(text.replace(EOT, "#")) == len("Once upon a time") + 20
    assert text == writer.generate("Once upon a time", max_new_tokens=20, seed=4, stop=False)
    many = writer.generate_many(["Once", "A cat"], max_new_tokens=9, seed=4)
    assert many == [writer.generate("Once", 9, seed=4), writer.generate("A cat", 9, seed=5)]
    assert writer.generate_many([]) == []
    assert writer.generate(["Once", "A cat"], max_new_tokens=9, seed=4) == many
    for wrong in (None, 3, ["Once", 3]):
        with pytest.raises(UserError, match="should be text, or a list of texts"):
            writer.generate(wrong)


def test_text_ends_at_end_of_text_and_an_empty_prompt_begins_with_it(tokenizer):
    net = model()
    fed = []
    hidden = net.hidden
    net.hidden = lambda idx, cache: (fed.append(idx.tolist()), hidden(idx, cache))[1]
    writer = Writer(net, tokenizer)
    with torch.no_grad():
        net.lm_head.weight[tokenizer.eot] = 50 * net.lm_head.weight[tokenizer.eot]
    texts = writer.generate_many(["", "cat"] + ["dog"] * 6, max_new_tokens=40)
    assert fed[0][0][-1] == tokenizer.eot
    assert all(EOT not in text for text in texts) and texts[1].startswith("cat")
    assert min(len(text) for text in texts) < 40
    assert EOT in "".join(Writer(net, tokenizer).generate_many(["dog"] * 7, 40, stop=False))


def test_best_and_last(run, capsys):
    weights = {which: load(run, which).model.wte.weight for which in ("best", "last")}
    for which, seed in (("best", 2), ("last", 1)):
        expected = GPT(model().config, torch.Generator().manual_seed(seed)).wte.weight
        assert torch.equal(weights[which], expected)
    (run / "checkpoints" / "best.pt").unlink()
    assert torch.equal(load(run).model.wte.weight, weights["last"])
    assert "using step-00000010.pt" in capsys.readouterr().out


@pytest.mark.parametrize("damage, says", [
    (lambda run: run.rename(run.parent / "elsewhere"), "is not a folder"),
    (lambda run: [p.unlink() for p in (run / "checkpoints").iterdir()], "no checkpoints"),
    (lambda run: truncate(run / "checkpoints" / "best.pt"), "best.pt"),
    (lambda run: (run / "checkpoints" / "best.pt").write_text("not a checkpoint"), "best.pt"),
    (lambda run: torch.save({"a": 1}, run / "checkpoints" / "best.pt"), "best.pt"),
    (lambda run: change_config(run, n_layer=3), "do not make a model"),
    (lambda run: change_config(run, colour="red"), "do not make a model"),
    (lambda run: (run / "tokenizer.json").unlink(), "tokenizer"),
])
def test_a_damaged_run_folder_gets_one_line(run, damage, says, capsys):
    damage(run)
    assert generate.main([str(run), "Once"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "Traceback" not in error


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def change_config(run: Path, **changes) -> None:
    path = run / "checkpoints" / "best.pt"
    state = checkpoint.load(path)
    state["config"].update(changes)
    checkpoint.save(path, state)


@pytest.mark.parametrize("flags, says", [
    (["--temperature=-1"], "temperature"), (["--temperature=nan"], "temperature"),
    (["--top_k=0"], "top_k"), (["--top_p=0"], "top_p"), (["--top_p=1.5"], "top_p"),
    (["--max_new_tokens=0"], "max_new_tokens"), (["--max-new-tokens=0"], "max_new_tokens"),
    (["--seed=" + "9" * 20], "seed=9999"), (["--seed=-1"], "seed=-1"),
    (["--device=abacus"], "abacus")])
def test_impossible_settings_get_one_line(run, flags, says, capsys):
    assert generate.main([str(run), "Once", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_the_command(run, capsys):
    command = [sys.executable, "-m", "slm.generate", str(run), "Once upon", "--max_new_tokens=8",
               "--temperature", "0.9", "--top_k=5"]
    done = subprocess.run(command, capture_output=True, text=True,
                          cwd=Path(slm.__file__).parent.parent)
    assert done.returncode == 0 and done.stdout.startswith("Once upon"), done.stderr
    with pytest.raises(SystemExit) as exit_:
        generate.main([str(run), "Once", "--colour=red"])
    assert exit_.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_told(run, capsys):
    for letters, lines in ((generate.load(run).model.config.block_size, 0), (500, 1)):
        assert generate.main([str(run), "a" * letters, "--max-new-tokens=2"]) == 0
        error = capsys.readouterr().err
        assert error.count("\n") == lines and ("has 500 tokens" in error) == lines


def test_a_character_split_between_prompt_and_continuation(tokenizer):
    """Ids are decoded together: bytes of one character may come from both sides."""
    class Halves:
        eot, n_vocab = 63, 64

        def encode(self, text):
            return [1]

        def decode(self, ids):
            return ",".join(map(str, ids))

    assert Writer(model(), Halves()).generate("é", 3, temperature=0, stop=False).startswith("1,")


@pytest.mark.parametrize("n, k", [(6400, 200), (6415, 200), (6399, 200), (1000, 3), (40, 1)])
def test_likeliest_is_topk(n, k):
    x = torch.stack([torch.randperm(n) for _ in range(5)]).float()      # no two values are equal
    x[1] = x[1].sort().values
    values, places = likeliest(x, k)
    expected = x.topk(k)
    assert torch.equal(values, expected.values) and torch.equal(places, expected.indices)
