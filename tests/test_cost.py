"""Parameters equal the real tensors, FLOPs equal torch's counter and the published figures."""
from dataclasses import replace
from itertools import product
from math import prod

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slm import cost
from slm.model import GPT
from slm.shape import PRESETS, GPTConfig

GPT2_124M = GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257,
                      bias=False)


def configs() -> list[GPTConfig]:
    base = GPTConfig(n_layer=3, n_head=2, n_embd=24, block_size=10, vocab_size=64)
    grid = [replace(base, norm=norm, position=position, activation=activation, tied=tied, bias=bias,
                    d_ff=0)
            for norm, position, activation, tied, bias in product(
                ("layernorm", "rmsnorm"), ("learned", "rope"), ("gelu", "relu2", "swiglu"),
                (True, False), (True, False))]
    return grid + [replace(base, d_ff=40, activation="swiglu"), replace(base, n_layer=1, n_head=1)]


def test_parameters_are_the_real_tensors():
    for config in configs():
        model = GPT(config)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert cost.parameter_shapes(config) == shapes
        counts = model.num_params()
        assert counts["total"] == sum(p.numel() for p in model.parameters())
        assert counts["total"] == sum(counts[role] for role in cost.ROLES)
        assert counts["biases"] == sum(p.numel() for name, p in model.named_parameters()
                                       if name.endswith("bias"))
        matrices = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        head = 0 if not config.tied else config.vocab_size * config.n_embd
        assert counts["matmul"] == sum(m.weight.numel() for m in matrices) + head


