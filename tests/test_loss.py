"""Every implementation of the loss equals the plain one, in value and in gradient."""
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from slm import loss
from slm.cost import chunk_tokens
from slm.errors import UserError
from slm.loss import choose_loss, lm_loss
from slm.model import GPT
from slm.shape import GPTConfig

has_torch_loss = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"),
                                    reason="this torch has no linear_cross_entropy")
CHUNKED = ["chunked", pytest.param("torch", marks=has_torch_loss)]


def problem(dtype=torch.float64, b=3, t=775, d=6, v=17):
    """More tokens than two chunks, not a multiple of one; some targets ignored."""
    assert 2 * chunk_tokens(b * t, "cpu") < b * t and b * t % chunk_tokens(b * t, "cpu")
    g = torch.Generator().manual_seed(0)
    h = torch.randn(b, t, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    w = torch.randn(v, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(v, (b, t), generator=g)
    targets[0, ::7] = -1
    targets[2, -3:] = -1
    return h, w, targets


def gradients(impl, h, w, targets, upstream=1.0, **kw):
    h.grad = w.grad = None
    value = lm_loss(h, w, targets, impl, **kw)
    (value * upstream).backward()
    return value.detach(), h.grad, w.grad


@pytest.mark.parametrize("upstream, scale", [(1.0, 1.0), (0.25, 1.0), (65536.0, 0.3)])
@pytest.mark.parametrize("impl", CHUNKED)
def test_value_and_gradients_equal_the_plain_ones(impl, upstream, scale):
    h, w, targets = problem()
    plain = gradients("plain", h, w, targets, upstream, scale=scale)
    ours = gradients(impl, h, w, targets, upstream, scale=scale)
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b, atol=1e-12 * upstream, rtol=1e-11)


def test_plain_is_the_formula():
    h, w, targets = problem()
    z = 0.5 * h @ w.T
    nats = z.logsumexp(-1) - z.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    nats = nats * (targets != -1)
    got = lm_loss(h, w, targets, "plain", "none", scale=0.5)
    torch.testing.assert_close(got, nats)
    assert got.shape == targets.shape and not got[targets == -1].any()
    mean = lm_loss(h, w, targets, "plain", scale=0.5)
    torch.testing.assert_close(mean, nats.sum() / (targets != -1).sum())


@pytest.mark.parametrize("impl", CHUNKED)
def test_per_token_losses(impl):
    h, w, targets = problem()
    expected = lm_loss(h, w, targets, "plain", "none")
    with torch.no_grad():
        torch.testing.assert_close(lm_loss(h, w, targets, impl, "none"), expected)
    lm_loss(h, w, targets, impl, "none").square().sum().backward()
    theirs = torch.autograd.grad(expected.square().sum(), (h, w))
    torch.testing.assert_close((h.grad, w.grad), theirs)


def test_an_evaluation_never_holds_all_logits():
    h, w, targets = problem(v=64)
    largest = []

    class Sizes(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out
    with torch.no_grad(), Sizes():
        lm_loss(h, w, targets, "plain", "none")
    assert max(largest) <= chunk_tokens(targets.numel(), "cpu") * len(w)


@pytest.mark.parametrize("impl", CHUNKED)
def test_float32_is_as_accurate_as_plain(impl):
    exact = gradients("plain", *problem())
    plain, ours = (gradients(name, *problem(torch.float32)) for name in ("plain", impl))
    for e, p, o in zip(exact, plain, ours):
        rounding = torch.finfo(torch.float32).eps * e.abs().max()
        assert (o - e).abs().max() <= 2 * (p - e).abs().max() + rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunked_under_autocast(dtype):
    """The products run in the low precision, sums and loss in float32; gradients in float32 of
    tokens that no chunk's rounding has touched by more than the product's own."""
    h, w, targets = problem(torch.float32)
    exact = gradients("plain", h, w, targets, 1024.0)
    h.grad = w.grad = None
    with torch.autocast("cpu", dtype=dtype):
        value = lm_loss(h, w, targets, "chunked")
    (value * 1024).backward()
    assert value.dtype == h.grad.dtype == w.grad.dtype == torch.float32
    eps = torch.finfo(dtype).eps
    for ours, reference in zip((value, h.grad, w.grad), exact):
        assert (ours - reference).abs().max() < 4 * eps * reference.abs().max()


def test_float16_survives_a_vocabulary_beyond_its_range():
    """At first the logits are equal and their sum of exponentials is the vocabulary's size."""
    h, w = torch.zeros(1, 3, 2, requires_grad=True), torch.zeros(70_000, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        value = lm_loss(h, w, torch.tensor([[1, 2, 3]]), "chunked")
    value.backward()
    assert value.item() == pytest.approx(11.156, abs=1e-3) and torch.isfinite(w.grad).all()


def test_gradients_once_and_of_what_needs_them():
    h, w, targets = problem()
    value = lm_loss(h, w, targets, "chunked")
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        value.backward()
    with torch.no_grad():
        assert lm_loss(h, w, targets, "chunked").grad_fn is None
    frozen = lm_loss(h.detach(), w, targets, "chunked")
    w.grad = None
    frozen.backward()
    torch.testing.assert_close(w.grad, gradients("plain", *problem())[2])


def test_nothing_to_count_is_not_a_number():
    h, w, targets = problem()
    for impl in ("plain", "chunked"):
        assert lm_loss(h, w, torch.full_like(targets, -1), impl).isnan()


@pytest.mark.parametrize("impl", CHUNKED)
def test_a_tied_model_trains_alike(impl):
    """The embedding's gradient is the sum of the head's and the lookup's."""
    x = torch.arange(24).view(2, 12)
    grads = []
    for name in ("plain", impl):
        model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=12, vocab_size=64))
        model.loss_impl = name
        model(x, x).backward()
        grads.append(model.wte.weight.grad)
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


def test_choice_and_its_reason(monkeypatch):
    assert choose_loss("auto", "cpu", 50304)[0] == "chunked"
    assert choose_loss("auto", "cpu", 4096)[0] == "plain"
    assert choose_loss("auto", "cuda", 50304)[0] == "plain"
    assert choose_loss("plain", "cpu", 50304) == ("plain", "as asked")
    with pytest.raises(UserError, match="plain, chunked, torch"):
        choose_loss("fast", "cpu", 64)
    with pytest.raises(UserError, match="rounds the loss to bf16"):
        choose_loss("torch", "cuda", 64, "bf16")
    monkeypatch.delattr(loss.F, "linear_cross_entropy", raising=False)
    with pytest.raises(UserError, match="torch >= 2.13"):
        choose_loss("torch", "cpu", 64)
