"""Characters to insert, delete or replace, as a share of the reference's characters (CER), over the whole set."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.scorers import _edits
from luthier.scorers._score import Answer, Floats, Score, Target

Config = _edits.Compared
LOWER_IS_BETTER = True


def score(answer: Answer, target: Target, config: Config) -> Score:
    """Edits / reference length for the accepted answer that is nearest: 0 is perfect; None when the reference is empty."""
    return _edits.rate(answer, target, config, list)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Columns: edits, reference length."""
    return _edits.rate_sums(answers, targets, config, list)


def combine(totals: Floats, config: Config) -> Floats:
    """All edits over all reference lengths, each row."""
    return _edits.rates(totals)
