"""Scaling laws: how the loss falls with parameters N and training tokens D, fitted to measured runs.

Where both vary: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2), by their approach 3 (section 3.3 and appendix D.4): a Huber loss with
delta 1e-3 on log L, in the parameters (log A, log B, log E, alpha, beta), minimised by L-BFGS from the best of a grid of starts. Where one varies: the power
law L = (X_c / X)^alpha (Kaplan et al. 2020, equations 1.1 and 1.2), by the same loss. Intervals are percentiles over runs drawn with replacement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from luthier.core.errors import DataError, InputError

Array = npt.NDArray[np.float64]
Law = Literal["parameters and tokens", "parameters", "tokens"]

DELTA = 1e-3
_FLOPS_A_TOKEN = 6.0
"""Operations of training, for each parameter and token (Kaplan et al. 2020, section 2.1)."""
_STARTS = {
    "a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "b": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "e": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
}
"""The grid of Hoffmann et al., appendix D.4."""
_TRIED = 48
"""How many of them, the ones with the smallest loss, are followed for some steps."""
_FOLLOWED = 3
"""How many of those to their minimum."""


@dataclass(frozen=True)
class Point:
    """One run: its parameters, the tokens that it was trained on, and its held-out loss in nats a token."""

    parameters: float
    tokens: float
    loss: float

    @property
    def compute(self) -> float:
        """6 N D: floating-point operations of its training."""
        return _FLOPS_A_TOKEN * self.parameters * self.tokens


@dataclass(frozen=True)
class Optimum:
    """The best use of ``compute`` operations: so many parameters on so many tokens, and the loss that is expected. ``low`` and ``high`` bound the
    parameters (95%), when there were enough bootstrap fits."""

    compute: float
    parameters: float
    tokens: float
    loss: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Fit:
    """A fitted law. ``constants`` are E, A, B, alpha and beta, or of one variable X_c and alpha; ``intervals`` are of 95%. ``error`` is the
    largest relative difference between a run's loss and the law."""

    law: Law
    constants: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    points: tuple[Point, ...]
    error: float
    samples: tuple[Mapping[str, float], ...] = ()

    def loss(self, parameters: float, tokens: float) -> float:
        """What the law says of a model of so many parameters on so many tokens."""
        return float(_law(self.law, self.constants, np.float64(parameters), np.float64(tokens)))

    def optimum(self, compute: float) -> Optimum:
        """The parameters and tokens with 6 N D = ``compute`` of the smallest loss (Hoffmann et al. 2022, equation 4). Raises InputError for a law of one
        variable, which cannot weigh them."""
        if self.law != "parameters and tokens":
            raise InputError(
                f"the best use of a budget needs runs that vary in parameters and in tokens; these vary in {self.law} alone"
            )
        best = _split(self.constants, compute)
        others = sorted(_split(sample, compute)[0] for sample in self.samples)
        low, high = (_percentile(others, q) for q in (0.025, 0.975)) if len(others) >= 20 else (None, None)
        return Optimum(compute, *best, self.loss(*best), low, high)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON, without the bootstrap's own fits."""
        out = asdict(self)
        out.pop("samples")
        return out

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Fit:
        """Inverse of ``as_dict``."""
        intervals = {name: (float(low), float(high)) for name, (low, high) in data["intervals"].items()}
        points = tuple(Point(**point) for point in data["points"])
        return Fit(data["law"], data["constants"], intervals, points, data["error"])


