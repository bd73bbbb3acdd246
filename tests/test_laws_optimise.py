"""The batched optimiser against scipy, and the gradients of every form against differences."""
import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der

from analysis.scaling.fit import fit_point, huber_objective, refit
from analysis.scaling.forms import FORMS, make_design
from analysis.scaling.optimise import bfgs, bfgs_in_blocks
from analysis.scaling.varpro import fit_varpro, projected_objective


def columns(n=24, seed=0):
    rng = np.random.default_rng(seed)
    n_params, tokens = np.exp(rng.uniform(11, 16, n)), np.exp(rng.uniform(15, 20, n))
    unique = tokens / np.exp(rng.uniform(-0.5, 3, n))
    return dict(n_params=n_params, tokens=tokens, flops=6.5 * n_params * tokens,
                unique_tokens=unique)


def some_theta(design, rng, rows=3):
    theta = rng.normal(0, 0.3, (rows, len(design.names)))
    theta[:, design.exponent_at] = rng.uniform(0.2, 0.5, (rows, len(design.exponent_at)))
    theta[:, design.floor_at] = 1.5
    return theta


def rosenbrock(x, rows):
    return np.array([rosen(v) for v in x]), np.array([rosen_der(v) for v in x])


def test_bfgs_finds_the_minima_that_scipy_finds():
    x0 = np.random.default_rng(0).normal(0, 1.5, (40, 2))
    found = bfgs(rosenbrock, x0, tol=1e-14, max_iterations=500)
    assert found.converged.all()
    theirs = np.array([minimize(rosen, x, jac=rosen_der, method="BFGS", tol=1e-10).fun for x in x0])
    assert np.all(found.f < theirs + 1e-8)


def test_a_problem_does_not_know_its_neighbours():
    x0 = np.random.default_rng(1).normal(0, 1, (30, 3))
    together = bfgs(rosenbrock, x0)
    assert np.array_equal(together.x, bfgs_in_blocks(rosenbrock, x0, block=7).x)
    alone = np.concatenate([bfgs(rosenbrock, x[None]).x for x in x0])
    assert np.allclose(together.x, alone, atol=1e-12)


def test_a_start_outside_the_domain_harms_nobody():
    def fun(x, rows):
        with np.errstate(invalid="ignore"):
            return np.sqrt(x[:, 0]) ** 4 - x[:, 0], 2 * x - 1
    found = bfgs(fun, np.array([[-1.0], [3.0]]))
    assert not found.converged[0] and np.isinf(found.f[0])
    assert found.converged[1] and found.x[1, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("floor", [False, True])
def test_gradients_match_differences(name, floor):
    form, cols = FORMS[name], columns()
    if floor and not form.floor:
        pytest.skip("a form without floor")
    design = make_design(form, cols, np.full(24, 1.3) if floor else None)
    rng = np.random.default_rng(2)
    theta = some_theta(design, rng)
    log_loss = np.log(design.value(theta[:1])[0][0]) + rng.normal(0, 0.01, 24)
    weights = rng.integers(0, 3, (3, 24)).astype(float)
    rows = np.arange(3)
    for delta in (1e-3, np.inf):
        fun = huber_objective(design, log_loss, weights, delta)
        got = fun(theta, rows)[1]
        for i in range(theta.shape[1]):
            step = 1e-6 * np.eye(theta.shape[1])[i]
            want = (fun(theta + step, rows)[0] - fun(theta - step, rows)[0]) / 2e-6
            assert np.allclose(got[:, i], want, rtol=2e-4, atol=1e-8 * min(1, delta / 1e-3))


def test_the_gradient_of_variable_projection_matches_differences():
    design = make_design(FORMS["chinchilla"], columns())
    rng = np.random.default_rng(3)
    theta = some_theta(design, rng)
    log_loss = np.log(design.value(theta)[0]) + rng.normal(0, 0.01, (3, 24))
    fun = projected_objective(design, log_loss, np.exp(log_loss[0]))
    theta[:, 3:] += 0.1
    got = fun(theta, np.arange(3))[1]
    for i in (3, 4):
        step = 1e-6 * np.eye(5)[i]
        want = (fun(theta + step, np.arange(3))[0] - fun(theta - step, np.arange(3))[0]) / 2e-6
        assert np.allclose(got[:, i], want, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["chinchilla", "L(N)", "L(C) no floor", "overtraining",
                                  "repeated_data", "data_constrained"])
def test_laws_without_noise_are_found_exactly(name):
    """Several units and sizes of terms: the starts must not depend on them."""
    form, cols = FORMS[name], columns(60)
    truth = {"E": 1.7, "A": 300.0, "B": 900.0, "K": 500.0, "a": 130.0, "b": 90.0, "alpha": 0.34,
             "beta": 0.31, "gamma": 0.16, "eta": 0.15, "R_D": 12.0, "R_N": 4.0}
    design = make_design(form, cols)
    theta = design.to_theta({k: np.array([truth[k]]) for k in design.names})
    log_loss = np.log(design.value(theta)[0][0])
    fit = fit_point(design, log_loss, polish=64)
    for k, v in fit.params.items():
        assert v == pytest.approx(truth[k], rel=2e-3), k
    if not design.separable:
        return
    solved = design.to_params(fit_varpro(design, log_loss)[None])
    for k in form.exponents:
        assert solved[k][0] == pytest.approx(truth[k], rel=2e-3), k


def test_theta_and_natural_parameters_are_inverse():
    for name, form in FORMS.items():
        design = make_design(form, columns())
        theta = some_theta(design, np.random.default_rng(4))
        assert np.allclose(design.to_theta(design.to_params(theta)), theta), name


def test_refits_equal_scipy_on_resampled_copies():
    """Multiplicity weights are the same as copying rows, and the batch as one fit at a time."""
    rng = np.random.default_rng(5)
    design = make_design(FORMS["chinchilla"], columns(40))
    log_loss = np.log(design.value(some_theta(design, rng, 1))[0][0]) + rng.normal(0, 0.01, 40)
    fit = fit_point(design, log_loss, polish=64)
    picks = rng.integers(0, 40, (6, 40))
    counts = np.stack([np.bincount(p, minlength=40) for p in picks]).astype(float)
    found = refit(fit, weights=counts, tol=1e-13)
    for p, x, f in zip(picks, found.x, found.f):
        copied = make_design(FORMS["chinchilla"], {k: v[p] for k, v in design.columns.items()},
                             centre=design.centre)
        fun = huber_objective(copied, log_loss[p])
        theirs = minimize(lambda t: tuple(v[0] for v in fun(t[None], np.zeros(1, int))), x,
                          jac=True, method="BFGS", options={"gtol": 1e-10})
        assert f <= theirs.fun * (1 + 1e-9)
