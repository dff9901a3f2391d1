from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.scorers import _programs
from luthier.scorers._programs import extract_code
from luthier.scorers._score import Answer, Resources, Target
from luthier.scorers.code import Config, score, score_many

PROMPT = 'from typing import List\n\ndef helper(x):\n    return x + 1\n\ndef add(a: int, b: int) -> int:\n    """Add a and b."""\n'
TEST = "\nMETADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"
HUMANEVAL = {"task_id": "Own/0", "prompt": PROMPT, "test": TEST, "entry_point": "add"}
MBPP: dict[str, Any] = {
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == zero"],
    "test_setup_code": "zero = 0",
}


def value(text: str, meta: dict[str, Any] = HUMANEVAL) -> float | None:
    return score(Answer(text), Target("", meta=meta), Config(timeout_s=1)).value


@pytest.mark.parametrize(
    "answer",
    [
        "    return a + b\n",
        "    return helper(a) + b - 1\n",
        "\n    return a + b",
        "def add(a, b):\n    return a + b\n",
        "def add(a, b):\n    return helper(a) + b - 1\n",
        "Here it is:\n```python\ndef add(a: int, b: int) -> int:\n    return a + b\n```\nand it is used so:\n```python\nadd('x', 1)\n```",
        "Use:\n```\nprint(add)\n```\nThe function:\n```py\nasync_ = 1\ndef add(a, b):\n    return a + b\n```",
        "```python\ndef add(a, b):\n    return a + b",
        "~~~python\n    return a + b\n~~~",
        "<think>First:\n```python\ndef add(a, b): return a\n```\nno.</think>\n```python\ndef add(a, b): return a + b\n```",
    ],
)
def test_completions_and_whole_functions_pass(answer: str) -> None:
    assert value(answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "    return a - b\n",
        "",
        "    pass\n",
        "I cannot do that.",
        "    return a +",
        "    import os; os._exit(0)\n",
        "    while True: pass\n",
    ],
)
def test_wrong_broken_and_hanging_programs_do_not(answer: str) -> None:
    assert value(answer) == 0.0


def test_an_indented_completion_is_taken_to_the_letter_also_with_a_stray_fence() -> None:
    text = "    return a + b\n```\nThat is all.\n"
    assert extract_code(text, "add") == text
    assert value(text) == 0.0  # as human-eval scores it


def test_fences_can_be_left_alone() -> None:
    answer, target = Answer("```python\ndef add(a, b): return a + b\n```"), Target("", meta=HUMANEVAL)
    assert score(answer, target, Config(fences=False)).value == 0.0


def test_assert_lists_and_plain_tests() -> None:
    assert value("def add(a, b):\n    return a + b", MBPP) == 1.0
    assert value("def add(a, b):\n    return 3", MBPP) == 0.0
    assert value("def add(a, b): return a + b", {"test_list": '["assert add(1, 1) == 2"]'}) == 1.0
    assert value("def add(a, b): return a + b", {"test": "assert add(1, 1) == 2"}) == 1.0
    assert value("def add(a, b): return a + b", {"test": "assert add(1, 1) == 3"}) == 0.0


def test_the_value_is_the_share_of_samples_and_the_detail_says_why() -> None:
    answer = Answer("", samples=("    return a + b", "    return a", "    return b", "    return b"))
    got = score(answer, Target("", meta=HUMANEVAL), Config())
    assert got.value == 0.25
    assert got.detail["status"] == ["passed", "failed", "failed", "failed"]
    assert "AssertionError" in got.detail["reasons"][0]


def test_equal_programs_run_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = _programs.run_programs
    monkeypatch.setattr(
        _programs, "run_programs", lambda programs, *a, **k: sizes.append(len(programs)) or real(programs, *a, **k)
    )  # type: ignore[func-returns-value]
    resources = Resources()
    answers, targets = [Answer("    return a + b"), Answer("    return a + b")], [Target("", meta=HUMANEVAL)] * 2
    for _ in range(2):
        assert [s.value for s in score_many(answers, targets, Config(), resources)] == [1.0, 1.0]
    assert sizes == [1, 0]


def test_an_example_without_tests_is_named() -> None:
    with pytest.raises(DataError, match=r"Own/0.*meta\.entry_point"):
        value("", {"task_id": "Own/0", "test": TEST})
    with pytest.raises(DataError, match=r"What is 1\?.*test or test_list"):
        score(Answer(""), Target("", input="What is 1?"), Config())
