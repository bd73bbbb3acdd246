"""The values a swept parameter can take, by W&B's rules (its published sweep schema): what each
distribution needs, how a quantile becomes a value, what a grid enumerates."""
from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

RANGE = {"min", "max"}
NORMAL = {"mu", "sigma"}
# distribution: (keys it must have, keys it may have)
DISTRIBUTIONS: dict[str, tuple[set[str], set[str]]] = {
    "constant": ({"value"}, set()),
    "categorical": ({"values"}, set()),
    "categorical_w_probabilities": ({"values", "probabilities"}, set()),
    "int_uniform": (RANGE, set()),
    "uniform": (RANGE, set()),
    "q_uniform": (RANGE, {"q"}),
    "log_uniform_values": (RANGE, set()),
    "q_log_uniform_values": (RANGE, {"q"}),
    "inv_log_uniform_values": (RANGE, set()),
    "normal": (set(), NORMAL),
    "q_normal": (set(), NORMAL | {"q"}),
    "log_normal": (set(), NORMAL),
    "q_log_normal": (set(), NORMAL | {"q"}),
}
DEPRECATED = {"log_uniform": "log_uniform_values", "inv_log_uniform": "inv_log_uniform_values",
              "q_log_uniform": "q_log_uniform_values"}
IN_A_GRID = ("constant", "categorical", "int_uniform", "q_uniform")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def distribution(p: dict[str, Any]) -> str | None:
    """The distribution a parameter names, or the one that W&B takes its keys to mean."""
    if "distribution" in p:
        return p["distribution"]
    if "value" in p:
        return "constant"
    if "values" in p:
        return "categorical_w_probabilities" if "probabilities" in p else "categorical"
    if RANGE <= p.keys():
        return "int_uniform" if is_integer(p["min"]) and is_integer(p["max"]) else "uniform"
    return None


def problems(p: Any) -> list[str]:
    """What is wrong with one parameter, in words; empty where it is sound."""
    if not isinstance(p, dict):
        return [f"should say value:, values: or min: and max:, is {p!r}"]
    kind = distribution(p)
    if kind is None:
        return ["should have value:, values:, or min: and max:"]
    if kind in DEPRECATED:
        return [f"{kind} is deprecated by W&B (its limits are exponents): use {DEPRECATED[kind]}"]
    if kind not in DISTRIBUTIONS:
        return [f"distribution {kind!r}: should be one of " + ", ".join(DISTRIBUTIONS)]
    must, may = DISTRIBUTIONS[kind]
    out = [f"{kind} needs {key}:" for key in sorted(must - p.keys())]
    out += [f"{key}: means nothing for {kind} (it takes {', '.join(sorted(must | may))})"
            for key in sorted(p.keys() - must - may - {"distribution"})]
    for key in sorted((RANGE | NORMAL | {"q"}) & p.keys()):
        if not is_number(p[key]) or not math.isfinite(p[key]):
            out.append(f"{key} = {p[key]!r}: should be a number")
    return out or limit_problems(kind, p)


def limit_problems(kind: str, p: dict[str, Any]) -> list[str]:
    """Faults between the keys of a parameter whose keys are each of the right type."""
    out = []
    if "values" in p and not (isinstance(p["values"], list) and p["values"]):
        return ["values: should be a list with at least one value (the grid would be empty)"]
    if RANGE <= p.keys() and p["min"] >= p["max"]:
        out.append(f"min = {p['min']} should be less than max = {p['max']}")
    if kind == "int_uniform" and not (is_integer(p["min"]) and is_integer(p["max"])):
        out.append("int_uniform needs whole numbers as min and max")
    if "log_uniform" in kind and p["min"] <= 0:
        out.append(f"min = {p['min']}: {kind} needs a min > 0")
    if p.get("q", 1) <= 0:
        out.append(f"q = {p['q']}: should be > 0")
    if p.get("sigma", 1) < 0:
        out.append(f"sigma = {p['sigma']}: should be >= 0")
    if "probabilities" in p:
        weights = p["probabilities"]
        if not isinstance(weights, list) or not all(is_number(w) and w >= 0 for w in weights):
            out.append("probabilities: should be a list of numbers >= 0")
        elif len(weights) != len(p["values"]) or not math.isclose(sum(weights), 1, rel_tol=1e-5):
            out.append("probabilities: should be as many as values and sum to 1")
    return out


def grid_values(p: dict[str, Any]) -> list:
    """What a grid enumerates of a parameter (only IN_A_GRID distributions have such a list)."""
    kind = distribution(p)
    if kind == "constant":
        return [p["value"]]
    if kind == "int_uniform":
        return list(range(p["min"], p["max"] + 1))
    if kind == "q_uniform":
        q = p.get("q", 1)
        count = math.ceil((p["max"] - p["min"]) / q - 1e-9)  # as numpy.arange: without the end
        return [p["min"] + i * q for i in range(count)]
    return p["values"]


def grid_size(p: dict[str, Any]) -> int:
    """len(grid_values(p)) without making the list."""
    kind = distribution(p)
    if kind == "int_uniform":
        return p["max"] - p["min"] + 1
    if kind == "q_uniform":
        return math.ceil((p["max"] - p["min"]) / p.get("q", 1) - 1e-9)
    return 1 if kind == "constant" else len(p["values"])


def quantile(p: dict[str, Any], u: float) -> Any:
    """The value below which a share u (0 <= u < 1) of the distribution lies: with u uniform, a
    draw from it."""
    kind = distribution(p)
    if kind == "constant":
        return p["value"]
    if kind == "categorical":
        return p["values"][int(u * len(p["values"]))]
    if kind == "categorical_w_probabilities":
        total = 0.0
        for value, weight in zip(p["values"], p["probabilities"]):
            total += weight
            if u < total:
                return value
        return p["values"][-1]
    if kind == "int_uniform":
        return p["min"] + int(u * (p["max"] - p["min"] + 1))
    x = continuous_quantile(kind, p, u)
    if kind.startswith("q_"):
        q = p.get("q", 1)
        x = round(x / q) * q
        return int(x) if is_integer(q) else x
    return x


def continuous_quantile(kind: str, p: dict[str, Any], u: float) -> float:
    if "normal" in kind:
        u = min(max(u, 1e-9), 1 - 1e-9)
        x = NormalDist(p.get("mu", 0.0), p.get("sigma", 1.0) or 1e-300).inv_cdf(u)
        return math.exp(x) if "log" in kind else x
    low, high = p["min"], p["max"]
    if "log_uniform" in kind:  # W&B's inverse form is the same distribution
        return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    return low + u * (high - low)
