"""Share of an answer's samples whose program passes its tests, run in the sandbox (HumanEval, MBPP, own tests)."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.scorers._programs import RunConfig, run_samples
from luthier.scorers._score import Answer, Resources, Score, Target


class Config(RunConfig):
    """How programs are run. ``timeout_s`` is what one may compute; waiting counted in, it gets 2.5 times as long. ``memory_mb`` is its
    address space, the interpreter included. ``workers`` programs run at once (0: one a core). ``fences``: code is taken out of a
    reply's Markdown block; a reply that starts with an indented line is code as it stands.

    The tests are in the example's ``meta``: ``prompt``, ``test`` and ``entry_point`` as in HumanEval, or ``test_list`` as in MBPP.
    """


def needs_target(config: Config) -> bool:
    """The tests are fields of the row."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """The share of samples that pass: pass@1 without bias. The detail says of each how it ended and why."""
    return score_many([answer], [target], config, Resources())[0]


def score_many(
    answers: Sequence[Answer], targets: Sequence[Target], config: Config, resources: Resources
) -> list[Score]:
    """``score`` of each, programs side by side. Raises DataError for an example without tests."""
    out = []
    for outcomes in run_samples(answers, targets, config, resources):
        passed = sum(outcome.passed for outcome in outcomes)
        status = [outcome.status for outcome in outcomes]
        reasons = list(dict.fromkeys(outcome.reason for outcome in outcomes if outcome.reason))
        out.append(Score(passed / len(outcomes), {"status": status, "reasons": reasons}))
    return out
