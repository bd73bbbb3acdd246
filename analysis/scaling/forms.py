"""The forms of scaling laws: loss as a floor plus power laws, in coordinates that are easy to fit.

Every form is L = E + sum_k S_k exp(-g_k x_k) with x_k a logarithm of N, D or C (natural, centred
on the data). Fits move in (E, log S_k, g_k); centring makes S_k the size of a term in the middle
of the data, nearly independent of its exponent: BFGS needs a fifth of the steps. E itself, not its
logarithm: where runs hardly show a floor, a fit stuck at log E = -20 has no honest interval, and
one that may pass zero has.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from slm.errors import UserError

Columns = dict[str, np.ndarray]        # n_params, tokens, flops, unique_tokens: (n,) each


@dataclass(frozen=True)
class Term:
    """scale * exp(-exponent * x): names of two parameters, and x (n,) of the columns."""
    scale: str
    exponent: str
    x: Callable[[Columns], np.ndarray]


@dataclass(frozen=True)
class Form:
    """A law's shape. `floor`: whether E is a parameter; `extra`: parameters beside E, scales and
    exponents (positive; fitted in logs); `needs`: columns it reads."""
    name: str
    equation: str
    source: str
    terms: tuple[Term, ...]
    needs: tuple[str, ...]
    floor: bool = True
    extra: tuple[str, ...] = ()

    @property
    def scales(self) -> list[str]:
        return [t.scale for t in self.terms]

    @property
    def exponents(self) -> list[str]:
        return list(dict.fromkeys(t.exponent for t in self.terms))

    def params(self, known_floor: bool = False) -> list[str]:
        """Names of the free parameters, in the order of theta's columns."""
        free = ["E"] if self.floor and not known_floor else []
        return free + self.scales + self.exponents + list(self.extra)


def log_of(column: str) -> Callable[[Columns], np.ndarray]:
    return lambda c: np.log(c[column])


def log_over_training(sign: int) -> Callable[[Columns], np.ndarray]:
    """log C -+ log M with M = D / N, so that both terms fall with compute."""
    return lambda c: np.log(c["flops"]) - sign * np.log(c["tokens"] / c["n_params"])


N_TERM = Term("A", "alpha", log_of("n_params"))
D_TERM = Term("B", "beta", log_of("tokens"))
C_TERM = Term("K", "gamma", log_of("flops"))
GADRE = (Term("a", "eta", log_over_training(+1)), Term("b", "eta", log_over_training(-1)))
AXIS = {"alpha": "n_params", "beta": "tokens", "gamma": "flops", "eta": "flops"}
KAPLAN, HOFFMANN = "Kaplan et al. 2020, arXiv 2001.08361", "Hoffmann et al. 2022, arXiv 2203.15556"
REPEATS = "Muennighoff et al. 2023, arXiv 2305.16264, eq. 5-6"

FORMS: dict[str, Form] = {f.name: f for f in (
    Form("chinchilla", "L = E + A / N^alpha + B / D^beta", HOFFMANN + ", approach 3",
         (N_TERM, D_TERM), ("n_params", "tokens")),
    Form("L(N)", "L = E + A / N^alpha", KAPLAN, (N_TERM,), ("n_params",)),
    Form("L(D)", "L = E + B / D^beta", KAPLAN, (D_TERM,), ("tokens",)),
    Form("L(C)", "L = E + K / C^gamma", KAPLAN, (C_TERM,), ("flops",)),
    Form("L(N) no floor", "L = A / N^alpha", KAPLAN, (N_TERM,), ("n_params",), floor=False),
    Form("L(D) no floor", "L = B / D^beta", KAPLAN, (D_TERM,), ("tokens",), floor=False),
    Form("L(C) no floor", "L = K / C^gamma", KAPLAN, (C_TERM,), ("flops",), floor=False),
    Form("overtraining", "L = E + (a M^eta + b M^-eta) C^-eta with M = D / N",
         "Gadre et al. 2024, arXiv 2403.08540, eq. 4", GADRE, ("n_params", "tokens", "flops")),
    Form("repeated_data", "L = E + A / N^alpha + B / D'^beta, "
         "D' = U + U R_D (1 - exp(-(D / U - 1) / R_D))", REPEATS + " (data only)",
         (N_TERM, D_TERM), ("n_params", "tokens", "unique_tokens"), extra=("R_D",)),
    Form("data_constrained", "L = E + A / N'^alpha + B / D'^beta, D' of U = min(D, unique) and N' "
         "of U_N = min(N, N_opt(U)) as x' = u + u R (1 - exp(-(x / u - 1) / R))", REPEATS,
         (N_TERM, D_TERM), ("n_params", "tokens", "unique_tokens"), extra=("R_D", "R_N")),
)}


