"""Error rates: edits in proportion to the reference, over a whole set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.scorers._normalise import Ignored, normalise
from luthier.scorers._score import Answer, Floats, Score, Target
from luthier.scorers._words import reference_texts

Units = Callable[[str], Sequence[str]]


class Compared(EntryConfig):
    """``casefold`` ignores upper and lower case, ``punctuation`` the Unicode categories P and S; runs of white space count as one."""

    casefold: bool = False
    punctuation: bool = False


def errors(answer: Answer, target: Target, config: Compared, units: Units) -> tuple[int, int] | None:
    """(edits, reference length) with the accepted answer that gives the lowest rate; None without a reference."""
    from rapidfuzz.distance import Levenshtein

    ignored = Ignored(True, config.casefold, config.punctuation)
    given = units(normalise(answer.text, ignored))
    references = [units(normalise(text, ignored)) for text in reference_texts(target.accepted)]
    found = [(int(Levenshtein.distance(given, wanted)), len(wanted)) for wanted in references if wanted]
    return min(found, key=lambda pair: pair[0] / pair[1]) if found else None


def rate(answer: Answer, target: Target, config: Compared, units: Units) -> Score:
    """Edits / reference length: 0 is perfect, above 1 when much was added; None when the reference is empty."""
    found = errors(answer, target, config, units)
    if found is None:
        return Score(None, {"reason": "the reference is empty"})
    return Score(found[0] / found[1], {"edits": found[0], "length": found[1]})


def rate_sums(answers: Sequence[Answer], targets: Sequence[Target], config: Compared, units: Units) -> Floats:
    """Columns: edits, reference length."""
    found = [errors(answer, target, config, units) for answer, target in zip(answers, targets, strict=True)]
    return np.array([pair or (0, 0) for pair in found], dtype=np.float64).reshape(len(found), 2)


def rates(totals: Floats) -> Floats:
    """All edits over all reference lengths; ``nan`` without a reference."""
    out: Floats = np.divide(totals[:, 0], totals[:, 1], out=np.full(len(totals), np.nan), where=totals[:, 1] > 0)
    return out
