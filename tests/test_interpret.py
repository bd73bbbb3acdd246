"""Attention and neurons as they are read out, against the model itself and plain loops."""
import string
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from tiny import only_run, write_spec

import analysis.interpret as interpret
import run
from analysis.interpret import head_table, model_of, neuron_tokens, read, sharpest
from analysis.runs import load_runs
from slm.corpora import EOT
from slm.errors import UserError
from slm.generate import Writer
from slm.model import GPT
from slm.shape import GPTConfig
from slm.tokenizer import BytePairTokenizer

matplotlib = pytest.importorskip("matplotlib")
from analysis import plots  # noqa: E402

LETTERS = string.ascii_letters + " .,!?'\"\n-:$<>_{}\\"
TEXTS = ["Tom $x_{ <b>", "A cat sat.", "", "Once upon a time!", "b" * 60, "No, no, no.", "Mia ran"]


def writer(**changes) -> Writer:
    ids = {c.encode(): i for i, c in enumerate(LETTERS)}
    tokenizer = BytePairTokenizer("letters", r"[^\r]", ids, {EOT: len(ids)}, 128)
    settings = dict(n_layer=2, n_head=2, n_embd=16, block_size=24, vocab_size=128, init_std=0.4)
    net = GPT(GPTConfig(**settings | changes), torch.Generator().manual_seed(0))
    return Writer(net, tokenizer)


CONFIGS = [{}, dict(position="rope", norm="rmsnorm", qk_norm=True, activation="relu2", tied=False,
                    parametrization="mup", base_head_size=2, base_width=8),
           dict(position="rope", activation="swiglu", bias=False, dropout=0.5)]


@pytest.mark.parametrize("changes", CONFIGS, ids=["gpt2", "modern", "llama"])
def test_what_is_read_makes_the_models_own_output(changes):
    """weights @ values through the output matrix is what the attention said, the activations
    through theirs what the MLP said, and the logits are the model's."""
    w = writer(**changes)
    said = {}
    for i, block in enumerate(w.model.h):
        for part in (block.attn, block.mlp):
            part.register_forward_hook(lambda m, inputs, out, key=(i, part): said.update(
                {key: (inputs[0], out[0])}))
    reading = read(w, "Mia ran, no!")
    ids = torch.tensor([[w.tokenizer.eot, *w.tokenizer.encode("Mia ran, no!")]])
    assert "".join(reading.tokens) == EOT + "Mia ran, no!" and reading.tokens[0] == EOT
    with torch.no_grad():
        assert reading.logits == pytest.approx(w.model.eval()(ids)[0].numpy(), abs=1e-6)
        for i, block in enumerate(w.model.h):
            x, out = said[i, block.attn]
            v = rearrange(block.attn.c_attn(x).chunk(3, dim=-1)[2], "1 t (h k) -> h t k", h=2)
            y = rearrange(torch.from_numpy(reading.attention[i]) @ v, "h t k -> t (h k)")
            torch.testing.assert_close(block.attn.c_proj(y), out, atol=1e-5, rtol=1e-4)
            acts = torch.from_numpy(reading.activations[i])
            torch.testing.assert_close(block.mlp.c_proj(acts), said[i, block.mlp][1])
            assert acts.shape == (13, w.model.config.d_ff)
    assert not any(m._forward_pre_hooks for m in w.model.modules())


def test_a_text_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="26 tokens, this model reads 24"):
        read(writer(), "b" * 25)
    with pytest.raises(UserError, match="no texts"):
        head_table(writer(), [])
    with pytest.raises(UserError, match="no text has 8 tokens"):
        head_table(writer(), ["abc"])
    with pytest.raises(UserError, match="layers 0 to 1"):
        neuron_tokens(writer(), TEXTS, 2)


@pytest.mark.parametrize("batch_tokens", [24, 72, 4096])
def test_neurons_by_brute_force(batch_tokens, monkeypatch):
    """Text after text, neuron after neuron, whatever the batches."""
    monkeypatch.setattr(interpret, "BATCH_TOKENS", batch_tokens)
    w, n = writer(), 3
    table = neuron_tokens(w, TEXTS, 1, n=n, around=2)
    acts = [read(w, text[:23]).activations[1, 1:] for text in TEXTS]            # (t, f) each
    rms = np.sqrt((np.concatenate(acts).astype(float) ** 2).mean(0))
    for neuron in range(64):
        best = sorted(((a[:, neuron].max(), k) for k, a in enumerate(acts) if len(a)), reverse=True)
        rows = table[table["neuron"] == neuron]
        assert rows["activation"].to_numpy() == pytest.approx([v for v, _ in best[:n]], abs=1e-5)
        for row in rows.itertuples():
            one = acts[row.text][:, neuron]
            low, high = max(0, row.position - 2), row.position + 3
            assert one[row.position] == pytest.approx(one.max(), abs=1e-5)
            assert row.activations == pytest.approx(one[low:high], abs=1e-5)
            assert row.tokens == list(TEXTS[row.text][:23][low:high])
            assert row.token == TEXTS[row.text][row.position]
            assert row.peak == pytest.approx(row.activation / rms[neuron], rel=1e-4)
    assert table["rank"].tolist() == [0, 1, 2] * 64


def test_the_sharpest_neurons_stand_out_in_all_their_texts():
    table = pd.DataFrame({"neuron": [0, 0, 1, 1, 2, 2, 3, 3], "peak": [9, 1, 5, 4, 30, 30, 3, 3],
                          "activation": [5, 4, 3, 3, 0.1, 0.1, 2, 2]})
    assert sharpest(table, 2) == [1, 3]                                # 2 is as good as dead


