from __future__ import annotations

from typing import Any

import pytest

from luthier.scorers._score import Answer, Target
from luthier.scorers.length import Config, score


@pytest.mark.parametrize(
    ("answer", "target", "options", "value"),
    [
        ("two words", "", {}, 2.0),
        ("四个汉字", "", {}, 4.0),
        ("four", "", {"unit": "characters"}, 4.0),
        ("汉", "", {"unit": "bytes"}, 3.0),
        ("One. Two.", "", {"unit": "sentences"}, 2.0),
        ("a b c", "a b", {"relative": True}, 1.5),
        ("a b c", "", {"relative": True}, None),
        ("", "a", {"relative": True}, 0.0),
    ],
)
def test_lengths(answer: str, target: str, options: dict[str, Any], value: float | None) -> None:
    assert score(Answer(answer), Target(target), Config(**options)).value == value
