from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.dataset import Example
from luthier.core.engine import Sampling
from luthier.core.errors import InputError
from luthier.core.message import Message, user
from luthier.data.reasons import answer_of, rationale_of
from luthier.strategies.chain_of_thought import Config, prepare, wrap

WORKED = "Janet sells 16 - 3 = <<16-3=13>>13 eggs.\nShe makes 13 * 2 = $<<13*2=26>>26.\n#### 26"
TRAIN = [Example(f"{i:02}", user(f"question {i}"), str(i), meta={"answer": f"Count {i}.\n#### {i}"}) for i in range(12)]


def test_the_reasoning_of_a_row_without_marks_and_answer() -> None:
    example = Example("1", user("q"), "26", meta={"answer": WORKED})
    assert rationale_of(example) == "Janet sells 16 - 3 = 13 eggs.\nShe makes 13 * 2 = $26."
    assert rationale_of(Example("1", user("q"), WORKED)) == rationale_of(example)
    assert (answer_of(Example("1", user("q"), WORKED)), answer_of(example)) == ("26", "26")
    assert rationale_of(Example("1", user("q"), "26", meta={"rationale": "because", "answer": WORKED})) == "because"
    assert rationale_of(Example("1", user("q"), "26", meta={"answer": "26"})) == ""
    assert rationale_of(Example("1", user("q"), "26", meta={"answer": "#### 26"})) == ""
    assert rationale_of(Example("1", user("q"), "26", meta={"answer": 26})) == ""


def test_rows_whose_target_is_worked_out(home: Path) -> None:
    config = prepare(Config(), [Example("1", user("How much?"), WORKED)])
    assert config.examples == (("How much?", "Janet sells 16 - 3 = 13 eggs.\nShe makes 13 * 2 = $26.", "26"),)
    assert config.answer == "number"


def test_examples_show_their_reasoning_before_their_answer(home: Path, spy: Any) -> None:
    config = prepare(Config(shots=2), TRAIN)
    assert (len(config.examples), config.answer, config.shots) == (2, "number", 2)
    inner = spy(answers={"new": "Count to 5. The answer is 5. Done"})
    (answer,) = wrap(inner, config).generate([user("new")], Sampling(max_new_tokens=8, stop=("\n",)))
    ((first, reply, *rest),) = inner.asked
    number = first.content.removeprefix("question ")
    assert reply == Message("assistant", f"Count {number}.\nThe answer is {number}.")
    assert rest[-1] == Message("user", "new")
    assert inner.samplings == [Sampling(max_new_tokens=520)]
    assert (answer.text, answer.reasoning, answer.calls) == ("5", "Count to 5. The answer is 5. Done", 1)


def test_all_questions_share_the_examples(home: Path, spy: Any) -> None:
    inner = spy()
    wrap(inner, prepare(Config(), TRAIN)).generate([user("one"), user("two")], Sampling())
    one, two = inner.asked
    assert len(one) == 2 * 8 + 1
    assert one[:-1] == two[:-1]


def test_without_examples_the_reasoning_is_asked_for(home: Path, spy: Any) -> None:
    inner = spy(answers={"一共": "三加四是七。\n答案是7"})
    engine = wrap(inner, prepare(Config(shots=0, answer="number"), []))
    answers = engine.generate([user("What is 3 + 4?"), user("一共有多少个？")], Sampling())
    assert inner.asked[0][-1].content.startswith("What is 3 + 4?\n\nReason step by step.")
    assert inner.asked[1][-1].content.startswith("一共有多少个？\n\n请先逐步推理")
    assert answers[1].text == "7"


def test_chinese_examples_end_in_chinese(home: Path, spy: Any) -> None:
    inner = spy()
    config = Config(examples=(("一共有多少个苹果？", "三加四是七。", "7"),))
    wrap(inner, config).generate([user("q")], Sampling())
    assert inner.asked[0][1].content == "三加四是七。\n答案是7。"


def test_the_choice_is_the_same_in_any_order_and_survives_json(home: Path) -> None:
    config = prepare(Config(shots=3), TRAIN)
    assert prepare(Config(shots=3), TRAIN[::-1]) == config
    assert prepare(Config(shots=3, seed=1), TRAIN) != config
    again = Config.model_validate_json(config.model_dump_json())
    assert prepare(again, []) == again == config


def test_labels_take_turns(home: Path) -> None:
    rows = [Example(str(i), user(f"t{i}"), "ab"[i > 1], meta={"rationale": f"r{i}"}) for i in range(10)]
    config = prepare(Config(prompt={"labels": ["a", "b"]}, shots=4), rows)
    assert sorted(answer for _, _, answer in config.examples) == ["a", "a", "b", "b"]
    assert config.answer == "label"


def test_bad_input(home: Path, spy: Any) -> None:
    bare = [Example("1", user("q"), "1")]
    with pytest.raises(InputError, match="no row of the train split has a rationale") as raised:
        prepare(Config(), bare)
    assert "zero_shot_cot" in str(raised.value)
    with pytest.raises(InputError, match="at most 12, the rows with reasoning; got 13"):
        prepare(Config(shots=13), TRAIN)
    with pytest.raises(InputError, match=r"shots is 2, and chain_of_thought\.examples holds 0"):
        wrap(spy(), Config(shots=2))
