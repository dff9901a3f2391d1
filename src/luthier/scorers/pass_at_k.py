"""Chance that at least one of k programs passes its tests, estimated without bias from n samples (Chen et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from luthier.core.errors import InputError
from luthier.scorers._programs import RunConfig, run_samples
from luthier.scorers._score import Answer, Resources, Score, Target


class Config(RunConfig):
    """``k``: how many programs one would be given. The task must ask for at least as many ``samples``.

    ``timeout_s``, ``memory_mb``, ``workers`` and ``fences`` are those of scorer ``code``, and so are the tests.
    """

    k: int = Field(default=1, ge=1)


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), as the product that does not overflow: ``c`` of ``n`` samples passed."""
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def needs_target(config: Config) -> bool:
    """The tests are fields of the row."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """pass@k of one example; the detail holds ``n``, ``c`` and how each program ended."""
    return score_many([answer], [target], config, Resources())[0]


def score_many(
    answers: Sequence[Answer], targets: Sequence[Target], config: Config, resources: Resources
) -> list[Score]:
    """``score`` of each, programs side by side.

    Raises InputError when an answer has fewer samples than ``k``, DataError for an example without tests.
    """
    for answer in answers:
        n = len(answer.samples) or 1
        if n < config.k:
            raise InputError(
                f"pass_at_k: k must be at most the number of samples; got k={config.k} and {n} samples",
                hint=f"set samples: {config.k} or more in the task, with a temperature",
            )
    out = []
    for outcomes in run_samples(answers, targets, config, resources):
        n, c = len(outcomes), sum(outcome.passed for outcome in outcomes)
        status = [outcome.status for outcome in outcomes]
        out.append(Score(pass_at_k(n, c, config.k), {"n": n, "c": c, "status": status}))
    return out
