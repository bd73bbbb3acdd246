"""The GPT: equal to transformers' GPT-2 and Llama, causal, cached equals uncached, traceable."""
import math
from dataclasses import replace

import pytest
import torch

from slm.errors import ImpossiblePoint
from slm.model import GPT, KVCache
from slm.optim import make_optimizer
from slm.parametrization import group_of
from slm.schema import Optim
from slm.shape import PRESETS, GPTConfig

PARAMETRIZATIONS = ("sp", "mup", "completep")


def tiny(preset: str = "gpt2", **changes) -> GPTConfig:
    switches = {**PRESETS[preset], "zero_init": False}   # zeros would hide what is being compared
    return GPTConfig(**{**dict(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=64),
                        **switches, **changes})


def off_base(preset: str, parametrization: str) -> GPTConfig:
    """Twice the base width and depth, with every multiplier away from 1."""
    return tiny(preset, parametrization=parametrization, base_width=16, base_depth=1,
                input_mult=3.0, output_mult=0.7)


def ids(b: int = 3, t: int = 16, v: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.randint(v, (b, t), generator=torch.Generator().manual_seed(seed))


def gpt2_twin(model: GPT):
    """transformers' GPT-2 with the weights of model: the same names, Conv1D weights transposed."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    twin = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, activation_function="gelu", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    twin.load_state_dict({f"transformer.{n}": twin_layout(n, p)
                          for n, p in model.state_dict().items()} |
                         {"lm_head.weight": model.wte.weight})
    return twin


def twin_layout(name: str, p: torch.Tensor) -> torch.Tensor:
    return p.T if group_of(name) in ("matrix", "projection") and p.ndim == 2 else p


def test_gpt2_preset_has_the_logits_and_gradients_of_transformers_gpt2():
    model = GPT(tiny())
    with torch.no_grad():   # off the initial zeros and ones, so that biases and gains count
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    twin, x, y = gpt2_twin(model), ids(), ids(seed=2)
    torch.testing.assert_close(model(x), twin(x).logits, atol=1e-5, rtol=0)
    loss = model(x, y)
    loss.backward()
    logits = twin(x).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    theirs = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(twin_layout(name, p.grad), theirs[f"transformer.{name}"].grad,
                                   atol=1e-5, rtol=0, msg=name)


def test_llama_preset_has_the_logits_of_transformers_llama():
    transformers = pytest.importorskip("transformers")
    c = tiny("llama", init_std=0.2)
    model = GPT(c)
    twin = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=c.d_ff, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=16, rms_norm_eps=1e-6, rope_theta=10000.0))
    weights = twin.state_dict()
    weights["model.embed_tokens.weight"] = model.wte.weight
    weights["lm_head.weight"] = model.lm_head.weight
    for i, block in enumerate(model.h):
        q, k, v = block.attn.c_attn.weight.chunk(3)
        gate, up = block.mlp.c_fc.weight.chunk(2)
        weights.update({f"model.layers.{i}.{name}.weight": w for name, w in {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
            "self_attn.o_proj": block.attn.c_proj.weight, "mlp.gate_proj": gate,
            "mlp.up_proj": up, "mlp.down_proj": block.mlp.c_proj.weight}.items()})
    twin.load_state_dict(weights)
    torch.testing.assert_close(model(ids()), twin(ids()).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_future_token_changes_no_earlier_logit(preset):
    model, x = GPT(tiny(preset)).eval(), ids(1)
    before = model(x)
    for t in (1, 7, 15):
        changed = x.clone()
        changed[0, t] = (x[0, t] + 1) % 64
        after = model(changed)
        assert torch.equal(after[0, :t], before[0, :t])
        assert not torch.equal(after[0, t], before[0, t])


@pytest.mark.parametrize("preset", PRESETS)
def test_initial_loss_is_ln_v(preset):
    config = replace(tiny(preset), zero_init=PRESETS[preset]["zero_init"])
    assert GPT(config)(ids(), ids(seed=2)).item() == pytest.approx(math.log(64), abs=0.02)


@pytest.mark.parametrize("preset", PRESETS)
def test_one_batch_overfits(preset):
    model, x, y = GPT(tiny(preset, n_embd=64)), ids(2), ids(2, seed=2)
    optimizer = make_optimizer(model, Optim(lr=1e-2, weight_decay=0.0), "cpu")
    for _ in range(80):
        loss = model(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_cached_logits_equal_uncached(preset, parametrization):
    model, x = GPT(off_base(preset, parametrization)).eval(), ids()
    cache = KVCache(16)
    chunks = [model(x[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 7), (7, 12), (12, 16))]
    torch.testing.assert_close(torch.cat(chunks, 1), model(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_left_padding_changes_no_logit_of_a_row(preset):
    model, x = GPT(tiny(preset)).eval(), ids(2, 12)
    short = x[1:, 5:]
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), short), 1)
    cache = KVCache(16, pad=torch.tensor([0, 5]))
    together = torch.cat((x[:1], padded))
    got = torch.cat([model(together[:, :9], cache=cache), model(together[:, 9:], cache=cache)], 1)
    torch.testing.assert_close(got[:1], model(x[:1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1:, 5:], model(short), atol=1e-5, rtol=0)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_training_loss_comes_from_the_logits_that_are_sampled(preset, parametrization):
    model, x, y = GPT(off_base(preset, parametrization)), ids(), ids(seed=2)
    expected = -model(x).log_softmax(-1).gather(2, y[..., None]).squeeze(2)
    torch.testing.assert_close(model(x, y, reduction="none"), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(x, y), expected.mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("optimizer_name", ("adamw", "muon"))
@pytest.mark.parametrize("preset", PRESETS)
def test_at_the_base_shape_the_parametrizations_are_the_same_run_bitwise(preset, optimizer_name):
    weights = []
    for parametrization in PARAMETRIZATIONS:
        model = GPT(tiny(preset, parametrization=parametrization, base_width=32, base_depth=2))
        optimizer = make_optimizer(model, Optim(name=optimizer_name), "cpu")
        for step in range(2):
            optimizer.zero_grad()
            model(ids(seed=step), ids(seed=step + 9)).backward()
            optimizer.step()
        weights.append(model.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(p, other[name]) for name, p in weights[0].items())


@pytest.mark.parametrize("preset", PRESETS)
def test_multipliers_act_where_the_table_says(preset):
    """The model under completep equals a hand-written forward pass with the table's factors."""
    c = off_base(preset, "completep")
    model, x = GPT(c).eval(), ids(1)
    plain = GPT(replace(c, parametrization="sp")).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():   # the same factors, put into the weights of the sp model
        for p in (plain.wte, *([plain.wpe] if preset == "gpt2" else [])):
            p.weight.mul_(3.0)
        for name, p in plain.named_parameters():
            if ".c_proj." in name:
                p.mul_(1 / 2)
    h = plain.hidden(x)
    torch.testing.assert_close(model(x), h @ model.head_weight.T * 0.7 / 2, atol=1e-5, rtol=0)


def test_initial_weights_have_the_std_of_the_table():
    c = GPTConfig(n_layer=8, n_head=4, n_embd=128, vocab_size=512, tied=False, base_width=32,
                  base_depth=2)
    for parametrization, matrix, projection in (("sp", .02, .02 / 4), ("mup", .01, .01 / 4),
                                                ("completep", .01, .01 / 2)):
        model = GPT(replace(c, parametrization=parametrization))
        std = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
        for name, expected in {"wte": .02, "wpe": .02, "lm_head": .02, "h.3.attn.c_attn": matrix,
                               "h.0.mlp.c_fc": matrix, "h.7.attn.c_proj": projection,
                               "h.1.mlp.c_proj": projection}.items():
            assert std[f"{name}.weight"] == pytest.approx(expected, rel=0.03), name
    zeros = GPT(replace(c, zero_init=True))
    assert all(not p.any() for name, p in zeros.named_parameters()
               if ".c_proj." in name or name.startswith("lm_head"))


def test_initial_weights_follow_from_config_and_generator_alone():
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = GPT(tiny(), generator).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two = GPT(tiny(), torch.Generator().manual_seed(5)).state_dict()
    other = GPT(tiny(), torch.Generator().manual_seed(6)).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["wte.weight"], other["wte.weight"])