def test_flops_are_those_of_torchs_counter():
    """Forward and backward of the whole model. The math kernel, because the counter does not know
    the CPU's flash kernel."""
    for config in configs():
        x = torch.zeros(2, 10, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            GPT(config)(x, x).backward()
        assert counter.get_total_flops() == cost.flops_per_token(config)["matmul"] * 20


def test_gpt2_124m_has_the_published_figures():
    """karpathy/nanoGPT transformer_sizing.ipynb: parameters, forward and training FLOPs of a
    sequence of 1024 tokens, and 6 ND of the PaLM estimate."""
    counts, flops = cost.count_params(GPT2_124M), cost.flops_per_token(GPT2_124M)
    assert counts["total"] == 124_337_664
    assert counts["wpe"] == 786_432 and counts["wte"] == 38_597_376
    assert counts["non_embedding"] == 84_953_856
    assert 1024 * sum(cost.forward_flops(GPT2_124M)[part] for part in
                      ("blocks", "head", "attention")) == 291_648_307_200
    assert 1024 * flops["matmul"] == 874_944_921_600
    assert 1024 * flops["nanogpt"] == 875_062_886_400


def test_every_convention_on_a_model_worked_by_hand():
    """L=2, d=8, H=2, V=64, T=4, GPT-2 without biases: N_blk = 12 L d^2 = 1536, V d = 512, wpe 32,
    gains 5 d = 40, N = 2120, L d T = 64."""
    config = GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=4, vocab_size=64, bias=False)
    assert cost.count_params(config) == {
        "wte": 512, "wpe": 32, "attn": 512, "mlp": 1024, "norms": 40, "biases": 0, "lm_head": 0,
        "total": 2120, "non_embedding": 1576, "blocks": 1536, "matmul": 2048}
    assert cost.flops_per_token(config) == {
        "matmul": 6 * 2048 + 12 * 64, "causal": 6 * 2048 + 6 * 2 * 8 * 5, "6N": 6 * 2120,
        "nanogpt": 6 * (2120 - 32) + 12 * 64, "kaplan": 6 * 1536,
        "kaplan_context": 6 * 1536 + 6 * 64, "porian": 6 * 2048,
        "porian_attention": 6 * 2048 + 6 * 64, "nanochat": 6 * 2048 + 12 * 64,
        # 3 (2 T V d + L (6 T d^2 + 4 T^2 d + 3 H T^2 + 2 T d^2 + 16 T d^2) + 2 T d V) / T
        "chinchilla_f": 3 * (2 * 4096 // 2 + 2 * (1536 + 512 + 96 + 512 + 4096) + 4096) // 4}


@pytest.mark.parametrize("v, t, d, n_layer, mflop, ratios", [
    # of scaling conventions to the exact count, for the sizes this project trains
    (50257, 512, 64, 4, 22.1, (.94, 1.00, .054, .93, .96, 1.88, .96)),
    (50257, 512, 128, 4, 46.5, (.94, 1.00, .10, .93, .97, 1.83, .97)),
    (50257, 512, 256, 8, 128, (.91, 1.00, .30, .90, .95, 1.61, .95)),
    (50257, 512, 512, 8, 331, (.93, 1.00, .46, .92, .96, 1.47, .96)),
    (10000, 512, 64, 4, 6.59, (.79, 1.00, .18, .76, .88, 1.59, .88)),
    (10000, 512, 256, 8, 65.7, (.82, 1.00, .58, .81, .90, 1.24, .90)),
    (4096, 256, 64, 4, 3.54, (.81, 1.00, .33, .78, .89, 1.45, .89)),
    (4096, 256, 512, 8, 176, (.93, 1.00, .86, .93, .96, 1.07, .96))])
def test_conventions_differ_as_tabulated(v, t, d, n_layer, mflop, ratios):
    config = GPTConfig(n_layer=n_layer, n_head=max(1, d // 64), n_embd=d, block_size=t,
                       vocab_size=v, bias=False)
    flops = cost.flops_per_token(config)
    assert flops["matmul"] / 1e6 == pytest.approx(mflop, rel=0.005)
    names = ("6N", "nanogpt", "kaplan", "porian", "porian_attention", "chinchilla_f", "causal")
    for name, ratio in zip(names, ratios):
        assert flops[name] / flops["matmul"] == pytest.approx(ratio, abs=0.011), name


def test_causal_attention_counts_each_visible_pair_once():
    config = GPTConfig(n_layer=1, n_head=1, n_embd=16, block_size=7)
    pairs = sum(1 for query in range(7) for key in range(7) if key <= query)
    assert cost.forward_flops(config)["attention_causal"] * 7 == pairs * 2 * (2 * 16)


def test_context_can_be_given():
    config = GPTConfig(block_size=128)
    shorter = cost.flops_per_token(replace(config, block_size=32))
    for name in ("matmul", "causal", "nanogpt", "kaplan_context"):
        assert cost.flops_per_token(config, 32)[name] == shorter[name]


def test_chunks_are_equal_and_as_few_as_the_device_allows():
    found = [cost.chunk_tokens(n, "cpu") for n in (1, 768, 769, 1536, 2000)]
    assert found == [1, 768, 385, 768, 667]
    assert cost.chunk_tokens(8192, "cuda") == 4096


def test_memory_follows_batch_vocabulary_and_loss():
    small, large = GPTConfig(vocab_size=4096), GPTConfig(vocab_size=50304)
    one, two = (cost.memory_bytes(small, n, loss_impl="plain") for n in (8, 16))
    assert two["activations"] == 2 * one["activations"] and two["logits"] == 2 * one["logits"]
    assert one["weights"] == 4 * sum(prod(s) for s in cost.parameter_shapes(small).values())
    plain, chunked, auto = (cost.memory_bytes(large, 12, loss_impl=impl)["total"]
                            for impl in ("plain", "chunked", "auto"))
    assert auto == chunked < 0.6 * plain
    assert cost.memory_bytes(large, 12, device="cuda")["runtime"] == 0
    dropout = replace(small, dropout=0.1)     # CUDA's fused kernels keep no matrix of attention
    held = {device: cost.saved_floats(dropout, device) for device in ("cpu", "cuda")}
    assert held["cpu"] - held["cuda"] == 3 * small.n_head * small.block_size
    one = cost.memory_bytes(large, 1)["total"] - cost.RUNTIME_BYTES
    assert one > 4 * large.vocab_size * cost.chunk_tokens(cost.CPU_EVAL, "cpu")  # evaluation's
    adamw, muon = (cost.memory_bytes(small, 8, optimizer=name)["optimizer"]
                   for name in ("adamw", "muon"))
    assert adamw - muon == 4 * cost.count_params(small)["blocks"]


def test_saved_activations_are_those_that_autograd_keeps():
    for preset in PRESETS:
        held = {}
        for n_layer in (2, 4):
            config = GPTConfig(n_layer=n_layer, n_head=4, n_embd=128, block_size=64, vocab_size=64,
                               **PRESETS[preset])
            held[n_layer] = autograd_bytes(config)
        per_block = (held[4] - held[2]) / 2 / (4 * 64) / 4
        assert cost.saved_floats(config) == pytest.approx(per_block, rel=0.02), preset


def autograd_bytes(config: GPTConfig) -> int:
    """Bytes of distinct storages that a forward pass of 4 sequences keeps, weights aside."""
    model, tensors, sizes = GPT(config), [], {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        tensors.append(tensor)     # alive, so that no address is used twice
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.zeros(4, config.block_size, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x, x)
    return sum(size for address, size in sizes.items() if address not in weights)