def get_form(name: str) -> Form:
    """The form of that name. Raises UserError with the list of names."""
    if name not in FORMS:
        raise UserError(f"no law form {name!r}: there are {', '.join(FORMS)}")
    return FORMS[name]


@dataclass
class Design:
    """A form on given columns, evaluated for many parameter vectors at once.

    theta (b, p) is in fitting coordinates: E (unless the floor is known or absent), log S_k,
    exponents, log of extras. `centre` (k,) is what was subtracted of x_k (the data's own means, or
    those of another design whose theta is to be evaluated here)."""
    form: Form
    columns: Columns
    floor: np.ndarray | None = None          # (n,) known floors in nats/token
    centre: np.ndarray | None = None         # (k,)
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = self.form.params(self.floor is not None)
        raw = np.stack([t.x(self.columns) for t in self.form.terms])       # (k, n)
        if self.centre is None:
            self.centre = raw.mean(1)
        self.x = raw - self.centre[:, None]
        self.free_floor = self.form.floor and self.floor is None
        start = int(self.free_floor)
        self.floor_at = [0] if self.free_floor else []
        n_term = len(self.form.terms)
        self.scale_at = [start + k for k in range(n_term)]
        # linear in floor and scales, for given exponents and extras (N_opt reads the scales)
        self.separable = "R_N" not in self.names
        self.exponent_at = [self.names.index(t.exponent) for t in self.form.terms]

    def shifted_x(self, theta: np.ndarray):
        """x_k as the terms see it, (n,) or (b, n), and a function that adds to the gradient what
        depends on theta through x (nothing here)."""
        return list(self.x), None

    def value(self, theta: np.ndarray):
        """Loss (b, n) at theta (b, p), and pull(h): the gradient (b, p) of any function of it
        whose derivative with respect to the loss is h (b, n)."""
        xs, pull_x = self.shifted_x(theta)
        us = [np.exp(theta[:, i, None] - theta[:, j, None] * x)
              for i, j, x in zip(self.scale_at, self.exponent_at, xs)]
        loss = us[0] if len(us) == 1 else us[0] + us[1]
        if self.free_floor:
            loss = loss + theta[:, :1]
        elif self.floor is not None:
            loss = loss + self.floor

        def pull(h: np.ndarray) -> np.ndarray:
            g = np.zeros_like(theta)
            if self.free_floor:
                g[:, 0] = h.sum(1)
            parts = [h * u for u in us]
            for part, i, j, x in zip(parts, self.scale_at, self.exponent_at, xs):
                g[:, i] += part.sum(1)
                g[:, j] -= part @ x if x.ndim == 1 else np.einsum("bn,bn->b", part, x)
            if pull_x:
                pull_x(g, [-theta[:, j, None] * part
                           for part, j in zip(parts, self.exponent_at)])
            return g

        return loss, pull

    def to_params(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Natural parameters, (b,) each, of theta (b, p): E, scales at N = D = C = 1, exponents."""
        out = {}
        for i, name in enumerate(self.names):
            plain = i in self.exponent_at + self.floor_at
            out[name] = theta[:, i] if plain else np.exp(theta[:, i])
        for k, t in enumerate(self.form.terms):
            with np.errstate(over="ignore"):
                out[t.scale] = np.exp(theta[:, self.scale_at[k]]
                                      + theta[:, self.exponent_at[k]] * self.centre[k])
        return out

    def to_theta(self, params: dict[str, np.ndarray]) -> np.ndarray:
        """The inverse of to_params: natural parameters (b,) each to theta (b, p)."""
        theta = np.stack([np.asarray(params[n], float) for n in self.names], -1)
        logged = [i for i in range(theta.shape[-1]) if i not in self.exponent_at + self.floor_at]
        with np.errstate(divide="ignore"):
            theta[..., logged] = np.log(theta[..., logged])
        for i, j, c in zip(self.scale_at, self.exponent_at, self.centre):
            theta[..., i] -= theta[..., j] * c
        return theta


def saturating(log_x, log_u, log_r):
    """log x' with x' = u + u r (1 - exp(-(x / u - 1) / r)), the worth of x = u repeated x / u
    times (Muennighoff et al. 2023, eq. 5), and its derivatives by log u and by log r."""
    r = np.exp(log_r)
    repeats = np.maximum(np.exp(log_x - log_u) - 1, 0)
    q = repeats / r
    decay = np.exp(-q)
    worth = 1 + r * (1 - decay)
    by_u = np.where(repeats > 0, 1 - decay * (repeats + 1) / worth, 0)
    return log_u + np.log(worth), by_u, (r * (1 - decay) - repeats * decay) / worth


class RepeatedDesign(Design):
    """Repeated data: x_D, and with R_N also x_N, saturate."""

    def shifted_x(self, theta: np.ndarray):
        log_n, log_d = np.log(self.columns["n_params"]), np.log(self.columns["tokens"])
        log_u = np.minimum(log_d, np.log(self.columns["unique_tokens"]))
        r_d = self.names.index("R_D")
        worth, _, d_by_r = saturating(log_d, log_u, theta[:, r_d, None])
        xs = [self.x[0], worth - self.centre[1]]
        if "R_N" not in self.names:
            def pull_data(g, by_x) -> None:
                g[:, r_d] += np.einsum("bn,bn->b", by_x[1], d_by_r)
            return xs, pull_data
        r_n = self.names.index("R_N")
        best, spread = self.optimal_log_n(theta, log_u)
        log_un = np.minimum(log_n, best)
        worth_n, n_by_u, n_by_r = saturating(log_n, log_un, theta[:, r_n, None])
        n_by_best = n_by_u * (best < log_n)
        xs[0] = worth_n - self.centre[0]

        def pull_both(g, by_x) -> None:
            g[:, r_d] += np.einsum("bn,bn->b", by_x[1], d_by_r)
            g[:, r_n] += np.einsum("bn,bn->b", by_x[0], n_by_r)
            for column, weight in spread:
                g[:, column] += np.einsum("bn,bn->b", by_x[0] * n_by_best, weight)
        return xs, pull_both

    def optimal_log_n(self, theta: np.ndarray, log_u: np.ndarray):
        """log N_opt (b, n), the size for which `unique` tokens are compute-optimal (C = 6 N D):
        alpha A / N^alpha = beta B / U^beta, and its derivatives by theta's columns."""
        (a, b), (al, be) = self.scale_at, self.exponent_at
        alpha = np.maximum(theta[:, al, None], 1e-3)
        beta = np.maximum(theta[:, be, None], 1e-3)
        u = log_u - self.centre[1]
        gap = np.log(alpha) - np.log(beta) + theta[:, a, None] - theta[:, b, None] + beta * u
        best = gap / alpha + self.centre[0]
        one = np.ones_like(best)
        return best, [(a, one / alpha), (b, -one / alpha),
                      (al, (1 - gap) / alpha ** 2), (be, (u - 1 / beta) / alpha)]


def make_design(form: Form, columns: Columns, floor: np.ndarray | None = None,
                centre: np.ndarray | None = None) -> Design:
    """The design of a form on columns (n,); `floor` (n,): known floors, then E is no parameter."""
    cls = RepeatedDesign if "R_D" in form.extra else Design
    return cls(form, columns, floor, centre)
