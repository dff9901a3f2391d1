"""The soft punishment of long answers, against equation 13 of DAPO written out."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import InputError
from luthier.scorers._score import Answer, Target
from luthier.scorers.overlong import Config, score


def dapo(length: int, longest: int, cache: int) -> float:
    """Equation 13: longest is L_max, cache L_cache."""
    if length <= longest - cache:
        return 0.0
    return ((longest - cache) - length) / cache if length <= longest else -1.0


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 13, 14, 15, 40])
def test_equation(length: int) -> None:
    found = score(Answer("w " * length), Target(""), Config(most=10, margin=4))
    assert found.value == dapo(length, 14, 4) and found.detail == {"length": length}


def test_without_a_margin_and_in_characters() -> None:
    assert [score(Answer("四个汉字"), Target(""), Config(most=m)).value for m in (3, 4)] == [-1.0, 0.0]
    assert score(Answer("ab cd"), Target(""), Config(most=4, unit="characters")).value == -1.0


@pytest.mark.parametrize("options", [{}, {"most": 0}, {"most": 2, "margin": -1}, {"most": 2, "unit": "tokens"}])
def test_bad_options(options: dict[str, Any]) -> None:
    from luthier.core.catalog import load

    with pytest.raises(InputError, match=r"scorer overlong: (most|margin|unit)"):
        load("scorers", "overlong").configure(options)
