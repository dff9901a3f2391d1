from __future__ import annotations

import pytest

from luthier.scorers import squad_exact, token_f1
from luthier.scorers._score import Answer, Target


def f1(answer: str, *accepted: str) -> float | None:
    return token_f1.score(Answer(answer), Target(accepted[0], accepted), token_f1.Config()).value


def exact(answer: str, *accepted: str) -> float | None:
    return squad_exact.score(Answer(answer), Target(accepted[0], accepted), squad_exact.Config()).value


@pytest.mark.parametrize(
    ("answer", "accepted", "overlap", "same"),
    [
        # words of the official evaluation, counted by hand
        ("The Eiffel Tower", ("eiffel tower",), 1.0, 1.0),
        ("the Eiffel tower in Paris", ("Eiffel Tower",), 2 * (2 / 4) * 1 / (2 / 4 + 1), 0.0),
        ("Tower", ("Eiffel Tower",), 2 * 1 * 0.5 / 1.5, 0.0),
        ("cat cat dog", ("cat dog dog",), 2 / 3, 0.0),
        ("disease", ("pathogens", "disease"), 1.0, 1.0),
        ("Saint-Denis", ("Saint Denis",), 0.0, 0.0),  # the hyphen goes, and with it the border between the words
        ("北京大学", ("北京",), 2 * (2 / 4) * 1 / (2 / 4 + 1), 0.0),
        ("《北京》", ("北京",), 1.0, 1.0),
        ("", ("",), 1.0, 1.0),
        ("no answer", ("",), 0.0, 0.0),
        ("", ("disease",), 0.0, 0.0),
        ("the", ("",), 1.0, 1.0),
    ],
)
def test_against_the_official_arithmetic(answer: str, accepted: tuple[str, ...], overlap: float, same: float) -> None:
    assert f1(answer, *accepted) == pytest.approx(overlap)
    assert exact(answer, *accepted) == same


def test_the_detail() -> None:
    found = token_f1.score(Answer("the big red car"), Target("red car"), token_f1.Config())
    assert found.detail == {"precision": pytest.approx(2 / 3), "recall": 1.0}
    assert squad_exact.score(Answer("A Car!"), Target("car"), squad_exact.Config()).detail["answer"] == "car"
