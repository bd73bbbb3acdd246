"""Export to and import from transformers: equal logits, ids and greedy text, both ways."""
import random
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from test_model import ids, off_base, tiny
from tiny import final_weights, metrics, only_run, write_spec

import run
import slm
from slm.errors import ImpossiblePoint, UserError
from slm.export import export, hf_tokenizer, main, write_model
from slm.hf import hf_config
from slm.init_from import check, start_from
from slm.model import GPT
from slm.shape import PRESETS
from slm.spec import identity, load_spec
from slm.tokenizer import get_tokenizer

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()


def stirred(config) -> GPT:
    """A model off its initial zeros and ones, so that biases and gains count."""
    model = GPT(config).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return model


def write(model: GPT, folder):
    folder.mkdir(exist_ok=True)
    write_model(folder, model.config, model.state_dict(), hf_config(model.config))
    return folder


@pytest.mark.parametrize("config", [
    tiny(), tiny(bias=False), tiny(activation="gelu_tanh", d_ff=96), tiny(activation="relu2"),
    tiny(tied=False), off_base("gpt2", "completep"),
    replace(off_base("gpt2", "mup"), tied=False, base_head_size=2),
    tiny("llama"), tiny("llama", tied=True, bias=True), off_base("llama", "completep"),
    tiny("llama", tied=True, parametrization="mup", base_width=8, input_mult=2.0)],
    ids=lambda c: f"{c.position}-{c.activation}-{c.parametrization}")
def test_transformers_loads_it_and_has_the_logits(config, tmp_path):
    model = stirred(config)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        write(model, tmp_path), output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(theirs(ids()).logits, model(ids()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config, says", [
    (tiny("modern"), r"Llama, these .*model.qk_norm=True .*model.activation=relu2"),
    (tiny(activation="swiglu"), "GPT-2, these .*model.activation=swiglu"),
    (tiny("llama", position="learned"), "Llama, these .*model.position=learned")])
def test_what_has_no_counterpart_is_named(config, says, tmp_path):
    with pytest.raises(UserError, match=says):
        write(GPT(config), tmp_path)
    assert not list(tmp_path.iterdir())


# -- a run there and back ----------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, its export, and the spec it was trained from."""
    home = tmp_path_factory.mktemp("trained")
    spec = write_spec(home, model__bias=False, train__steps=12, optim__lr=0.03,
                      data__tokenizer="bpe:500")
    assert run.main([str(spec)]) == 0
    folder = only_run(home)
    assert main([str(folder), "--to", str(home / "out")]) == 0
    return folder, home / "out", spec


def test_ids_and_greedy_text_are_those_of_transformers(trained):
    folder, out, _ = trained
    writer = slm.load(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    rng = random.Random(0)
    for text in random_texts(rng, 300):
        mine = writer.tokenizer.encode(text)
        assert tokenizer.encode(text) == mine, ascii(text)
        assert tokenizer.decode(mine) == text
    assert len(tokenizer) == writer.tokenizer.n_vocab < model.config.vocab_size
    for prompt in ("Once upon a time", "The cat", "é"):
        mine = writer.generate(prompt, max_new_tokens=20, temperature=0)
        start = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt")
        theirs = model.generate(**start, do_sample=False, max_length=None, max_new_tokens=20)
        assert tokenizer.decode(theirs[0], skip_special_tokens=True) == mine
    sampled = model.generate(**start)                # as generation_config.json says
    assert sampled.shape[1] <= 32 and sampled.max() < writer.tokenizer.n_vocab


def random_texts(rng, n):
    odd = ["  ", "\n\n", "\t", "'s", "'LL", " the", "\u00a0", "\u2028", "\u0085", "1234", "e\u0301",
           "\U0001f469\u200d\U0001f680", "\ufeff"]
    for _ in range(n):
        yield "".join(rng.choice(odd) if rng.random() < 0.3 else
                      chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000),
                                      rng.randrange(128)])) for _ in range(rng.randrange(30)))


def test_gpt2s_own_ids():
    ours = get_tokenizer("gpt2", None, "unused")
    theirs = hf_tokenizer(ours)
    for text in ["Once upon a time, it's 2024!  \n\n ok", *random_texts(random.Random(1), 200)]:
        assert theirs.encode(text).ids == ours.encode(text), ascii(text)
    assert theirs.token_to_id("<|endoftext|>") == 50256 == theirs.get_vocab_size() - 1
    ours.pattern = r"\S+|\s+"                         # of any other it is not known
    assert hf_tokenizer(ours) is None


