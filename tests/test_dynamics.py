"""Measures of training against closed forms and plain loops; and they never change the training."""
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import (environment, equal_weights, final_weights, metrics, only_run, without_times,
                  write_spec)

import run
from slm.dynamics import (attending, attention_weights, by_position, entropy, forward_measures,
                          noise_scale, part_gradients, part_size, update_ratios)
from slm.device import Machine
from slm.model import GPT
from slm.optim import make_optimizer
from slm.shape import GPTConfig

CPU = Machine(torch.device("cpu"), "fp32", False)
EVERY = ("grad_noise_scale_tokens", "grad_mean_sq", "grad_variance_tokens",
         "update_ratio/embedding", "update_ratio/matrix", "update_ratio/projection",
         "update_ratio/vector", "update_ratio/final_norm", "update_ratio/h.0", "update_ratio/h.1",
         "attention_entropy/h.0", "attention_entropy/h.1", "attention_spread/h.0",
         "attention_spread/h.1", *(f"loss_at/{k}" for k in (1, 2, 4, 8, 16, 32)))


def gpt(**changes) -> GPT:
    settings = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=64, init_std=0.3)
    return GPT(GPTConfig(**settings | changes), torch.Generator().manual_seed(1))


def batch(b=6, t=12, v=64):
    ids = torch.randint(v, (b, t + 1), generator=torch.Generator().manual_seed(2))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


# -- the gradient noise scale --------------------------------------------------------------------

@pytest.mark.parametrize("parts, size", [(2, 8), (16, 1), (8, 4)])
def test_noise_scale_of_a_quadratic_whose_gradient_covariance_is_known(parts, size):
    """loss = |w - x|^2 / 2 with x ~ N(m, diag(s^2)): the gradient of a sample is w - x, so that
    G = w - m and Sigma = diag(s^2), whatever the parts are. One 'token' is one sample here."""
    g = torch.Generator().manual_seed(0)
    w, m = torch.randn(2, 30, generator=g)
    s = torch.rand(30, generator=g) * 2
    found = []
    for _ in range(1000):
        x = m + s * torch.randn(parts, size, 30, generator=g)
        gradients = [list((w - part.mean(0)).split([10, 20])) for part in x]    # of two tensors
        found.append(noise_scale(gradients, size))
    mean_sq, variance = (torch.tensor([f[f"dynamics/{k}"] for f in found]) for k in
                         ("grad_mean_sq", "grad_variance_tokens"))
    for estimate, truth in ((mean_sq, (w - m).square().sum()), (variance, s.square().sum())):
        error = estimate.std() / math.sqrt(len(found))
        assert abs(estimate.mean() - truth) < 4 * error and error < 0.05 * truth
    ratio = found[0]["dynamics/grad_noise_scale_tokens"]
    assert ratio == pytest.approx(variance[0].item() / mean_sq[0].item(), rel=1e-5)


def test_one_part_has_no_noise_scale():
    assert noise_scale([[torch.ones(3)]], 5) == {}


