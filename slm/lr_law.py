"""Laws of the best learning rate in size and horizon, for optim.lr: auto.

    lr = scale * N^n * D^d        N: parameters, D: training tokens of the run's horizon

`step-law` is Li et al. 2025 (Predictable Scale, part I; arXiv 2503.04715): eta = 1.79 N^-0.713
D^0.307. Its N is what this project counts as `blocks`: the matrices of attention and MLP, with
neither embedding nor head, norms or biases (in the authors' table of runs 7 layers of width 960
and SwiGLU width 9368 have N = 214,663,680 = 7 (4 * 960^2 + 3 * 960 * 9368)); its D is tokens. It
was fitted to AdamW under the standard parametrization, at the best batch of each (N, D), which
grows as 0.58 D^0.571 tokens, and with a cosine down to 1e-5 whatever the peak.

Others are fitted to one's own runs by python -m analysis.lr_law, which writes them as JSON. As text
a law reads `1.79 N^-0.713 D^0.307 [blocks, adamw, sp, N 2.15e+08..1.07e+09, D 4e+09..1e+11]`: what
N counts, the optimiser and the parametrization it holds for, the range it was fitted in.
"""
from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from slm.errors import UserError
from slm.schema import Model, Optim

COUNTS = ("matmul", "blocks", "non_embedding", "total")        # keys of cost.count_params
OPTIMIZERS = get_args(Optim.model_fields["name"].annotation)
PARAMETRIZATIONS = get_args(Model.model_fields["parametrization"].annotation)
NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
TEXT = re.compile(rf"{NUMBER} N\^{NUMBER} D\^{NUMBER} \[(\w+), (\w+), (\w+), "
                  rf"N {NUMBER}\.\.{NUMBER}, D {NUMBER}\.\.{NUMBER}\]")
EXPECTED = ("should be step-law, the JSON file that python -m analysis.lr_law writes, or a law as "
            "text")


@dataclass(frozen=True)
class LrLaw:
    """scale, n, d: of lr = scale * N^n * D^d; count: what N counts, one of COUNTS; optimizer,
    parametrization: what it was fitted to; n_range, d_range: where. Raises ValueError for values
    that make no law."""
    scale: float
    n: float
    d: float
    count: str
    optimizer: str
    parametrization: str
    n_range: tuple[float, float]
    d_range: tuple[float, float]

    def __post_init__(self) -> None:
        for name in ("scale", "n", "d"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}")
        if self.scale <= 0:
            raise ValueError(f"scale is {self.scale}, and should be > 0")
        for name, known in (("count", COUNTS), ("optimizer", OPTIMIZERS),
                            ("parametrization", PARAMETRIZATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, and should be one of "
                                 + ", ".join(known))
        for name in ("n_range", "d_range"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {low:g} to {high:g}")

    def rate(self, params: Mapping[str, int], tokens: float) -> float:
        """The learning rate. params: cost.count_params of the model; tokens: of the horizon."""
        return self.at(params[self.count], tokens)

    def at(self, n: float, tokens: float) -> float:
        """The learning rate at N = n, counted as `count` says."""
        return self.scale * n ** self.n * tokens ** self.d

    def outside(self, params: Mapping[str, int], tokens: float) -> str:
        """How far a run lies out of the fitted range ('' inside of it)."""
        parts = []
        for name, value, (low, high) in (("N", params[self.count], self.n_range),
                                         ("D", tokens, self.d_range)):
            if value > high * (1 + 1e-6):
                parts.append(f"{name} is {value / high:.3g}x the largest fitted")
            elif value < low * (1 - 1e-6):
                parts.append(f"{name} is {value / low:.3g}x the smallest fitted")
        return ", ".join(parts)

    @property
    def formula(self) -> str:
        return f"{self.scale:.12g} N^{self.n:.12g} D^{self.d:.12g}"

    def __str__(self) -> str:
        (n_low, n_high), (d_low, d_high) = self.n_range, self.d_range
        return (f"{self.formula} [{self.count}, {self.optimizer}, {self.parametrization}, "
                f"N {n_low:.4g}..{n_high:.4g}, D {d_low:.4g}..{d_high:.4g}]")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


STEP_LAW = LrLaw(1.79, -0.713, 0.307, "blocks", "adamw", "sp", (214_663_680, 1_073_741_824),
                 (4e9, 1e11))
NAMED = {"step-law": (STEP_LAW, "Li et al. 2025, arXiv 2503.04715")}


def read_law(text: str) -> LrLaw:
    """The law that optim.lr_law names: one of NAMED, a JSON file, or the text of a law.

    Raises UserError: what is wrong with it, without the key's name."""
    if text in NAMED:
        return NAMED[text][0]
    found = TEXT.fullmatch(text.strip())
    if found is None:
        return read_file(text)
    *numbers, count, optimizer, parametrization = (*found.group(1, 2, 3, 7, 8, 9, 10),
                                                   *found.group(4, 5, 6))
    scale, n, d, n_low, n_high, d_low, d_high = map(float, numbers)
    try:
        return LrLaw(scale, n, d, count, optimizer, parametrization, (n_low, n_high),
                     (d_low, d_high))
    except ValueError as e:
        raise UserError(f"no law of the learning rate: {e}") from None


def read_file(name: str) -> LrLaw:
    """A law from the JSON of python -m analysis.lr_law. Raises UserError."""
    try:
        raw = json.loads(Path(os.path.expanduser(name)).read_text(encoding="utf-8"))
    except OSError as e:
        missing = isinstance(e, FileNotFoundError)
        raise UserError(EXPECTED + ("; there is no such file" if missing else
                                    f"; the file can't be read ({e.strerror})")) from None
    except ValueError as e:
        raise UserError(f"the file is no JSON ({e}); {EXPECTED}") from None
    if not isinstance(raw, dict):
        raise UserError(f"the file is no law of the learning rate; {EXPECTED}")
    try:
        numbers = {k: float(raw[k]) for k in ("scale", "n", "d")}
        words = {k: str(raw[k]) for k in ("count", "optimizer", "parametrization")}
        ranges = {k: (float(raw[k][0]), float(raw[k][1])) for k in ("n_range", "d_range")}
        return LrLaw(**numbers, **words, **ranges)
    except KeyError as e:
        raise UserError(f"the file holds no {e.args[0]}; {EXPECTED}") from None
    except (TypeError, ValueError, IndexError) as e:
        raise UserError(f"the file is no law of the learning rate ({e}); {EXPECTED}") from None
