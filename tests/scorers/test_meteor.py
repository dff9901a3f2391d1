from __future__ import annotations

import pytest

from luthier.scorers import meteor
from luthier.scorers._score import Answer, Target
from luthier.scorers.meteor import Config, score


def by_hand(matches: int, chunks: int, given: int, wanted: int) -> float:
    """Lavie and Agarwal (2007), section 2.2, with alpha 0.9, beta 3, gamma 0.5."""
    precision, recall = matches / given, matches / wanted
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / matches) ** 3)


@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", by_hand(6, 1, 6, 6)),
        ("on a mat sat the cat", "the cat sat on a mat", by_hand(6, 3, 6, 6)),
        ("the cat was sitting", "the cat sat", by_hand(2, 1, 4, 3)),
        ("cats walked", "the cat walks", by_hand(2, 1, 2, 3)),  # equal stems
        ("我爱北京", "我爱南京", by_hand(3, 2, 4, 4)),
        ("nothing alike", "the cat", 0.0),
        ("", "the cat", 0.0),
    ],
)
def test_worked_by_hand(answer: str, target: str, value: float) -> None:
    assert score(Answer(answer), Target(target), Config()).value == pytest.approx(value)


def test_the_best_reference_counts() -> None:
    found = score(Answer("a red car"), Target("one bike", ("one bike", "a red car")), Config())
    assert found.value == pytest.approx(by_hand(3, 1, 3, 3))
    assert score(Answer("x"), Target(""), Config()).value is None


def test_the_detail_says_whether_meaning_was_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert score(Answer("a"), Target("a"), Config(synonyms=False)).detail == {"matched": "form, stem"}
    monkeypatch.setattr(meteor, "_wordnet", lambda: None)  # its data are not installed
    assert score(Answer("a"), Target("a"), Config(synonyms=True)).detail == {"matched": "form, stem"}

    class Lemma:
        def name(self) -> str:
            return "auto"

    class Meaning:
        def lemmas(self) -> list[Lemma]:
            return [Lemma()]

    class Dictionary:
        def synsets(self, word: str) -> list[Meaning]:
            return [Meaning()] if word == "car" else []

    monkeypatch.setattr(meteor, "_wordnet", Dictionary)
    found = score(Answer("my car stops"), Target("my auto stops"), Config(synonyms=True))
    assert found.value == pytest.approx(by_hand(3, 1, 3, 3))
    assert found.detail == {"matched": "form, stem, WordNet"}
