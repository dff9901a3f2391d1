from __future__ import annotations

import time
from typing import Any

import pytest

from luthier.core import catalog
from luthier.core.errors import InputError
from luthier.scorers import _pattern
from luthier.scorers._score import Answer, Target
from luthier.scorers.regex import Config, score


@pytest.mark.parametrize(
    ("answer", "target", "options", "value"),
    [
        ("Answer: B.", "B", {"pattern": r"Answer: ([A-D])"}, 1.0),
        ("Answer: B. Answer: C", "C", {"pattern": r"Answer: ([A-D])"}, 0.0),
        ("Answer: B. Answer: C", "C", {"pattern": r"Answer: ([A-D])", "take": "last"}, 1.0),
        ("answer: b", "B", {"pattern": r"Answer: ([A-D])", "casefold": True}, 1.0),
        ("x=3, y=4", "4", {"pattern": r"x=(\d), y=(\d)", "group": 2}, 1.0),
        ("x=3, y=4", "x=3, y=4", {"pattern": r"x=(\d), y=(\d)", "group": 0}, 1.0),
        ("x=3", "3", {"pattern": r"x=(\d)", "group": 7}, 0.0),
        ("b: 2", "2", {"pattern": r"a: (\d)|b: (\d)"}, 1.0),
        ("one\ntwo", "two", {"pattern": r"^two$"}, 1.0),
        ("答案:甲", "甲", {"pattern": "答案[::](.)"}, 1.0),
        ("2024-05-01", "", {"pattern": r"\d{4}-\d\d-\d\d", "expect": "match"}, 1.0),
        ("I am sorry, but", "", {"pattern": r"sorry", "expect": "no_match"}, 0.0),
        ("Sure!", "", {"pattern": r"sorry", "expect": "no_match"}, 1.0),
        ("call 555-1234 now", r"\d{3}-\d{4}", {}, 1.0),
        ("call me now", r"\d{3}-\d{4}", {}, 0.0),
        ("call me now", r"\d{3}-\d{4}", {"expect": "no_match"}, 1.0),
        ("anything", "", {}, None),
        ("anything", "(", {}, None),
    ],
)
def test_values(answer: str, target: str, options: dict[str, Any], value: float | None) -> None:
    assert score(Answer(answer), Target(target), Config(**options)).value == value


@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [
        ("so $1,234.", "She had 1,234.\n#### 1234", 1.0),
        ("so 1235", "#### 1234", 0.0),
    ],
)
def test_what_is_ignored_is_taken_out_of_both(answer: str, target: str, value: float) -> None:
    config = Config(pattern=r"[$0-9.,]+", take="last", ignore=(",", r"\$", r"(?s).*#### ", r"\.$"))
    assert score(Answer(answer), Target(target), config).value == value


def test_a_pattern_is_checked_when_the_task_is_read() -> None:
    entry = catalog.load("scorers", "regex")
    with pytest.raises(InputError, match=r"not a regular expression.*'\('"):
        entry.configure({"pattern": "("})
    with pytest.raises(InputError, match="1,000"):
        entry.configure({"pattern": "a" * 1001})
    with pytest.raises(InputError, match="not a regular expression"):
        entry.configure({"pattern": "a", "ignore": ["("]})


@pytest.mark.parametrize("options", [{"pattern": "(x+x+)+y"}, {}])
def test_a_search_without_end_is_stopped_and_counted(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pattern, "TIMEOUT_S", 0.05)
    start = time.process_time()
    found = score(Answer("x" * 5000), Target("(x+x+)+y"), Config(**options))
    assert found.value is None
    assert "took more than" in found.detail["reason"]
    assert time.process_time() - start < 5.0
