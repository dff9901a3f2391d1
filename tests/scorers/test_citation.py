"""Citation recall and precision against the cases of the ALCE paper (Gao et al., 2023, section 3), worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from luthier.core.errors import NotFoundError
from luthier.scorers._score import Answer, Target
from luthier.scorers.citation import Config, score

ELBE, HAMBURG, BREAD = "The Elbe flows through Dresden.", "Brahms was born in Hamburg in 1833.", "Bread is baked."


@pytest.mark.parametrize(
    ("text", "recall", "precision"),
    [
        ("The Elbe flows through Dresden [1]. Brahms was born in Hamburg [2].", 1.0, 1.0),
        ("The Elbe flows through Dresden [1]. Brahms was born in Hamburg.", 0.5, 1.0),
        ("The Elbe flows through Dresden [2].", 0.0, 0.0),
        ("The Elbe flows through Dresden [1][3].", 1.0, 0.5),  # the second is not needed and supports nothing
        ("Elbe flows, Brahms born Hamburg, Dresden [1][2].", 1.0, 1.0),  # both are needed together
        ("The Elbe flows through Dresden [9].", 0.0, 0.0),
        ("The Elbe flows through Dresden.", 0.0, None),
        ("The documents do not say.", None, None),
    ],
)
def test_by_words(shown: Callable[..., Answer], text: str, recall: float | None, precision: float | None) -> None:
    answer = shown(text, [ELBE, HAMBURG, BREAD], cites=[1, 2, 3] if "[" in text else [])
    assert score(answer, Target(""), Config(measure="recall")).value == recall
    assert score(answer, Target(""), Config(measure="precision")).value == precision


def test_gold(shown: Callable[..., Answer]) -> None:
    target = Target("1833", meta={"source": "2.txt"})
    passages = [ELBE, HAMBURG, BREAD]
    assert score(shown("In 1833 [2].", passages, [2]), target, Config(measure="gold")).value == 1.0
    assert score(shown("In 1833 [1].", passages, [1]), target, Config(measure="gold")).value == 0.0
    assert score(shown("In 1833.", passages), target, Config(measure="gold")).value == 0.0
    assert score(shown("不知道", passages), target, Config(measure="gold")).value is None
    unanswerable = Target("", meta={"answers": []})
    assert score(shown("In 1833 [2].", passages, [2]), unanswerable, Config(measure="gold")).value is None


def test_chinese(shown: Callable[..., Answer]) -> None:
    answer = shown("长江是最长的河流[1]。黄河在北方[1]。", ["长江是亚洲最长的河流。", "黄河在北方。"], [1])
    assert score(answer, Target(""), Config()).value == 0.5


@pytest.mark.usefixtures("home")
def test_a_judge_decides_and_an_unknown_one_is_refused(shown: Callable[..., Answer]) -> None:
    answer = shown("It is so [1].", [ELBE], [1])
    assert score(answer, Target(""), Config(judge="fake:Yes")).value in (0.0, 1.0)
    with pytest.raises(NotFoundError, match="nobody"):
        score(answer, Target(""), Config(judge="nobody"))
