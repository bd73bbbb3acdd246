"""Groups and scheduled steps by hand, Muon and AdamW against torch's."""
import io
import math

import pytest
import torch

from slm.adamw import AdamW
from slm.errors import UserError
from slm.model import GPT
from slm.muon import Muon, orthogonalize
from slm.optim import make_optimizer, make_scheduler, param_groups
from slm.parametrization import describe_groups
from slm.plan import describe, make_plan
from slm.schema import Optim
from slm.shape import PRESETS, GPTConfig
from slm.spec import load_spec

BASE = dict(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=64)


def ids(seed: int) -> torch.Tensor:
    return torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(seed))


def train(model, optimizer, steps: int, scheduler=None, start: int = 0) -> None:
    for i in range(start, start + steps):
        optimizer.zero_grad()
        model(ids(i), ids(i + 99)).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()


# -- groups ----------------------------------------------------------------------------------

def test_decay_is_on_matrices_and_embeddings_only():
    groups = {g["name"]: g for g in param_groups(GPT(GPTConfig(**BASE)), Optim())}
    assert set(groups) == {"embedding", "matrix", "projection", "vector", "final_norm"}
    for group in groups.values():
        assert all((p.ndim == 2) == (group["weight_decay"] == 0.1) for p in group["params"])


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_is_in_one_group(preset, name):
    model = GPT(GPTConfig(**BASE, **PRESETS[preset]))
    grouped = [p for g in param_groups(model, Optim(name=name)) for p in g["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))


def test_groups_follow_the_table():
    """Width ratio 4, depth ratio 3. Settings as in microsoft/mup's MuAdamW (lr / m, decay * m on
    hidden matrices) and CompleteP's table 1 at alpha = 1."""
    shape = dict(BASE, n_layer=6, n_embd=64, base_width=16, base_depth=2, tied=False)
    optim = Optim(lr=1e-2, weight_decay=0.2, eps=1e-6)
    for parametrization, depth in (("mup", 1), ("completep", 3)):
        model = GPT(GPTConfig(**shape, parametrization=parametrization))
        got = {g["name"]: (g["lr"], g["weight_decay"], g["eps"])
               for g in param_groups(model, optim)}
        hidden = (1e-2 / 4, 0.2 * 4, 1e-6 / 4 / depth)
        expected = {"embedding": (1e-2, 0.2, 1e-6), "head": (1e-2, 0.2, 1e-6), "matrix": hidden,
                    "projection": hidden, "vector": (1e-2, 0, 1e-6 / 4 / depth),
                    "final_norm": (1e-2, 0, 1e-6)}
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            assert got[name] == pytest.approx(values), name


def test_mup_groups_equal_those_of_the_mup_package():
    """Microsoft's mup 1.0.0 on this very model, four times as wide as its base. The figures below
    are what this printed (pip install --no-deps mup):

        import mup
        from slm.model import GPT
        from slm.parametrization import group_of
        from slm.shape import GPTConfig

        def gpt(width):
            return GPT(GPTConfig(n_layer=2, n_head=4, n_embd=width, block_size=16, vocab_size=64,
                                 tied=False))

        wide = gpt(64)
        mup.set_base_shapes(wide, gpt(16), delta=gpt(32), rescale_params=False, do_assert=False)
        names = {id(p): group_of(n) for n, p in wide.named_parameters()}
        matrices = [p for p in wide.parameters() if p.ndim == 2]
        others = [p for p in wide.parameters() if p.ndim < 2]
        optimizer = mup.MuAdamW([dict(params=matrices, weight_decay=0.2),
                                 dict(params=others, weight_decay=0.0)], lr=1e-2)
        print(sorted({(names[id(p)], g["lr"], g["weight_decay"])
                      for g in optimizer.param_groups for p in g["params"]}))

    (Its eps is left alone; ours falls as 1/m in the blocks, as in CompleteP's table 1.)"""
    printed = [("embedding", 0.01, 0.2), ("final_norm", 0.01, 0.0), ("head", 0.01, 0.2),
               ("matrix", 0.0025, 0.8), ("projection", 0.0025, 0.8), ("vector", 0.01, 0.0)]
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=16, vocab_size=64, tied=False,
                          parametrization="mup", base_width=16))
    ours = sorted((g["name"], g["lr"], g["weight_decay"])
                  for g in param_groups(model, Optim(lr=1e-2, weight_decay=0.2)))
    assert [g[0] for g in ours] == [g[0] for g in printed]
    for mine, theirs in zip(ours, printed):
        assert mine[1:] == pytest.approx(theirs[1:], rel=1e-12), mine[0]


