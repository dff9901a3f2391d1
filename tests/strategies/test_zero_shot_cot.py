from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.dataset import Example
from luthier.core.engine import Sampling
from luthier.core.errors import InputError, NotFoundError
from luthier.core.message import Message, user
from luthier.data.prompts import save_prompt
from luthier.strategies.zero_shot_cot import Config, prepare, wrap

ASKED = Sampling(max_new_tokens=9, stop=(".",))


def test_two_calls_the_second_with_the_thoughts(home: Path, spy: Any) -> None:
    inner = spy(answers={"step by step": "3 and 4 make 7", "Therefore": "It is 7 eggs. Yes."})
    (answer,) = wrap(inner, Config(answer="number", thought_tokens=50)).generate([user("How many eggs?")], ASKED)
    question = "How many eggs?\n\nLet's think step by step."
    assert inner.asked[0] == user(question)
    assert inner.asked[1] == (
        Message("user", question),
        Message("assistant", "3 and 4 make 7"),
        Message("user", "Therefore, what is the answer? Reply with the number only."),
    )
    assert inner.samplings == [Sampling(max_new_tokens=50), Sampling(max_new_tokens=9)]
    assert (answer.text, answer.reasoning, answer.calls) == ("7", "3 and 4 make 7", 2)


def test_a_chinese_question_is_asked_in_chinese(home: Path, spy: Any) -> None:
    inner = spy(answers={"一步一步": "三加四是七", "因此": "答案是7个"})
    config = prepare(Config(), [Example("1", user("x"), "12"), Example("2", user("y"), "1,000")])
    assert config.answer == "number"
    (answer,) = wrap(inner, config).generate([user("小明一共有多少个苹果？")], ASKED)
    assert inner.asked[0] == user("小明一共有多少个苹果？\n\n让我们一步一步地思考。")
    assert inner.asked[1][-1].content == "因此，答案是什么？只回答数字。"
    assert answer.text == "7"


def test_labels_are_named_and_found(home: Path, spy: Any) -> None:
    inner = spy(answers={"step by step": "money", "Therefore": "I would say Billing"})
    config = prepare(Config(prompt={"instruction": "One of {labels}", "labels": ["billing", "delivery"]}), [])
    (answer,) = wrap(inner, config).generate([user("charged twice")], Sampling())
    assert inner.asked[0][0] == Message("system", "One of billing, delivery")
    assert "one of these labels: billing, delivery" in inner.asked[1][-1].content
    assert answer.text == "billing"


def test_an_own_trigger_travels_in_the_config(home: Path, spy: Any) -> None:
    kept = save_prompt("carefully", {"about": "x", "text": "Take care {not a place}."})
    config = prepare(Config(trigger="carefully"), [])
    (home / "prompts" / "carefully@1.yaml").unlink()
    inner = spy()
    wrap(inner, config).generate([user("q")], ASKED)
    assert inner.asked[0] == user("q\n\nTake care {not a place}.")
    assert config.texts["trigger"]["source"] == f"carefully@1 sha256:{kept.digest}"
    assert config.texts["final_zh"]["source"].startswith("final_answer_zh@1 ")


def test_what_decides_an_answer_is_in_the_digest(home: Path, spy: Any) -> None:
    save_prompt("carefully", {"about": "x", "text": "Take care."})
    configs = [
        Config(),
        Config(trigger="carefully"),
        Config(thought_tokens=7),
        Config(answer="number"),
        Config(prompt={"instruction": "x"}),
    ]
    digests = [wrap(spy(), config).info.prompt_digest for config in configs]
    assert len(set(digests)) == len(configs)
    assert wrap(spy(), Config()).info.prompt_digest == digests[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"trigger": "nothing_like_it"}, NotFoundError, "not in the catalogue"),
        ({"trigger": "classify"}, InputError, "is a prompt for a task"),
        ({"template": "step_by_step"}, InputError, "is a piece of text"),
        ({"prompt": {"inputs": "x"}}, InputError, "Did you mean 'input'"),
    ],
)
def test_bad_input(home: Path, spy: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    for call in (lambda c: prepare(c, []), lambda c: wrap(spy(), c)):
        with pytest.raises(error, match=message):
            call(Config(**options))