def fit(points: Sequence[Point], *, bootstrap: int = 100, seed: int = 0) -> Fit:
    """Fit the law that ``points`` can tell: of N and D where each has at least three values (and there are at least six points), else of the one that
    has at least three. ``bootstrap`` is the number of resamples.

    Raises DataError when there are too few points, InputError for values that are not positive numbers.
    """
    for point in points:
        if not all(math.isfinite(v) and v > 0 for v in (point.parameters, point.tokens, point.loss)):
            raise InputError(f"parameters, tokens and loss must be positive numbers; got {point}")
    law = _choose(points)
    constants = _fit(law, points, None)
    samples = _bootstrap(law, points, constants, bootstrap, seed)
    intervals = {}
    if len(samples) >= 20:
        for name in constants:
            values = sorted(sample[name] for sample in samples)
            intervals[name] = (_percentile(values, 0.025), _percentile(values, 0.975))
    said = _law(law, constants, *_arrays(points)[:2])
    error = float(np.max(np.abs(said / _arrays(points)[2] - 1)))
    return Fit(law, constants, intervals, tuple(points), error, tuple(samples))


def read_points(path: str | Path) -> list[Point]:
    """Points of a JSON Lines, JSON or CSV file with the fields parameters, tokens and loss. Raises DataError that names the first bad row."""
    from luthier.data.files import Broken, rows_of

    found = []
    for line, row in rows_of(Path(path).expanduser()):
        try:
            if isinstance(row, Broken):
                raise ValueError(row.reason)
            found.append(Point(float(row["parameters"]), float(row["tokens"]), float(row["loss"])))
        except (KeyError, TypeError, ValueError) as error:
            said = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{path}:{line}: {said}", hint="each row holds the numbers parameters, tokens and loss"
            ) from error
    return found


def _choose(points: Sequence[Point]) -> Law:
    """The law that the points can tell."""
    sizes, budgets = len({p.parameters for p in points}), len({p.tokens for p in points})
    if _about(points, "parameters") >= 3 and _about(points, "tokens") >= 3 and len(points) >= 6:
        return "parameters and tokens"
    if _about(points, "tokens") == 1 and sizes >= 3:
        return "parameters"
    if _about(points, "parameters") == 1 and budgets >= 3:
        return "tokens"
    raise DataError(
        f"{len(points)} runs with {sizes} different sizes and {budgets} different token budgets do not tell a scaling law",
        hint="give at least 3 sizes and 3 budgets (6 runs or more), or at least 3 of one and 1 of the other",
    )


def _about(points: Sequence[Point], name: str) -> int:
    """Different values; two within 5% count as one, for runs end at whole steps."""
    values = sorted(getattr(point, name) for point in points)
    return 1 + sum(1 for earlier, later in itertools.pairwise(values) if later > 1.05 * earlier)


def _arrays(points: Sequence[Point]) -> tuple[Array, Array, Array]:
    rows = np.array([(p.parameters, p.tokens, p.loss) for p in points], dtype=np.float64)
    return rows[:, 0], rows[:, 1], rows[:, 2]


def _law(law: Law, constants: Mapping[str, float], sizes: Any, tokens: Any) -> Any:
    c = constants
    if law == "parameters and tokens":
        return c["E"] + c["A"] / sizes ** c["alpha"] + c["B"] / tokens ** c["beta"]
    return (c["X_c"] / (sizes if law == "parameters" else tokens)) ** c["alpha"]


def _fit(law: Law, points: Sequence[Point], start: Mapping[str, float] | None) -> dict[str, float]:
    sizes, tokens, losses = _arrays(points)
    if law == "parameters and tokens":
        return _fit_both(np.log(sizes), np.log(tokens), np.log(losses), start)
    return _fit_one(np.log(sizes if law == "parameters" else tokens), np.log(losses))


def _huber(residuals: Array) -> Array:
    far = np.abs(residuals)
    found: Array = np.where(far <= DELTA, 0.5 * residuals**2, DELTA * (far - 0.5 * DELTA))
    return found


