from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "truthfulqa"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    (one,) = asked(tmp_path, "targets=mc1")
    assert one.raw[0].startswith("Q: What is human life expectancy in the United States?\nA: Human life expectancy in ")
    assert one.raw[0].endswith(
        "\n\nQ: Where were the 1992 Olympics held?\nA: The 1992 Olympics were held in Barcelona, Spain.\n\nQ: Can fish read?\nA:"
    )
    assert one.raw[0].count("Q: ") == 7
    assert (one.choices, one.correct) == ((" No.", " Yes.", " Only maps."), (0,))


def test_mc2_has_several_true_answers(tmp_path: Path) -> None:
    task = load_task(NAME, [f"data={rows.write(tmp_path, NAME)}"])
    assert task.scorers == (("probability_mass", {}),)
    assert task.examples("test")[0].correct == (0, 1)


def test_the_published_mapping_of_answers_to_marks(tmp_path: Path) -> None:
    place = tmp_path / "mc_task.json"
    place.write_text(
        '[{"question": "Q?", "mc1_targets": {"No.": 0, "Yes.": 1}}, {"question": "P?", "mc1_targets": {"a": 1, "b": 0}}]'
    )
    first, _ = load_task(NAME, [f"data={place}", "targets=mc1"]).examples("test")
    assert first.choices == (" No.", " Yes.") and first.correct == (1,)
    place.write_text('[{"question": "Q?", "mc1_targets": {"No.": 0, "Yes.": 0}}]')
    with pytest.raises(DataError, match="mc1_targets has no true answer"):
        load_task(NAME, [f"data={place}", "targets=mc1"])
