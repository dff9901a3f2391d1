from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from luthier.core.dataset import Example
from luthier.core.errors import DataError, InputError
from luthier.evaluation.evaluate import evaluate
from luthier.tasks._load import load_task

NAME = "needle"


def test_a_grid_of_positions_and_lengths(home: Path) -> None:
    task = load_task(NAME, ["lengths=[60, 120]", "positions=[0, 50, 100]", "repeats=2"])
    found = task.examples("test")
    cells = Counter((e.meta["position"], e.meta["length"]) for e in found)
    assert set(cells.values()) == {2} and len(cells) == 6
    assert task.slices == ("position", "length")
    for example in found:
        assert (
            0.6 * int(example.meta["length"].split()[0])
            <= len(context(example).split())
            <= int(example.meta["length"].split()[0])
        )
    result = evaluate("fake", task)
    assert {"0%", "50%", "100%"} == {record.slices["position"] for record in result.records}


def context(example: Example) -> str:
    return example.messages[-1].content.split("\n")[1]


@pytest.mark.parametrize("position", [0, 25, 50, 75, 100])
def test_the_needle_is_where_it_should_be(position: int) -> None:
    for example in load_task(NAME, ["lengths=[400]", f"positions=[{position}]", "repeats=5"]).examples("test"):
        text = context(example)
        needle = f"One of the special magic numbers for {example.meta['key']} is: {example.target}."
        assert text.count(needle) == 1
        assert 100 * text.index(needle) / (len(text) - len(needle)) == pytest.approx(position, abs=8)


def test_the_prompt_to_the_letter() -> None:
    (one,) = load_task(NAME, ["lengths=[20]", "positions=[0]", "repeats=1"]).examples("test")
    key = one.meta["key"]
    assert one.raw == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number "
        f"afterwards.\n{context(one)}\nWhat is the special magic number for {key} mentioned in the provided text? The special magic "
        f"number for {key} mentioned in the provided text is",
    )


def test_the_same_seed_the_same_needles_and_another_text(tmp_path: Path) -> None:
    told = ["lengths=[50]", "positions=[50]"]
    assert load_task(NAME, told).digest == load_task(NAME, told).digest != load_task(NAME, [*told, "seed=1"]).digest
    (tmp_path / "own.txt").write_text("海很大。山很高。" * 40, encoding="utf-8")
    (one, *_) = load_task(NAME, [f"data={tmp_path}/own.txt", *told]).examples("test")
    assert "海很大。" in context(one) and len(context(one)) < 140
    with pytest.raises(DataError, match="no such file"):
        load_task(NAME, [f"data={tmp_path}/nowhere.txt"])
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(DataError, match="the text is empty"):
        load_task(NAME, [f"data={tmp_path}/empty.txt"])
    with pytest.raises(InputError, match="positions"):
        load_task(NAME, ["positions=[101]"])