def test_noise_scale_of_a_model_is_that_of_its_single_sequences():
    """From .grad of one sequence after another: |G|^2 is the mean inner product of two of them,
    tr(Sigma) their sample variance times the tokens of a sequence."""
    model, (x, y) = gpt(), batch()
    rows = []
    for i in range(len(x)):
        model.zero_grad()
        model(x[i:i + 1], y[i:i + 1]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    model.zero_grad()
    g, n = torch.stack(rows), len(x)
    inner = g @ g.T
    found = noise_scale(part_gradients(model, x, y, 1, CPU, scale=8.0), x.shape[1])
    pairs = (inner.sum() - inner.trace()) / (n * (n - 1))
    assert found["dynamics/grad_mean_sq"] == pytest.approx(pairs.item(), rel=1e-4)
    assert found["dynamics/grad_variance_tokens"] == pytest.approx(
        12 * g.var(0, correction=1).sum().item(), rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("share, micro, size", [(12, 12, 1), (512, 512, 32), (512, 8, 8), (1, 1, 1),
                                                (64, 64, 4), (48, 16, 3), (34, 34, 2)])
def test_parts_divide_the_share_and_fit_a_pass(share, micro, size):
    assert part_size(share, micro) == size and share % size == 0


# -- updates -------------------------------------------------------------------------------------

def test_update_ratios_by_hand():
    model = gpt()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.h[1].mlp.c_fc.weight *= 1.01
        model.wte.weight += 0.5
    found = update_ratios(before, model)
    fc, wte, wpe = before["h.1.mlp.c_fc.weight"], before["wte.weight"], before["wpe.weight"]
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    block = torch.cat([before[f"h.1.{n}.weight"].flatten() for n in names])
    assert found["dynamics/update_ratio/h.1"] == pytest.approx(
        (0.01 * fc.norm() / block.norm()).item(), rel=1e-4)
    moved = math.sqrt(0.25 * wte.numel() / (wte.numel() + wpe.numel()))
    at = torch.cat([wte.flatten(), wpe.flatten()]).square().mean().sqrt().item()
    assert found["dynamics/update_ratio/embedding"] == pytest.approx(moved / at, rel=1e-4)
    assert found["dynamics/update_ratio/h.0"] == found["dynamics/update_ratio/vector"] == 0


def test_update_ratio_of_the_first_step_of_adamw_and_of_weights_at_zero():
    """Without decay it moves every weight by lr, whatever its gradient: the ratio is lr / rms."""
    model, (x, y) = gpt(tied=False, zero_init=True, n_layer=1), batch()
    with torch.no_grad():
        model.lm_head.weight[:32] = 0.1
        model.h[0].mlp.c_proj.weight.fill_(0.2)
    optim = SimpleNamespace(name="adamw", lr=1e-3, weight_decay=0.0, beta1=0.9, beta2=0.95,
                            eps=1e-30)
    optimizer = make_optimizer(model, optim, "cpu")
    model(x, y).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    found = update_ratios(before, model)
    assert found["dynamics/update_ratio/head"] == pytest.approx(1e-3 / math.sqrt(0.005), rel=1e-3)
    proj = math.sqrt(0.04 * 64 / (64 + 16))             # c_proj of the attention is zero: d x d
    assert found["dynamics/update_ratio/projection"] == pytest.approx(1e-3 / proj, rel=1e-3)
    before["lm_head.weight"].zero_()
    assert update_ratios(before, model)["dynamics/update_ratio/head"] == math.inf


# -- attention and loss by position --------------------------------------------------------------

def test_uniform_attention_has_the_entropy_of_counting():
    """Queries of zero attend to all that they see alike: entropy log i at position i."""
    q, k = torch.zeros(2, 3, 9, 4), torch.randn(2, 3, 9, 4)
    logs = [math.log(i) for i in range(1, 10)]
    assert entropy(q, k, 0.5)[1, 2].tolist() == pytest.approx(logs, abs=1e-6)
    model, (x, y) = gpt(), batch()
    with torch.no_grad():
        model.h[0].attn.c_attn.weight[:16] = 0
    found = forward_measures(model, x, y, 4, CPU)
    uniform = sum(math.log(i) for i in range(1, 13)) / 12
    assert found["dynamics/attention_entropy/h.0"] == pytest.approx(uniform, abs=1e-6)
    assert found["dynamics/attention_spread/h.0"] == pytest.approx(1)
    other = found["dynamics/attention_spread/h.1"]
    assert other == pytest.approx(found["dynamics/attention_entropy/h.1"] / uniform)
    assert 0.3 < other < 0.99


@pytest.mark.parametrize("changes", [{}, dict(position="rope", qk_norm=True, norm="rmsnorm",
                                              parametrization="mup", base_head_size=2)])
def test_attention_weights_are_the_models_own(changes, monkeypatch):
    """What scaled_dot_product_attention returns inside the model is weights @ v; in chunks too."""
    model, (x, _) = gpt(**changes), batch()
    inside, outside, entropies = [], [], []
    sdpa = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention",
                        lambda *a, **kw: inside.append(sdpa(*a, **kw)) or inside[-1])

    def see(layer, q, k, v):
        p = attention_weights(q, k, model.h[layer].attn.scale)
        assert p.triu(1).eq(0).all() and p.sum(-1) == pytest.approx(1)
        outside.append(p @ v)
        entropies.append((entropy(q, k, model.h[layer].attn.scale), torch.special.entr(p).sum(-1)))

    monkeypatch.setattr("slm.dynamics.MATRICES", 5 * 12 * 12)
    with torch.no_grad():
        plain = model(x)
        inside.clear()
        with attending(model, see):
            assert torch.equal(model(x), plain)
        assert torch.equal(model(x), plain) and len(outside) == 2
    for mine, models in zip(outside, inside):
        torch.testing.assert_close(mine, models)
    for chunked, whole in entropies:
        torch.testing.assert_close(chunked, whole)


def test_loss_by_position_is_the_models():
    model, (x, y) = gpt(), batch()
    with torch.no_grad():
        losses = model(x, y, reduction="none").mean(0)
    found = forward_measures(model, x, y, 4, CPU)
    at = {int(k.rpartition("/")[2]): v for k, v in found.items() if "loss_at" in k}
    buckets = {1: [0], 2: [1], 4: [2, 3], 8: [4, 5, 6, 7], 12: [8, 9, 10, 11]}
    assert at == pytest.approx({k: losses[i].mean().item() for k, i in buckets.items()}, rel=1e-5)
    assert list(by_position(torch.zeros(1))) == ["dynamics/loss_at/1"]


# -- in a run ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def train(folder, cache, **changes):
    folder.mkdir()
    spec = write_spec(folder, data__cache=cache, **{
        "model__n_layer": 2, "train__steps": 12, "track__checkpoint_interval": 5, **changes})
    assert run.main([str(spec)]) == 0
    return only_run(folder)


def measured(run_folder):
    return [m for m in metrics(run_folder) if any(k.startswith("dynamics/") for k in m)]


MODERN = dict(model__preset="modern", optim__name="muon")


@pytest.mark.parametrize("changes", [dict(train__micro_batch=2), MODERN], ids=["gpt2", "modern"])
def test_measuring_changes_no_bit_of_the_training(changes, tmp_path, cache):
    """With dropout, in micro-batches, with AdamW and with Muon."""
    plain = train(tmp_path / "a", cache, **changes)
    seen = train(tmp_path / "b", cache, track__dynamics_interval=5, **changes)
    assert plain.name == seen.name                                # the same run
    assert equal_weights(final_weights(plain), final_weights(seen))
    rows = measured(seen)
    assert [r["step"] for r in rows] == [5, 10, 12] and not measured(plain)
    others = [r for r in metrics(seen) if r not in rows]
    assert without_times(others) == without_times(metrics(plain))
    head = [] if "train__micro_batch" in changes else ["update_ratio/head"]
    gainless = {"update_ratio/final_norm", "update_ratio/vector"} if head else set()
    for row in rows:
        assert {k[9:] for k in row if k.startswith("dynamics/")} == {*EVERY, *head} - gainless
        assert all(row[k] is not None for k in row) and row["dynamics/grad_variance_tokens"] > 0
        at = [row[f"dynamics/loss_at/{k}"] for k in (1, 2, 4, 8, 16, 32)]
        mean = sum(v * n for v, n in zip(at, (1, 1, 2, 4, 8, 16))) / 32
        assert 3 < mean < 7 and 0 < row["dynamics/attention_spread/h.1"] < 1
        assert 1e-5 < row["dynamics/update_ratio/h.0"] < 1


def test_across_a_resume_the_measures_and_the_weights_are_those_of_the_straight_run(tmp_path,
                                                                                   cache):
    straight = train(tmp_path / "a", cache, track__dynamics_interval=3)
    again = train(tmp_path / "b", cache, track__dynamics_interval=3)
    (again / "summary.json").unlink()                             # it was killed after step 10
    (again / "checkpoints" / "step-00000012.pt").unlink()
    assert run.main([str(tmp_path / "b" / "tiny.yaml")]) == 0
    assert equal_weights(final_weights(straight), final_weights(again))
    assert without_times(metrics(straight)) == without_times(metrics(again))
    assert [r["step"] for r in measured(again)] == [3, 6, 9, 12]


BOTH = """
import sys, run
spec, elsewhere = sys.argv[1:]
sys.exit(run.main([spec]) or run.main([spec, f"--track.dir={elsewhere}",
                                       "--track.dynamics_interval=0"]))
"""


def test_two_ranks_measure_the_whole_batch_together(tmp_path, cache):
    """And the ranks, too, train on as if nothing had been measured."""
    changes = dict(model__dropout=0.0, train__steps=4, track__dynamics_interval=2)
    one = measured(train(tmp_path / "one", cache, **changes))
    (tmp_path / "two").mkdir()
    (tmp_path / "both.py").write_text(BOTH)
    spec = write_spec(tmp_path / "two", data__cache=cache, model__n_layer=2, **changes)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc_per_node=2", str(tmp_path / "both.py"), str(spec),
                           str(tmp_path / "off" / "runs")],
                          cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    seen, off = only_run(tmp_path / "two"), only_run(tmp_path / "off")
    assert equal_weights(final_weights(seen), final_weights(off)) and not measured(off)
    two = measured(seen)
    assert [r["step"] for r in one] == [r["step"] for r in two] == [2, 4]
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and len(a) == len(EVERY) + 4
        for key in (k for k in a if k.startswith("dynamics/")):
            assert a[key] == pytest.approx(b[key], rel=2e-3), key


def test_a_batch_of_one_sequence_is_measured_without_a_noise_scale(tmp_path, cache, capsys):
    folder = train(tmp_path / "a", cache, train__batch_tokens=32, track__dynamics_interval=6)
    assert "no noise scale: a batch of one sequence" in capsys.readouterr().out
    assert measured(folder) and not any("noise" in k for k in measured(folder)[0])
