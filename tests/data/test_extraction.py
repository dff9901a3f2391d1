from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError
from luthier.data.extraction import (
    answer,
    content,
    conversations,
    instruction,
    instruction_for,
    schema_of,
)
from luthier.data.instructions import language_of
from luthier.data.read import examples_from_rows, read, write

MOVE = {
    "type": "move",
    "trigger": "moved",
    "arguments": [{"role": "who", "text": "Ada"}, {"role": "to", "text": "Bonn"}],
}
ENTITIES: list[dict[str, Any]] = [
    {
        "text": "Ada met Bob",
        "entities": [{"type": "PERSON", "start": 0, "end": 3}, {"type": "PERSON", "start": 8, "end": 11}],
    },
    {"text": "in Bonn", "entities": [{"type": "PLACE", "start": 3, "end": 7}]},
    {"text": "nothing", "entities": []},
]
EVENTS: list[dict[str, Any]] = [
    {"text": "Ada moved to Bonn", "events": [MOVE], "relations": [{"type": "lives in", "head": "Ada", "tail": "Bonn"}]},
    {"text": "Bob sleeps", "events": [], "relations": []},
]


def of(rows: list[dict[str, Any]]) -> Dataset:
    return examples_from_rows((("a.jsonl", n, row) for n, row in enumerate(rows, 1)), name="a")


def test_entities_as_an_instruction_and_an_answer() -> None:
    data = of(ENTITIES)
    assert instruction_for(data).splitlines() == [
        "Extract what the text says. Answer with JSON only, in this form:",
        '{"entities": [{"type": ..., "text": ...}]}',
        "Types of entities: PERSON, PLACE",
        "Copy texts to the letter, in the order in which they stand. A list is empty where the text has nothing for it.",
    ]
    first = {"entities": [{"type": "PERSON", "text": "Ada"}, {"type": "PERSON", "text": "Bob"}]}
    assert json.loads(answer(data.examples[0])) == first == content(data.examples[0])
    assert answer(data.examples[2]) == '{"entities": []}'


def test_relations_and_events() -> None:
    data = of(EVENTS)
    lines = instruction_for(data).splitlines()
    assert lines[1].startswith('{"relations": [{"type": ..., "head": ..., "tail": ...}], "events": [')
    assert lines[2:4] == [
        "Types of relations, from head to tail: lives in",
        "Types of events, with the roles of their arguments: move (to, who)",
    ]
    assert json.loads(answer(data.examples[0]))["events"] == [MOVE]


def test_chinese_texts_have_a_chinese_instruction() -> None:
    data = of([{"text": "张三在北京工作", "entities": [{"type": "地点", "start": 3, "end": 5}]}])
    assert language_of(example.text for example in data.examples) == "zh"
    assert instruction_for(data).splitlines()[2] == "实体类型:地点"
    assert instruction(schema_of(of(EVENTS).examples), "zh").splitlines()[3] == "事件类型及其论元角色:move(to、who)"


def test_conversations(tmp_path: Any) -> None:
    data = of(ENTITIES)
    chats = conversations(data)
    assert (
        chats.kind == "chat"
        and [[m.role for m in e.messages] for e in chats.examples] == [["system", "user", "assistant"]] * 3
    )
    assert {e.messages[0].content for e in chats.examples} == {instruction_for(data)}
    again = read(write(chats, tmp_path / "rows.jsonl"))
    assert [e.id for e in again.examples] == [e.id for e in chats.examples]


def test_negative_types_are_drawn_by_row_and_seed() -> None:
    rows = [{"text": f"word {n}", "entities": [{"type": f"T{n}", "start": 0, "end": 4}]} for n in range(8)]
    drawn = []
    for seed in (0, 0, 1):
        chats = conversations(of(rows), negatives=2, seed=seed)
        lists = [e.messages[0].content.splitlines()[2].partition(": ")[2].split(", ") for e in chats.examples]
        for n, (types, chat) in enumerate(zip(lists, chats.examples, strict=True)):
            assert f"T{n}" in types and len(types) == 3
            assert json.loads(chat.messages[-1].content)["entities"] == [{"type": f"T{n}", "text": "word"}]
        drawn.append(lists)
    assert drawn[0] == drawn[1] != drawn[2]
    alone = conversations(of(ENTITIES), negatives=0)
    assert alone.examples[2].messages[0].content.splitlines()[2] == "Types of entities: -"


def test_bad_input() -> None:
    with pytest.raises(InputError, match="rows of kind entities or extraction; a is text"):
        conversations(of([{"text": "abc"}]))
    with pytest.raises(InputError, match="negatives must be at least 0; got -1"):
        conversations(of(ENTITIES), negatives=-1)
    with pytest.raises(DataError, match="nothing to extract"):
        conversations(of(ENTITIES[2:]))
