from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from luthier.core import catalog
from luthier.scorers._score import Answer, Figure, Target

GOLD = {
    "entities": [{"type": "P", "text": "Ada", "start": 0, "end": 3}, {"type": "L", "text": "Bonn"}],
    "relations": [{"type": "in", "head": "Ada", "tail": "Bonn"}],
    "events": [{"type": "move", "trigger": "moved", "arguments": [{"role": "to", "text": "Bonn"}]}],
}


def figure(answers: list[Any], targets: list[Any], **options: str) -> float:
    entry = catalog.load("scorers", "extraction_f1")
    config = entry.configure(options)
    given = [Answer(a if isinstance(a, str) else json.dumps(a)) for a in answers]
    wanted = [Target(json.dumps(t)) for t in targets]
    return Figure(entry, config, given, wanted, [None] * len(given)).value


def changed(**parts: Any) -> dict[str, Any]:
    return {**GOLD, **parts}


def test_each_kind_is_counted_to_the_letter() -> None:
    assert figure([GOLD], [GOLD]) == 1.0
    other = changed(
        entities=[
            {"type": "P", "text": "ada"},
            {"label": "L", "text": " Bonn "},
        ],  # case matters, white space around does not
        relations=[{"type": "in", "head": "Bonn", "tail": "Ada"}],
        events=[
            {
                "type": "move",
                "trigger": "went",
                "arguments": [{"role": "to", "text": "Bonn"}, {"role": "to", "text": "Bonn"}],
            }
        ],
    )
    assert figure([other], [GOLD], of="entities") == pytest.approx(2 * 1 / (2 + 2))
    assert figure([other], [GOLD], of="relations") == 0.0
    assert figure([other], [GOLD], of="triggers") == 0.0
    assert figure([other], [GOLD], of="arguments") == 1.0  # said twice, counted once
    assert figure([other], [GOLD]) == pytest.approx(2 * 2 / (5 + 5))


def test_micro_and_macro_over_a_set() -> None:
    entry = catalog.load("scorers", "extraction_f1")
    targets = [GOLD, changed(entities=[{"type": "P", "text": "Bob"}], relations=[], events=[])]
    answers = [GOLD, {"entities": [{"type": "P", "text": "Eve"}]}]
    assert figure(answers, targets, of="entities") == pytest.approx(2 * 2 / (3 + 3))
    assert figure(answers, targets, of="entities", average="macro") == pytest.approx((2 * 1 / (2 + 2) + 1) / 2)
    config = entry.configure({"of": "entities"})
    found = Figure(
        entry, config, [Answer(json.dumps(a)) for a in answers], [Target(json.dumps(t)) for t in targets], [1, 0]
    )
    assert found(np.array([[1, 0], [0, 2]], dtype=np.float32)) == pytest.approx([1.0, 0.0])


def test_answers_between_words_and_answers_that_are_none() -> None:
    assert figure([f"Sure!\n```json\n{json.dumps(GOLD)}\n```"], [GOLD]) == 1.0
    assert figure([GOLD["entities"]], [GOLD], of="entities") == 1.0  # a bare list, as a tagger answers
    entry = catalog.load("scorers", "extraction_f1")
    for said in ("I cannot.", '{"entities": [', '{"entities": 3, "events": [null, {"type": 1}]}'):
        assert entry(Answer(said), Target(json.dumps(GOLD)), entry.configure()).value == 0.0
    assert entry(Answer("I cannot."), Target('{"entities": []}'), entry.configure()).value == 1.0