def test_the_card_states_figures_and_spec_and_no_path(trained, tmp_path):
    folder, out, spec = trained
    card = (out / "README.md").read_text()
    last = metrics(folder)[-1]
    assert f"{last['val/loss']:.4f}" in card and f"{last['tokens']:,} tokens" in card
    front, body = card.split("---\n")[1:3]
    assert yaml.safe_load(front)["library_name"] == "transformers"
    stated = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    recorded = yaml.safe_load((folder / "spec.yaml").read_text())
    assert stated["model"] == recorded["model"] and stated["optim"] == recorded["optim"]
    assert not any(str(part) in text for part in (folder.parent, spec.parent.name)
                   for text in (card, (out / "config.json").read_text()))


def test_only_an_export_is_overwritten(trained, tmp_path, capsys):
    folder, out, _ = trained
    again = shutil.copytree(out, tmp_path / "again")
    (again / "mine.txt").write_text("kept")
    (again / "tokenizer.json").write_text("old")
    export(folder, again, "last")
    assert (again / "mine.txt").exists() and "old" != (again / "tokenizer.json").read_text()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("a cat")
    assert main([str(folder), "--to", str(tmp_path / "photos")]) == 2
    assert "not empty and no export" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.png"]
    assert main([str(tmp_path / "gone"), "--to", str(tmp_path / "x")]) == 2


# -- starting from weights ---------------------------------------------------------------------

class Ids:
    """A tokenizer of 500 ids that says no more."""
    name, n_vocab = "bpe:500", 500


def openai_like(folder, **changes):
    """A folder of transformers with GPT-2's weights as OpenAI's are: tanh GELU, a vocabulary that
    is not padded, biases."""
    torch.manual_seed(3)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**dict(
        vocab_size=500, n_positions=24, n_embd=32, n_layer=2, n_head=4,
        activation_function="gelu_new", initializer_range=0.2, bos_token_id=0, eos_token_id=0),
        **changes}))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.2)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("changes", [
    {}, dict(parametrization="completep", base_width=8, base_depth=1, input_mult=2.0,
             output_mult=3.0)], ids=("sp", "completep"))
def test_gpt2_weights_give_their_logits(changes, tmp_path):
    theirs = openai_like(tmp_path / "gpt2")
    config = tiny(activation="gelu_tanh", vocab_size=512, block_size=16, **changes)
    source = f"hf:{tmp_path / 'gpt2'}"
    known = load_spec([], {"model.init_from": source, "train.steps": 1}).model.init_fingerprint
    model = GPT(config).eval()
    check(source, config)
    start_from(source, known, model, Ids)
    x, y = ids(4, v=500), ids(4, v=500, seed=2)
    logits = theirs(x).logits
    torch.testing.assert_close(model(x)[..., :500], logits, atol=1e-5, rtol=1e-5)
    exact = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    assert 0 <= model(x, y) - exact < 12 / 500        # the padded ids' share (Jensen)


def test_every_mismatch_is_said_at_once(tmp_path):
    openai_like(tmp_path / "gpt2", tie_word_embeddings=False, scale_attn_weights=False)
    config = tiny("gpt2", n_layer=3, n_embd=64, n_head=2, block_size=32, vocab_size=1024,
                  norm="rmsnorm", qk_norm=True)
    with pytest.raises(ImpossiblePoint) as e:
        check(f"hf:{tmp_path / 'gpt2'}", config)
    lines = str(e.value).splitlines()
    for says in ("n_layer = 3: the weights have 2", "n_embd = 64: the weights have 32",
                 "n_head = 2: the weights have 4", "d_ff = 256: the weights have 128",
                 "norm = rmsnorm: the weights have layernorm", "qk_norm = True",
                 "tied = True: the weights have False", "activation = gelu: the weights",
                 "block_size = 32: the weights know 24", "vocabulary, padded, has 1024 ids, the "
                 "weights have 500, padded 512", "scale_attn_weights is False"):
        assert sum(says in line for line in lines) == 1, (says, lines)
    assert len(lines) == 11