def test_two_sizes_live_in_one_process():
    """A rotary table kept on a class, as elsewhere, would give the second model the first's."""
    small, large = tiny("modern"), tiny("modern", n_embd=64, n_head=4, block_size=32)
    alone = [GPT(c)(ids(1)) for c in (small, large)]
    models = GPT(small), GPT(large)
    models[1](ids(1, 32))
    assert all(torch.equal(model(ids(1)), logits) for model, logits in zip(models, alone))
    assert not any("rotary" in name for name in models[0].state_dict())


@pytest.mark.parametrize("preset", PRESETS)
def test_traces_as_one_graph(preset):
    torch.compiler.reset()
    model = GPT(tiny(preset, dropout=0.1))
    traced = torch.compile(model, backend="eager", fullgraph=True)
    losses = []
    for net in (model, traced):
        torch.manual_seed(0)
        losses.append(net(ids(), ids(seed=2)))
    assert torch.equal(*losses)


def test_dropout_acts_in_training_only():
    model, x = GPT(tiny(dropout=0.5)), ids()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_too_many_tokens_are_refused_with_the_limit():
    model = GPT(tiny())
    with pytest.raises(ValueError, match="block_size is 16"):
        model(ids(1, 17))
    cache = KVCache(16)
    model(ids(1, 10), cache=cache)
    with pytest.raises(ValueError, match="17 tokens don't fit"):
        model(ids(1, 7), cache=cache)
    with pytest.raises(ImpossiblePoint, match="must be even"):
        GPT(tiny("modern", n_embd=36, n_head=4))