def test_heads_that_look_everywhere_and_at_the_token_before(monkeypatch):
    w, texts = writer(), ["b" * 20, "A cat sat on", "no"]
    with torch.no_grad():
        w.model.h[0].attn.c_attn.weight[:8] = 0                        # queries of layer 0, head 0
    row = head_table(w, texts).iloc[0]
    counted = [*range(7, 21), *range(7, 13)]                           # positions, from 0
    share = np.mean([1 / (i + 1) for i in counted])
    assert row["spread"] == pytest.approx(1) and row["first"] == pytest.approx(share, rel=1e-5)
    at = [np.mean([1 / (i + 1) for i in counted if i >= d]) for d in range(21)
          if sum(i >= d for i in counted) >= 5]
    assert row["at_distance"] == pytest.approx(max(at), rel=1e-5)

    def before(q, k, scale):
        t = q.shape[2]
        return F.one_hot((torch.arange(t) - 1).clamp(min=0), t).float().expand(*q.shape[:2], t, t)

    monkeypatch.setattr(interpret, "attention_weights", before)
    table = head_table(w, texts)
    assert (table["distance"] == 1).all() and (table["at_distance"] == 1).all()
    assert (table["spread"] == 0).all() and (table["first"] == 0).all() and len(table) == 4


def test_the_model_looked_into_is_the_best_with_checkpoints(tmp_path, monkeypatch, capsys):
    for name, steps in (("a", 3), ("b", 8)):
        (tmp_path / name).mkdir()
        assert run.main([str(write_spec(tmp_path / name, train__steps=steps, track__name=name,
                                        data__cache=str(tmp_path / "data")))]) == 0
    (tmp_path / "both").mkdir()
    for name in "ab":
        folder = only_run(tmp_path / name)
        folder.rename(tmp_path / "both" / folder.name)
    runs = load_runs(tmp_path / "both")
    best = runs.loc[runs["loss"].idxmin(), "run"]
    model, spec, name = model_of(runs)
    assert name == best and name.startswith("b-") and spec["train"]["steps"] == 8
    assert read(model, "Once upon a time").attention.shape[:2] == (1, 2)
    assert read(tmp_path / "both" / name, "Once").tokens[0] == EOT     # a folder will do
    for file in (tmp_path / "both" / best / "checkpoints").iterdir():
        file.unlink()
    assert model_of(runs)[2].startswith("a-")
    for file in (tmp_path / "both").glob("*/checkpoints/*"):
        file.unlink()
    capsys.readouterr()
    monkeypatch.setattr(interpret, "small_model", lambda tokens: (tokens, {}, "small"))
    assert model_of(runs, 500) == (500, {}, "small")
    assert "none of these 2 runs has checkpoints here" in capsys.readouterr().out


def shown(image) -> np.ndarray:
    return np.ma.getdata(image.get_array())


def test_figures_show_what_was_read(monkeypatch):
    reading = read(writer(), TEXTS[0])
    fig = plots.attention_maps(reading)
    images = {im.get_gid(): im for ax in fig.axes for im in ax.images}
    for i, j in np.ndindex(2, 2):
        assert shown(images[f"{i} {j}"]) == pytest.approx(reading.attention[i, j])
    one = plots.attention_head(reading, 1, 0)
    assert shown(one.axes[0].images[0]) == pytest.approx(reading.attention[1, 0])
    names = [t.get_text() for t in one.axes[0].get_yticklabels()]
    assert "".join(names) == "(start)" + TEXTS[0].replace(" ", "·").replace("$", r"\$")
    acts = plots.neuron_map(reading, 1, n=5).axes[0]
    top = [int(t.get_text()) for t in acts.get_yticklabels()]
    assert set(top) == set(np.argsort(-reading.activations[1, 1:].max(0))[:5])
    assert shown(acts.images[0]) == pytest.approx(reading.activations[1, 1:].T[top].clip(min=0))
    for call, says in ((lambda: plots.attention_head(reading, 2, 0), "layers 0 to 1"),
                       (lambda: plots.neuron_map(reading, -1), "layers 0 to 1"),
                       (lambda: plots.neuron_texts(neuron_tokens(writer(), TEXTS, 0), [99]), "99")):
        with pytest.raises(UserError, match=says):
            call()
    monkeypatch.setattr("analysis.plots.interpret.MOST_HEADS", 2)
    deep = SimpleNamespace(attention=np.zeros((2, 30, 4, 4)), tokens=list("abcd"))
    fig = plots.attention_maps(deep)
    assert "4 of 60 heads" in fig.caption_text and len(fig.axes) == 5
    assert fig.axes[1].get_title("left") == "layer 0, head 29"


def test_titles_of_maps_side_by_side_do_not_touch():
    wide = SimpleNamespace(attention=np.zeros((2, 8, 4, 4)), tokens=list("abcd"))
    fig = plots.attention_maps(wide)
    fig.draw_without_rendering()
    boxes = [ax._left_title.get_window_extent() for ax in fig.axes[:16]]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_passages_are_printed_as_they_are_on_the_colour_of_their_activation():
    table = neuron_tokens(writer(), TEXTS, 0, n=3)
    fig = plots.neuron_texts(table, [5, 2], most=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert b"<svg" in plots.to_svg(fig)
    (ax,) = fig.axes
    drawn = table[(table["neuron"].isin([5, 2])) & (table["rank"] < 2)]
    boxes = [p for p in ax.patches]
    assert len(boxes) == drawn["tokens"].map(len).sum()
    strongest = drawn[(drawn["neuron"] == 5) & (drawn["rank"] == 0)].iloc[0]
    at = int(np.argmax(strongest["activations"]))
    assert boxes[at].get_facecolor()[:3] == pytest.approx(
        matplotlib.colors.to_rgb("#D55E00"), abs=0.01)
    assert boxes[at].get_x() == pytest.approx(4)                       # in the middle
