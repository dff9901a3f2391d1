from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.message import Message
from luthier.evaluation.evaluate import evaluate
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "winogrande"


def test_one_prompt_for_each_choice_and_the_rest_is_scored(tmp_path: Path) -> None:
    second = asked(tmp_path)[1]
    assert second.raw == ("Ann gave Bea 1 pears because Ann", "Ann gave Bea 1 pears because Bea")
    assert (second.choices, second.correct) == ((" was hungry.", " was hungry."), (1,))


def test_worked_examples_are_whole_sentences(tmp_path: Path) -> None:
    first = asked(tmp_path, "shots=1")[0]
    shown = {raw.partition("\n\n")[0] for raw in first.raw}
    assert len(shown) == 1 and next(iter(shown)).endswith(" was hungry.")
    assert first.raw[0].endswith("\n\nAnn gave Bea 0 pears because Ann")


def test_in_a_turn_the_names_are_asked_for(tmp_path: Path) -> None:
    first = asked(tmp_path, "chat=true")[0]
    assert first.messages[-1] == Message(
        "user",
        "Ann gave Bea 0 pears because _ was hungry.\nWhich fits the blank, Ann or Bea? Answer with the name only.",
    )
    assert first.choices == ("Ann", "Bea") and first.target == "Ann"


def test_a_sentence_without_a_blank(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text('{"sentence": "none", "option1": "a", "option2": "b", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"v\.jsonl:1: sentence has no blank"):
        load_task(NAME, [f"data={tmp_path}/v.jsonl"])


def test_a_strategy_cannot_tell_the_choices_apart_and_says_so(tmp_path: Path, home: Path) -> None:
    folder = rows.write(tmp_path, NAME)
    with pytest.raises(UnsupportedError, match="a prompt of its own for each choice"):
        evaluate("fake", load_task(NAME, [f"data={folder}"]), strategy="zero_shot")
    result = evaluate("fake", load_task(NAME, [f"data={folder}", "chat=true"]), strategy="zero_shot")
    assert len(result.records) == 3
