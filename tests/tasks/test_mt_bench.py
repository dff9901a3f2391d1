from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError, InputError
from luthier.core.message import Conversation, Message
from luthier.core.run import no_progress
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation.evaluate import evaluate
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "mt_bench"


def test_each_turn_is_an_example_of_its_own(tmp_path: Path) -> None:
    one, both, math, math_both = asked(tmp_path)
    assert one.messages == both.messages == (Message("user", "Write a line about rain."),)
    assert one.raw == () and "then" not in one.meta
    assert both.meta["then"] == ["Now make it rhyme."]
    assert (one.meta["turn"], both.meta["turn"], one.meta["category"]) == ("1", "2", "writing")
    assert (one.target, math.target) == ("", "4")
    assert math_both.target == "4\n\nUser: Double it.\n\nAssistant: 8"


def test_the_second_question_follows_the_models_own_answer(tmp_path: Path, home: Path) -> None:
    task = load_task(NAME, [f"data={rows.write(tmp_path, NAME)}", "judge=fake:7"])
    heard: list[Conversation] = []

    class Listening(FakeEngine):
        def generate(self, prompts, sampling, progress=no_progress):  # type: ignore[no-untyped-def]
            heard.extend(prompts)
            return super().generate(prompts, sampling, progress)

    answers = {"Write a line": "Rain falls.", "rhyme": "Rain falls on walls.", "2+2": "4", "Double": "8"}
    result = evaluate(Listening("listening", Config(answers=answers)), task)
    turns = [[m.content for m in talk] for talk in heard if len(talk) == 3]
    assert ["Write a line about rain.", "Rain falls.", "Now make it rhyme."] in turns
    said = {(r.input[:5], r.slices["turn"]): r.answer for r in result.records}
    assert said["Write", "1"] == "Rain falls."
    assert said["Write", "2"] == "Rain falls.\n\nUser: Now make it rhyme.\n\nAssistant: Rain falls on walls."
    assert {r.calls for r in result.records if r.slices["turn"] == "2"} == {2}
    assert result.scores["judge"]["value"] == 7.0


def test_references_lie_beside_in_either_form(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, NAME)
    (folder / "reference_gpt4.jsonl").write_text('{"question_id": 1, "turns": ["Drip.", "Drip drop."]}\n')
    assert asked(folder)[0].target == "Drip."
    (folder / "reference_gpt4.jsonl").write_text('{"question_id": 1, "choices": [{"turns": ["Wet.", "Wet set."]}]}\n')
    assert asked(folder)[0].target == "Wet."


def test_what_it_needs(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, NAME)
    with pytest.raises(InputError, match="mt_bench needs judge"):
        load_task(NAME, [f"data={folder}"])
    assert len(asked(folder, "limit=1")) == 2
    (folder / "questions.jsonl").write_text('{"question_id": 1, "category": "x", "turns": ["only one"]}\n')
    with pytest.raises(DataError, match="turns must hold 2; got 1"):
        load_task(NAME, [f"data={folder}", "judge=fake"])
