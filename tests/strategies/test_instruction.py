from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.engine import Sampling
from luthier.core.errors import InputError
from luthier.core.message import Message, user
from luthier.data.prompts import save_prompt
from luthier.strategies.instruction import Config, prepare, wrap

PROMPT = {"instruction": "Sort into {labels}.", "labels": ["billing", "delivery"]}


def asked(spy: Any, config: Config, text: str = "q") -> tuple[Message, ...]:
    inner = spy()
    wrap(inner, config).generate([user(text)], Sampling())
    return inner.asked[0]  # type: ignore[no-any-return]


def test_every_part_has_its_place(home: Path, spy: Any) -> None:
    config = Config(
        prompt=PROMPT, role="a clerk", descriptions={"billing": "money {labels}"}, output="one word, lower case."
    )
    assert asked(spy, config)[0].content == (
        "You are a clerk.\n\nTask: Sort into billing, delivery.\n\nLabels:\n- billing: money billing, delivery\n- delivery"
        "\n\nOutput: one word, lower case."
    )


def test_what_is_left_out_has_a_default(home: Path, spy: Any) -> None:
    labelled = asked(spy, Config(prompt=PROMPT))[0].content
    assert "careful annotator" in labelled
    assert "one of the labels, spelled as in the list" in labelled
    free = asked(spy, Config())[0].content
    assert "Labels" not in free
    assert free.endswith("Task: Answer the question.\n\nOutput: the answer alone, without an explanation.")


def test_a_chinese_task_is_put_in_chinese(home: Path, spy: Any) -> None:
    config = Config(
        prompt={"instruction": "判断这条评论的情感。", "labels": ["正面", "负面"]}, descriptions={"正面": "满意"}
    )
    assert asked(spy, config, "房间很干净")[0].content == (
        "你是一位认真的标注员。\n\n任务：判断这条评论的情感。\n\n标签：\n- 正面：满意\n- 负面\n\n"
        "输出：只写一个标签，写法与列表一致，不要其他内容。"
    )


def test_an_own_template_travels_in_the_config(home: Path, spy: Any) -> None:
    save_prompt(
        "brief",
        {"about": "x", "instruction": "{task} As {role}.", "input": "> {input}", "placeholders": ["task", "role"]},
    )
    own = {**PROMPT, "input": "Mail: {input}"}
    config = prepare(Config(prompt=own, template="brief", role="a clerk"), [])
    (home / "prompts" / "brief@1.yaml").unlink()
    again = Config.model_validate_json(config.model_dump_json())
    assert again == config == prepare(config, [])
    turns = asked(spy, again)
    assert turns == (Message("system", "Sort into billing, delivery. As a clerk."), Message("user", "> Mail: q"))
    assert config.prompt["source"].startswith("brief@1 sha256:")
    assert config.prompt["labels"] == ["billing", "delivery"]


def test_bad_input(home: Path, spy: Any) -> None:
    with pytest.raises(InputError, match=r"'biling' is not a label\. Did you mean 'billing'"):
        wrap(spy(), Config(prompt=PROMPT, descriptions={"biling": "x"}))
    with pytest.raises(InputError, match=r"instruction\.role has no place in template classify@1"):
        wrap(spy(), Config(prompt=PROMPT, template="classify", role="a clerk"))
    with pytest.raises(InputError, match="is a piece of text"):
        prepare(Config(prompt=PROMPT, template="step_by_step"), [])
