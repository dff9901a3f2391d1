from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.errors import NotFoundError
from luthier.tasks._describe import benchmarks, describe, question
from luthier.tasks._load import load_task


def test_a_benchmark_in_words() -> None:
    told = describe("hellaswag")
    assert told.summary.startswith("HellaSwag: ") and told.about.startswith(told.summary)
    assert (told.kind, told.shots, told.part, told.pool) == ("choice", 0, "validation", "train")
    assert told.scorers == ("multiple_choice", "multiple_choice (characters)")
    assert {"data", "shots", "chat"} <= {option.key for option in told.options}
    assert describe("gsm8k").shots == 5 and describe("gsm8k").scorers == (
        "regex as strict_match",
        "regex as flexible_extract",
    )
    assert "own" not in benchmarks()


def test_every_option_is_explained_somewhere() -> None:
    for name in benchmarks():
        told = describe(name)
        for option in told.options:
            text = told.about + told.options_about
            assert option.meaning or f"``{option.key}``" in text or option.key in ("max_new_tokens", "temperature"), (
                name,
                option.key,
            )


def test_an_unknown_name() -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'mmlu'"):
        describe("mmllu")
    with pytest.raises(NotFoundError):
        describe("own")


def test_one_question_as_the_engine_sees_it(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, "winogrande")
    example, asked = question(load_task("winogrande", [f"data={folder}"]))
    assert asked == example.raw and len(asked) == 2
    _, turns = question(load_task("winogrande", [f"data={folder}", "chat=true"]))
    assert len(turns) == 1 and turns[0].startswith("user: Ann gave")