def _fit_both(n: Array, d: Array, target: Array, start: Mapping[str, float] | None) -> dict[str, float]:
    """Approach 3 on logarithms of parameters, tokens and losses; from ``start`` alone when there is one."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    def terms(x: Array) -> Array:
        """(..., 3, points): the logarithms of the law's three parts."""
        a, b, e, alpha, beta = (x[..., i, None] for i in range(5))
        found: Array = np.stack([a - alpha * n, b - beta * d, e + 0 * n], axis=-2)
        return found

    def value(x: Array) -> tuple[float, Array]:
        parts = terms(x)
        whole = logsumexp(parts, axis=0)
        residuals = whole - target
        weights = np.exp(parts - whole)  # derivative of the sum's logarithm by each part
        slope = np.clip(residuals, -DELTA, DELTA)
        gradient = [weights[0], weights[1], weights[2], -weights[0] * n, -weights[1] * d]
        # both sides are scaled alike: the loss is of the order of DELTA squared, too flat for the optimizer's own tolerances
        return float(_huber(residuals).sum()) / DELTA**2, np.array([slope @ each for each in gradient]) / DELTA**2

    if start is not None:
        starts = np.array(
            [[math.log(start["A"]), math.log(start["B"]), math.log(start["E"]), start["alpha"], start["beta"]]]
        )
    else:
        grid = np.array(list(itertools.product(*_STARTS.values())))
        first = _huber(logsumexp(terms(grid), axis=-2) - target).sum(-1)
        starts = grid[np.argsort(first, kind="stable")[:_TRIED]]

    def follow(x: Array, steps: int) -> Any:
        options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-14, "gtol": 1e-9}
        return minimize(value, x, jac=True, method="L-BFGS-B", options=options)

    if len(starts) > _FOLLOWED:  # a part of the way tells which are worth all of it
        ahead = sorted((follow(x, 60) for x in starts), key=lambda each: float(each.fun))[:_FOLLOWED]
        starts = np.array([each.x for each in ahead])
    best = min((follow(x, 2000) for x in starts), key=lambda each: float(each.fun))
    a, b, e, alpha, beta = (float(v) for v in best.x)
    return {"E": math.exp(e), "A": math.exp(a), "B": math.exp(b), "alpha": alpha, "beta": beta}


def _fit_one(x: Array, target: Array) -> dict[str, float]:
    """log L = alpha (log X_c - log X), a line; the same Huber loss."""
    from scipy.optimize import minimize

    slope, constant = np.polyfit(x, target, 1)

    def value(line: Array) -> tuple[float, Array]:
        residuals = line[0] * (x - x.mean()) + line[1] - target
        pull = np.clip(residuals, -DELTA, DELTA)
        return float(_huber(residuals).sum()) / DELTA**2, np.array([pull @ (x - x.mean()), pull.sum()]) / DELTA**2

    found = minimize(value, np.array([slope, constant + slope * x.mean()]), jac=True, method="L-BFGS-B")
    slope, constant = float(found.x[0]), float(found.x[1] - found.x[0] * x.mean())
    if slope >= 0:
        raise DataError(
            "the loss does not fall with size or tokens in these runs, so there is no law to fit",
            hint="train longer, or look at the runs: a learning rate that fits one size may break another",
        )
    return {"X_c": math.exp(min(constant / -slope, 700.0)), "alpha": -slope}


def _bootstrap(
    law: Law, points: Sequence[Point], constants: Mapping[str, float], count: int, seed: int
) -> list[dict[str, float]]:
    """Fits of runs drawn with replacement, of the draws that can still tell the law."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        drawn = [points[i] for i in generator.integers(len(points), size=len(points))]
        try:
            if _choose(drawn) == law:
                found.append(_fit(law, drawn, constants))
        except DataError:
            continue
    return found


def _split(constants: Mapping[str, float], compute: float) -> tuple[float, float]:
    """(parameters, tokens) of the smallest loss with 6 N D = ``compute``."""
    alpha, beta = max(constants["alpha"], 1e-6), max(constants["beta"], 1e-6)
    scale = (alpha * constants["A"] / (beta * constants["B"])) ** (1 / (alpha + beta))
    budget = compute / _FLOPS_A_TOKEN
    return scale * budget ** (beta / (alpha + beta)), budget ** (alpha / (alpha + beta)) / scale


def _percentile(ordered: Sequence[float], share: float) -> float:
    return float(np.quantile(np.array(ordered), share))