def test_biases_that_are_not_zero_and_other_ids_are_refused(tmp_path, trained):
    openai_like(tmp_path / "gpt2")
    source = f"hf:{tmp_path / 'gpt2'}"
    known = load_spec([], {"model.init_from": source, "train.steps": 1}).model.init_fingerprint
    config = tiny(activation="gelu_tanh", vocab_size=512, block_size=16, bias=False)
    with pytest.raises(ImpossiblePoint, match="model.bias = False: the weights have biases"):
        start_from(source, known, GPT(config), Ids)
    folder, out, _ = trained
    writer = slm.load(folder)
    other = get_tokenizer("gpt2", None, "unused")
    other.n_vocab, other.ranks = 500, {**writer.tokenizer.ranks, b"!": 1, b'"': 0}
    known = load_spec([], {"model.init_from": f"hf:{out}", "train.steps": 1}
                      ).model.init_fingerprint
    for source, changed in ((f"hf:{out}", known), (str(folder), None)):
        changed = changed or load_spec([], {"model.init_from": source, "train.steps": 1}
                                       ).model.init_fingerprint
        with pytest.raises(ImpossiblePoint, match="data.tokenizer: .* gives other ids"):
            start_from(source, changed, GPT(writer.model.config), other)


def test_a_run_starts_from_an_export_or_a_run(trained, tmp_path):
    folder, out, spec = trained
    starts = []
    for i, source in enumerate((f"hf:{out}", str(folder))):
        assert run.main([str(spec), f"--model.init_from={source}", "--train.steps=2",
                         f"--track.dir={tmp_path / str(i) / 'runs'}"]) == 0
        started = only_run(tmp_path / str(i))
        starts.append(metrics(started)[0]["val/loss"])
        assert final_weights(started).keys() == final_weights(folder).keys()
        # again from its own record, whose spec names the fingerprint
        assert run.main([str(started / "spec.yaml"), "--track.name=tiny"]) == 0
        assert only_run(tmp_path / str(i)) == started
    assert starts == pytest.approx([metrics(folder)[-1]["val/loss"]] * 2, abs=1e-4)


def test_the_weights_are_part_of_what_a_run_is_and_their_place_is_not(trained, tmp_path, capsys):
    folder, out, spec = trained

    def of(source, **more):
        return load_spec([spec], {"model.init_from": source, **more})
    moved = shutil.copytree(out, tmp_path / "moved")
    assert identity(of(f"hf:{out}")) == identity(of(f"hf:{moved}")) != identity(load_spec([spec]))
    known = of(f"hf:{moved}").model.init_fingerprint
    write(GPT(slm.load(folder).model.config), moved)
    assert identity(of(f"hf:{moved}")) != identity(of(f"hf:{out}"))
    for overrides, says in (
            (["hf:../nowhere"], "init_from = 'hf:../nowhere': no such folder"),
            ([str(tmp_path)], "is no run, not a finished run"),
            ([f"hf:{moved}", f"--model.init_fingerprint={known}"], f"the weights of hf:{moved} "),
            (["none", "--model.init_fingerprint=abc"], "does nothing without model.init_from"),
            ([f"hf:{out}", "--model.n_layer=3"], "model.n_layer = 3: the weights have 1"),
            (["runs-gone", "--model.init_fingerprint=0", "--track.name=x"], "no such folder")):
        assert run.main([str(spec), f"--model.init_from={overrides[0]}", *overrides[1:]]) == 2
        assert says in capsys.readouterr().err


def test_a_name_of_the_hub_needs_a_network(monkeypatch):
    monkeypatch.setattr("slm.corpora.hub._hub_reachable", lambda: False)
    source = "hf:openai-community/gpt2-of-nobody"
    spec = load_spec([], {"model.init_from": source, "train.steps": 1})
    assert spec.model.init_fingerprint == source      # the name: its files may not be here
    check(source, tiny())
    with pytest.raises(UserError, match="can't be fetched.*give hf:<folder>") as e:
        start_from(source, source, GPT(tiny()), Ids)
    assert len(str(e.value).splitlines()) == 1


def test_llama_is_not_imported(tmp_path):
    write(GPT(tiny("llama")), tmp_path / "llama")
    with pytest.raises(ImpossiblePoint, match="'llama': only gpt2 can be imported"):
        check(f"hf:{tmp_path / 'llama'}", tiny("llama"))
    assert PRESETS["gpt2"]["activation"] == "gelu"    # nanoGPT's; OpenAI's weights say gelu_tanh