def test_two_scheduled_steps_by_hand():
    """Linear to zero over two steps after none of warm-up: rates 0.1, then 0.05. With g = 3, eps 1
    AdamW moves by lr * 3/4; decay 0.5 first takes lr * 0.5 of a matrix: 1 -> 0.95 - 0.075 = 0.875
    -> 0.875 * 0.975 - 0.0375 = 0.815625; of a gain nothing: 1 - 0.075 - 0.0375 = 0.8875."""
    optim = Optim(lr=0.1, weight_decay=0.5, eps=1.0, schedule="linear", final_lr=0.0)
    model = GPT(GPTConfig(**BASE))
    optimizer = make_optimizer(model, optim, "cpu")
    scheduler = make_scheduler(optimizer, optim, 2, 0)
    params = dict(model.named_parameters())
    with torch.no_grad():
        for p in params.values():
            p.fill_(1.0)
    for rate in (0.1, 0.05):
        assert all(g["lr"] == pytest.approx(rate) for g in optimizer.param_groups)
        for p in params.values():
            p.grad = torch.full_like(p, 3.0)
        optimizer.step()
        scheduler.step()
    for name, value in (("h.0.mlp.c_fc.weight", 0.815625), ("wte.weight", 0.815625),
                        ("h.0.ln_1.weight", 0.8875)):
        assert params[name].min().item() == pytest.approx(value, abs=1e-6), name


def test_two_steps_by_hand_under_mup():
    """AdamW on constant gradients moves a weight by lr g / (|g| + eps) after a decay by lr wd: with
    lr 0.1, wd 0.5, eps 1, m = 2, and g = 3 on every weight (bias correction cancels exactly)."""
    model = GPT(GPTConfig(**BASE, parametrization="mup", base_width=16))
    optimizer = make_optimizer(model, Optim(lr=0.1, weight_decay=0.5, eps=1.0), "cpu")
    names = ("wte.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.bias", "ln_f.weight")
    params = dict(model.named_parameters())
    with torch.no_grad():
        for p in params.values():
            p.fill_(1.0)
    for _ in range(2):
        for p in params.values():
            p.grad = torch.full_like(p, 3.0)
        optimizer.step()
    by_hand = {
        # lr, wd, eps:      0.1, 0.5, 1     ->  1 -> 1 * 0.95 - 0.1 * 3/4 = 0.875 -> 0.75625
        "wte.weight": 0.75625,
        # 0.1/2, 0.5*2, 1/2 ->  1 * 0.95 - 0.05 * 3/3.5 = 0.907142857 -> 0.818928571
        "h.0.attn.c_attn.weight": 0.818928571,
        # 0.1, 0, 1/2       ->  1 - 0.1 * 3/3.5, twice
        "h.1.mlp.c_fc.bias": 0.828571429,
        # 0.1, 0, 1         ->  1 - 0.1 * 3/4, twice
        "ln_f.weight": 0.85,
    }
    for name in names:
        assert params[name].flatten()[0].item() == pytest.approx(by_hand[name], abs=1e-6), name
        assert params[name].min() == params[name].max()


def test_the_plan_names_both_rates_of_muon():
    spec = load_spec([], {"train.steps": 10, "optim.name": "muon", "optim.lr": 3e-3,
                          "optim.muon_lr": 0.04})
    text = describe(spec, make_plan(spec, 512))
    rates = {row.split()[0]: float(row.split()[4]) for row in text.splitlines()[-5:]
             if row.startswith("  ")}
    assert rates["matrix"] == rates["projection"] == 0.04 and rates["embedding"] == 3e-3
    assert "peak 0.04" in text and "peak 0.003" in text


def test_zero_init_with_adamw_is_advised_against():
    for changes, told in (({}, True), ({"optim.name": "muon"}, False),
                          ({"model.zero_init": False}, False), ({"model.preset": "gpt2"}, False)):
        spec = load_spec([], {"train.steps": 10, "model.preset": "modern", **changes})
        assert ("zero_init=false" in describe(spec, make_plan(spec, 512))) == told, changes


def test_the_plan_table_agrees_with_model_and_groups():
    config = GPTConfig(**{**BASE, "n_embd": 64}, parametrization="completep", base_width=32,
                       base_depth=1, input_mult=2.0)
    for optim in (Optim(), Optim(name="muon")):
        model = GPT(config)
        rows = {row["group"]: row for row in describe_groups(config, optim)}
        groups = param_groups(model, optim)
        assert list(rows) == [g["name"] for g in groups]
        for group in groups:
            row = rows[group["name"]]
            assert row["tensors"] == len(group["params"])
            assert row["params"] == sum(p.numel() for p in group["params"])
            assert (row["lr"], row["weight_decay"]) == (group["lr"], group["weight_decay"])
            if group["params"][0].ndim == 2:
                std = torch.cat([p.flatten() for p in group["params"]]).std().item()
                assert row["init_std"] == pytest.approx(std, rel=0.03)
        assert rows["embedding"]["multiplier"] == "input 2, logits 0.5"
        assert rows["projection"]["multiplier"] == "residual 0.5"


# -- Muon ------------------------------------------------------------------------------------

