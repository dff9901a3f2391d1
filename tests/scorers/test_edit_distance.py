from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core import catalog
from luthier.scorers import edit_distance
from luthier.scorers._score import Answer, Figure, Target


def distance(left: Sequence[str], right: Sequence[str]) -> int:
    """Wagner and Fischer's table, written out."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        last, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def figure(name: str, answers: Sequence[str], targets: Sequence[str], **options: Any) -> float:
    entry = catalog.load("scorers", name)
    given_, wanted = [Answer(a) for a in answers], [Target(t) for t in targets]
    return Figure(entry, entry.configure(options), given_, wanted, [None] * len(given_)).value


@pytest.mark.parametrize(
    ("answer", "target", "options", "value"),
    [
        ("kitten", "sitting", {}, 1 - 3 / 7),
        ("a b c", "a x c", {"unit": "words"}, 2 / 3),
        ("我爱北京", "我爱南京", {"unit": "words"}, 3 / 4),
        ("ABC", "abc", {}, 0.0),
        ("ABC", "abc", {"casefold": True}, 1.0),
        ("a, b!", "a b", {"punctuation": True}, 1.0),
        ("", "", {}, 1.0),
        ("", "abc", {}, 0.0),
        ("abc", "", {}, 0.0),
    ],
)
def test_likeness(answer: str, target: str, options: dict[str, Any], value: float) -> None:
    found = edit_distance.score(Answer(answer), Target(target), edit_distance.Config(**options))
    assert found.value == pytest.approx(value)


def test_the_nearest_accepted_answer_counts() -> None:
    target = Target("colour", ("colour", "color"))
    assert edit_distance.score(Answer("color"), target, edit_distance.Config()).value == 1.0


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.text("ab 很", max_size=8), st.text("ab 很", min_size=1, max_size=8)), min_size=1, max_size=5)
)
def test_the_character_error_rate_of_a_set(pairs: list[tuple[str, str]]) -> None:
    cleaned = [(" ".join(a.split()), " ".join(t.split())) for a, t in pairs if t.split()]
    if not cleaned:
        return
    expected = sum(distance(a, t) for a, t in cleaned) / sum(len(t) for _, t in cleaned)
    assert figure("character_error_rate", *zip(*pairs, strict=True)) == pytest.approx(expected)


def test_the_word_error_rate_of_a_set() -> None:
    answers = ["the cat sat", "很好的茶", "one two three four"]
    targets = ["the dog sat down", "很好的水", "one"]
    edits = [2, 1, 3]
    assert figure("word_error_rate", answers, targets) == pytest.approx(sum(edits) / (4 + 4 + 1))
    entry = catalog.load("scorers", "word_error_rate")
    each = [entry(Answer(a), Target(t), entry.configure()).value for a, t in zip(answers, targets, strict=True)]
    assert each == pytest.approx([2 / 4, 1 / 4, 3 / 1])
    assert entry.module.LOWER_IS_BETTER
    assert figure("word_error_rate", ["the, CAT!"], ["The cat"], casefold=True, punctuation=True) == 0.0


def test_the_reference_with_the_lowest_rate_counts() -> None:
    entry = catalog.load("scorers", "character_error_rate")
    target = Target("color", ("color", "colours"))
    found = entry(Answer("colour"), target, entry.configure())
    assert found.detail == {"edits": 1, "length": 7}
    assert entry(Answer("x"), Target(" "), entry.configure()).value is None
