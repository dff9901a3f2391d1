"""Every benchmark of the catalogue goes through the same checks: it builds, says where it is from, is scored, and can be asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core import catalog
from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.loop import scorers_of
from luthier.tasks._describe import benchmarks, describe
from luthier.tasks._load import load_task
from luthier.tasks._source import Source

NAMES = benchmarks()
WITH_CHAT = [n for n in NAMES if "chat" in catalog.load("tasks", n).config_class.model_fields]
WITH_SHOTS = [n for n in NAMES if "shots" in catalog.load("tasks", n).config_class.model_fields]


def test_the_catalogue_is_whole() -> None:
    wanted = (
        "mmlu cmmlu ceval arc hellaswag piqa boolq winogrande openbookqa truthfulqa lambada wikitext gsm8k humaneval mbpp squad glue "
        "ifeval needle mt_bench spider"
    )
    assert set(wanted.split()) <= set(NAMES)
    assert set(rows.FILES) == set(NAMES) - {"needle"}


@pytest.mark.parametrize("name", NAMES)
def test_it_states_prompt_shots_scorer_and_source(name: str) -> None:
    entry = catalog.load("tasks", name)
    assert isinstance(entry.module.SOURCE, Source)
    told = describe(name)
    assert "Prompt" in told.about and "Scorer" in told.about
    assert told.paper and told.licence and told.fields
    assert told.kind in ("choice", "generate", "likelihood")
    assert (
        "shots" not in entry.config_class.model_fields
        or "worked example" in told.about + told.options_about
        or told.shots
    )


@pytest.mark.parametrize("name", NAMES)
def test_its_config_is_small_and_survives_its_plain_form(name: str, tmp_path: Path) -> None:
    entry = catalog.load("tasks", name)
    assert len(entry.config_class.model_fields) <= 15
    plain = entry.configure({}).model_dump(mode="json")
    assert entry.configure(plain).model_dump(mode="json") == plain


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_from_its_files_and_the_same_each_time(name: str, tmp_path: Path) -> None:
    told = rows.options(rows.write(tmp_path, name), name)
    task, again = load_task(name, told), load_task(name, told)
    assert task.digest == again.digest
    assert task.source and len({e.id for e in task.examples("test")}) == len(task.examples("test")) > 0
    for example in task.examples("test"):
        assert example.target is not None and example.source and example.text
        if task.kind == "choice":
            assert example.correct and example.target == example.choices[example.correct[0]]
            assert len(example.raw) in (1, len(example.choices))
    assert all(key in e.meta for e in task.examples("test") for key in task.slices)


@pytest.mark.parametrize("name", NAMES)
def test_its_scorers_are_in_the_catalogue_and_have_names_of_their_own(name: str, tmp_path: Path) -> None:
    task = load_task(name, rows.options(rows.write(tmp_path, name), name))
    labels = [scorer.label for scorer in scorers_of(task)]
    assert labels and len(set(labels)) == len(labels) and max(map(len, labels)) < 60


@pytest.mark.parametrize("name", NAMES)
def test_a_model_can_be_asked(name: str, home: Path, tmp_path: Path) -> None:
    task = load_task(name, rows.options(rows.write(tmp_path, name), name))
    result = evaluate("fake", task)
    assert len(result.records) == len(task.examples("test"))
    assert not [record.error for record in result.records if record.error]
    primary = scorers_of(task)[0].label
    assert primary in result.scores


@pytest.mark.parametrize("name", WITH_CHAT)
def test_with_chat_the_question_is_the_last_turn_and_nothing_is_raw(name: str, tmp_path: Path) -> None:
    told = rows.options(rows.write(tmp_path, name), name)
    task = load_task(name, [*told, "chat=true"])
    plain = load_task(name, told)
    for example in task.examples("test"):
        assert example.raw == () and example.messages[-1].role == "user"
        assert all(choice == choice.strip() for choice in example.choices)
    assert task.stop == () and task.digest != plain.digest


@pytest.mark.parametrize("name", WITH_SHOTS)
def test_worked_examples_change_the_prompt_and_the_digest(name: str, tmp_path: Path) -> None:
    told = [each for each in rows.options(rows.write(tmp_path, name), name) if not each.startswith("shots=")]
    none, one = load_task(name, [*told, "shots=0"]), load_task(name, [*told, "shots=1"])
    assert none.digest != one.digest
    for bare, shown in zip(none.examples("test"), one.examples("test"), strict=True):
        assert all(len(after) > len(before) for before, after in zip(bare.raw, shown.raw, strict=True))
        assert bare.target == shown.target


@pytest.mark.parametrize("name", [n for n in NAMES if n != "needle"])
def test_without_data_it_says_what_it_needs(name: str) -> None:
    from luthier.core.errors import InputError

    with pytest.raises(InputError, match=f"{name}.* needs data"):
        load_task(name)