def matrices() -> list[torch.nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (8, 8), (32, 8), (8, 32), (24, 8), (8, 8)]
    return [torch.nn.Parameter(torch.randn(s, generator=g)) for s in shapes]


def muon_steps(make, steps: int = 3) -> list[torch.Tensor]:
    params = matrices()
    optimizer = make(params)
    g = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g)
        optimizer.step()
    return [p.detach() for p in params]


def ours(ns_dtype):
    return lambda params: Muon([dict(params=params, muon=True)], lr=0.02, weight_decay=0.3,
                               momentum=0.9, ns_dtype=ns_dtype)


def test_muon_equals_torchs():
    """torch's works in bfloat16; so does ours when told, up to the order of sums in a product. In
    float32 it differs by bfloat16's rounding of updates of size lr."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    reference = muon_steps(lambda params: torch.optim.Muon(params, lr=0.02, weight_decay=0.3,
                                                           momentum=0.9))
    start = [p.detach() for p in matrices()]
    for dtype, tolerance in ((torch.bfloat16, 0.005), (torch.float32, 0.05)):
        for p, q, p0 in zip(muon_steps(ours(dtype)), reference, start):
            assert (p - q).norm() < tolerance * (q - p0).norm()


def test_muon_in_closed_form():
    """Newton-Schulz maps each singular value s of the normalised matrix through the quintic five
    times and leaves the singular vectors alone."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(4, 6, 10, generator=g, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / x.norm(dim=(1, 2))[:, None]
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalize(x, torch.float64), u @ torch.diag_embed(s) @ vt)
    assert 0.6 < s.min() and s.max() < 1.3


def test_muon_leaves_the_rest_to_adamw():
    config = GPTConfig(**BASE)
    models = [GPT(config), GPT(config)]
    for model, name in zip(models, ("muon", "adamw")):
        optimizer = make_optimizer(model, Optim(name=name), "cpu")
        for g in optimizer.param_groups:
            if g["name"] in ("matrix", "projection"):
                g["lr"] = 0.0      # where they differ
        train(model, optimizer, 3)
    assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models)))


def test_adamw_is_torchs_bitwise():
    """Weights and state, over groups with their own lr and decay."""
    def train(cls):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        groups = [dict(params=[m.weight, m.bias], lr=lr, weight_decay=decay)
                  for m, lr, decay in zip(net, (1e-2, 3e-3), (0.1, 0.0))]
        optimizer = cls(groups, betas=(0.9, 0.95), fused=True)
        for _ in range(5):
            net(torch.randn(32, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return list(net.parameters()), optimizer.state_dict()

    ours, theirs = train(AdamW), train(torch.optim.AdamW)
    assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0]))
    for i, state in theirs[1]["state"].items():
        assert all(torch.equal(ours[1]["state"][i][name], value) for name, value in state.items())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_survives_a_checkpoint_bitwise(name):
    """Saved, read with weights_only, loaded into fresh objects: the run goes on as if never cut."""
    optim, config = Optim(name=name, schedule="wsd", decay=0.5), GPTConfig(**BASE)

    def fresh():
        model = GPT(config)
        optimizer = make_optimizer(model, optim, "cpu")
        return model, optimizer, make_scheduler(optimizer, optim, 8, 2)

    straight, optimizer, scheduler = fresh()
    train(straight, optimizer, 8, scheduler)
    for cut in (1, 3, 6):
        parts = fresh()
        train(parts[0], parts[1], cut, parts[2])
        file = io.BytesIO()
        torch.save([part.state_dict() for part in parts], file)
        file.seek(0)
        resumed = fresh()
        for part, state in zip(resumed, torch.load(file, weights_only=True)):
            part.load_state_dict(state)
        train(resumed[0], resumed[1], 8 - cut, resumed[2], start=cut)
        assert all(torch.equal(p, q) for p, q in zip(straight.parameters(),
                                                     resumed[0].parameters()))


def test_muon_works_with_gradscaler():
    model = GPT(GPTConfig(**BASE))
    optimizer = make_optimizer(model, Optim(name="muon"), "cpu")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = model.h[0].mlp.c_fc.weight.clone()
    scaler.scale(model(ids(0), ids(1))).backward()
    model.wte.weight.grad[0, 0] = math.inf
    scaler.step(optimizer)
    assert torch.equal(model.h[0].mlp.c_fc.weight, before)     # an overflow skips the step
    scaler.update()
    assert scaler.get_scale() == 2.0
    optimizer.zero_grad()
    scaler.scale(model(ids(0), ids(1))).backward()
    scaler.step(optimizer)
    assert not torch.equal(model.h[0].mlp.c_fc.weight, before)


def test_an_unknown_name_is_refused():
    model, optim = GPT(GPTConfig(**BASE)), Optim()
    with pytest.raises(UserError, match="adamw, muon"):
        make_optimizer(model, Optim.model_construct(**{**optim.model_dump(), "name": "sgd"}), "cpu")
