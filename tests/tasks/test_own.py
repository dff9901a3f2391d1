from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.errors import DataError, InputError, NotFoundError, UnsupportedError
from luthier.engines.fake import Config as FakeConfig
from luthier.engines.fake import FakeEngine
from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.loop import scorers_of
from luthier.tasks._load import load_task
from luthier.tasks.own import (
    CLASSIFY_INSTRUCTION,
    LETTER_INSTRUCTION,
    Config,
    DataSection,
    build,
    read_config,
    read_task,
)

Write = Callable[..., Path]


def jsonl(path: Path, rows: list[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(count: int, labels: tuple[str, ...] = ("a", "b", "c"), start: int = 0) -> list[Mapping[str, object]]:
    return [{"text": f"row number {i}", "label": labels[i % len(labels)]} for i in range(start, start + count)]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes task.yaml; there are 60 labelled rows in rows.jsonl and 20 questions in questions.jsonl beside it."""
    jsonl(tmp_path / "rows.jsonl", labelled(60))
    questions = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(20)]
    jsonl(tmp_path / "questions.jsonl", questions)

    def _write(text: str) -> Path:
        path = tmp_path / "task.yaml"
        path.write_text(text)
        return path

    return _write


def test_two_lines_are_a_task(write: Write) -> None:
    task = read_task(write("name: mine\ndata: rows.jsonl\n"))
    assert (task.name, task.kind, task.labels) == ("mine", "classify", ("a", "b", "c"))
    assert task.prompt.instruction == CLASSIFY_INSTRUCTION
    assert task.scorers == (("macro_f1", {}), ("accuracy", {}))
    sizes = [len(task.examples(s)) for s in ("train", "validation", "test")]
    assert sum(sizes) == 60
    assert sizes == pytest.approx([36, 9, 15], abs=2)


def test_files_are_relative_to_the_yaml_whatever_the_working_folder(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("data: {path: rows.jsonl}\n")
    monkeypatch.chdir("/")
    assert read_task(path).name == "task"
    assert read_config(path)[0].data.path == str(path.parent / "rows.jsonl")


def test_a_hub_name_is_not_a_file(write: Write) -> None:
    assert read_config(write("data: 'hub:org/name:test'\n"))[0].data.path == "hub:org/name:test"


def test_the_cut_is_frozen_by_its_seed_and_part_of_the_digest(write: Write) -> None:
    path = write("data: {path: rows.jsonl, split: {seed: 3}}\n")
    first, again, other = read_task(path), read_task(path), read_task(path, ["data.split.seed=4"])
    assert first.digest == again.digest
    assert first.splits == again.splits
    assert other.digest != first.digest


def test_everything_that_decides_a_score_is_in_the_digest(write: Write) -> None:
    path = write("data: {path: rows.jsonl}\nprompt: {instruction: Sort.}\nscorers: [accuracy]\n")
    base = read_task(path).digest
    for override in ("prompt.instruction=Please sort.", "scorers=[macro_f1]", "max_new_tokens=7", "data.limit=50"):
        assert read_task(path, [override]).digest != base, override
    assert read_task(path, ["name=other"]).digest == base


def test_questions_are_generated_and_scored_exactly(write: Write) -> None:
    task = read_task(write("data: questions.jsonl\nscorers: {name: exact, casefold: true}\nmax_new_tokens: 8\n"))
    assert (task.kind, task.labels, task.max_new_tokens) == ("generate", (), 8)
    assert task.scorers == (("exact", {"casefold": True}),)
    assert task.prompt.instruction == ""


def test_labelled_rows_can_be_generated_and_answers_classified(write: Write, tmp_path: Path) -> None:
    assert read_task(write("kind: generate\ndata: rows.jsonl\n")).labels == ()
    jsonl(tmp_path / "yn.jsonl", [{"question": f"Is {i} even?", "answer": "no" if i % 2 else "yes"} for i in range(40)])
    assert read_task(write("kind: classify\ndata: yn.jsonl\n")).labels == ("no", "yes")


def test_a_file_for_each_part(write: Write, tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", labelled(9, start=100))
    jsonl(tmp_path / "dev.jsonl", labelled(6, start=200))
    task = read_task(write("data: {train: rows.jsonl, validation: dev.jsonl, test: test.jsonl}\n"))
    assert [len(task.examples(s)) for s in ("train", "validation", "test")] == [60, 6, 9]
    kept = read_task(write("data: {train: rows.jsonl, test: test.jsonl}\n"))
    sizes = [len(kept.examples(s)) for s in ("train", "validation", "test")]
    assert sizes[2] == 9
    assert sizes[0] + sizes[1] == 60
    assert sizes[1] == pytest.approx(12, abs=2)
    none = read_task(write("data: {train: rows.jsonl, test: test.jsonl, split: {validation: 0}}\n"))
    assert [len(none.examples(s)) for s in ("train", "validation", "test")] == [60, 0, 9]
    alone = read_task(write("data: {test: test.jsonl}\n"))
    assert [len(alone.examples(s)) for s in ("train", "validation", "test")] == [0, 0, 9]


def test_labels_can_be_given_in_an_order_and_beyond_the_data(write: Write) -> None:
    assert read_task(write("data: rows.jsonl\nprompt: {labels: [c, b, a, d]}\n")).labels == ("c", "b", "a", "d")


def test_plain_values_are_a_task_too(write: Write, tmp_path: Path) -> None:
    config = Config(name="x", data=DataSection(path=str(tmp_path / "rows.jsonl")))
    assert build(config).digest == read_task({"name": "x", "data": str(tmp_path / "rows.jsonl")}).digest


def test_the_tournaments_keys_are_allowed_and_decide_no_score(write: Write) -> None:
    with_entrants = write(
        "data: rows.jsonl\nmodels: {decoder: x}\nentrants: [zero_shot, {method: lora}]\ntrain: {epochs: 1}\n"
    )
    task = read_task(with_entrants)
    assert task.digest == read_task(write("data: rows.jsonl\n")).digest


@pytest.mark.parametrize(
    ("yaml", "error", "message"),
    [
        ("name: x\n", InputError, "data is required"),
        ("data: {}\n", InputError, "data needs path"),
        ("data: nowhere.jsonl\n", InputError, "nowhere.jsonl"),
        ("data: {path: rows.jsonl, test: rows.jsonl}\n", InputError, "exclude each other"),
        (
            "data: rows.jsonl\nscorer: accuracy\n",
            InputError,
            r"unknown key 'scorer' \(task.yaml:2\). Did you mean 'scorers'",
        ),
        ("data: {path: rows.jsonl, spilt: {}}\n", InputError, "Did you mean 'split'"),
        ("data: rows.jsonl\nprompt:\n  instructions: hi\n", InputError, r"task.yaml:3\). Did you mean 'instruction'"),
        ("data: rows.jsonl\nprompt: {input: nothing}\n", InputError, "must contain {input}"),
        ("data: rows.jsonl\nscorers: [acuracy]\n", NotFoundError, "Did you mean 'accuracy'"),
        ("data: rows.jsonl\nscorers: [{casefold: true}]\n", InputError, "a mapping with a name"),
        ("data: rows.jsonl\nscorers: [{name: exact, case: true}]\n", InputError, "casefold"),
        ("data: rows.jsonl\nscorers: [accuracy, accuracy]\n", InputError, "named twice"),
        ("data: rows.jsonl\nkind: classification\n", InputError, "kind"),
        ("data: rows.jsonl\nmax_new_tokens: 0\n", InputError, r"max_new_tokens.*got 0"),
        ("data: rows.jsonl\nname: 'a b'\n", InputError, "name"),
        (
            "data: rows.jsonl\nprompt: {labels: [a, b]}\n",
            DataError,
            r"label 'c' is not in prompt.labels \(.*rows.jsonl:",
        ),
    ],
)
def test_what_cannot_be_used_is_named(write: Write, yaml: str, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        read_task(write(yaml))


def test_bad_rows(write: Write, tmp_path: Path) -> None:
    jsonl(tmp_path / "one.jsonl", labelled(10, ("only",)))
    with pytest.raises(DataError, match="all 10 rows have the label 'only'"):
        read_task(write("data: one.jsonl\n"))
    jsonl(tmp_path / "test.jsonl", [*labelled(4, start=100), {"text": "odd", "label": "z"}])
    with pytest.raises(DataError, match=r"label 'z' is not in the train split \(.*test.jsonl:5, 1 such rows"):
        read_task(write("data: {train: rows.jsonl, test: test.jsonl}\n"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        read_task(write("data: empty.jsonl\n"))
    (tmp_path / "broken.jsonl").write_text(
        '{"text": "a", "label": "x"}\n{not json\n' + json.dumps(labelled(2)[1]) + "\n"
    )
    with pytest.raises(DataError, match=r"broken.jsonl:2"):
        read_task(write("data: broken.jsonl\n"))
    chats = [
        {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "yes"}]}
        for i in range(9)
    ]
    jsonl(tmp_path / "chats.jsonl", chats)
    with pytest.raises(UnsupportedError, match="holds kind 'chat'"):
        read_task(write("data: chats.jsonl\n"))


def test_skip_bad_goes_on(write: Write, tmp_path: Path) -> None:
    text = "{not json\n" + "".join(json.dumps(row) + "\n" for row in labelled(30))
    (tmp_path / "broken.jsonl").write_text(text)
    task = read_task(write("data: {path: broken.jsonl, skip_bad: true}\n"))
    assert sum(len(task.examples(s)) for s in ("train", "validation", "test")) == 30


CHOICES = [
    {"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2, "topic": "small" if i < 10 else "large"}
    for i in range(20)
]


def test_questions_with_choices_are_asked_by_their_text_or_by_letters(write: Write, tmp_path: Path, home: Path) -> None:
    jsonl(tmp_path / "choices.jsonl", CHOICES)
    task = read_task(write("data: {test: choices.jsonl}\nslices: topic\n"))
    assert (task.kind, task.scorers, task.slices) == ("choice", (("multiple_choice", {}),), ("topic",))
    first = task.examples("test")[0]
    assert (first.choices, first.correct, first.target, first.raw) == (("yes", "no"), (0,), "yes", ())
    letters = read_task(write("data: {test: choices.jsonl}\nprompt: {choices: letters}\n"))
    assert letters.prompt.instruction == LETTER_INSTRUCTION and letters.digest != task.digest
    assert letters.examples("test")[1].text == "Is 1 even?\nA. yes\nB. no"
    assert letters.examples("test")[1].target == "B"
    result = evaluate("fake", task)
    assert {record.slices["topic"] for record in result.records} == {"small", "large"}
    assert read_task(write("kind: generate\ndata: {test: choices.jsonl}\n")).kind == "generate"


def test_several_right_choices(write: Write, tmp_path: Path) -> None:
    jsonl(tmp_path / "more.jsonl", [{"question": "Even?", "choices": ["2", "3", "4"], "correct": [0, 2]}])
    (one,) = read_task(write("data: {test: more.jsonl}\n")).examples("test")
    assert one.correct == (0, 2)


def test_plain_text_is_scored_by_its_likelihood(write: Write, tmp_path: Path, home: Path) -> None:
    jsonl(tmp_path / "texts.jsonl", [{"text": f"the river turns {i} times"} for i in range(6)])
    task = read_task(write("data: {test: texts.jsonl}\n"))
    assert (task.kind, [name for name, _ in task.scorers]) == ("likelihood", ["bits_per_byte", "perplexity"])
    first = task.examples("test")[0]
    assert (first.raw, first.target) == (("",), "the river turns 0 times")
    assert evaluate("fake", task).scores["bits_per_byte"]["value"] > 0
    answers = read_task(write("kind: likelihood\ndata: {test: questions.jsonl}\n")).examples("test")[0]
    assert (answers.raw, answers.target) == ((), "0")


def test_any_of_several_answers_counts(write: Write, tmp_path: Path, home: Path) -> None:
    jsonl(
        tmp_path / "many.jsonl",
        [{"question": "Two?", "answers": ["2", "two"]}, {"question": "Three?", "answers": ["3", "three"]}],
    )
    task = read_task(write("data: {test: many.jsonl}\n"))
    assert task.examples("test")[0].references == ("2", "two")
    result = evaluate(FakeEngine("said", FakeConfig(answers={"Two?": "two", "Three?": "four"})), task)
    assert result.scores["exact"]["value"] == 0.5


def test_how_answers_are_drawn_and_named(write: Write) -> None:
    told = "data: questions.jsonl\nstop: '\\n'\nsamples: 3\ntemperature: 0.5\nscorers: [{name: exact, as: strict}, {name: exact, as: loose, casefold: true}]\n"
    task = read_task(write(told))
    assert (task.stop, task.samples, task.temperature) == (("\\n",), 3, 0.5)
    assert [scorer.label for scorer in scorers_of(task)] == ["strict", "loose"]
    for override in ("stop=[x]", "samples=2", "temperature=0.1"):
        assert read_task(write(told), [override]).digest != task.digest


def test_a_prompt_of_the_catalogue(write: Write, home: Path) -> None:
    task = read_task(write("data: rows.jsonl\nprompt: {template: classify@1}\n"))
    assert "{labels}" in task.prompt.instruction and task.prompt.labels == ("a", "b", "c")
    with pytest.raises(InputError, match="exclude each other"):
        read_task(write("data: rows.jsonl\nprompt: {template: classify@1, instruction: Sort.}\n"))
    with pytest.raises(NotFoundError, match="is not in the catalogue"):
        read_task(write("data: rows.jsonl\nprompt: {template: clasify}\n"))


def test_a_benchmark_under_a_name_of_its_own(write: Write, tmp_path: Path, home: Path) -> None:
    (tmp_path / "bench").mkdir()
    rows.write(tmp_path / "bench", "mmlu")
    task = read_task(
        write("benchmark: {name: mmlu, path: bench, shots: 2}\nmodels: {decoder: x}\nentrants: [zero_shot]\n")
    )
    direct = load_task("mmlu", [f"data={tmp_path}/bench", "shots=2"])
    assert (task.name, task.digest, task.slices) == ("task", direct.digest, ("subject",))
    assert len(task.examples("train")) == 6
    own = read_task(
        write("name: exam\nbenchmark: {name: mmlu, data: bench, shots: 0}\nscorers: [multiple_choice, accuracy]\n")
    )
    assert own.name == "exam" and [name for name, _ in own.scorers] == ["multiple_choice", "accuracy"]
    assert read_task(write("benchmark: needle\n"), ["benchmark.lengths=[40]", "max_new_tokens=9"]).max_new_tokens == 9


@pytest.mark.parametrize(
    ("yaml", "error", "message"),
    [
        (
            "benchmark: {name: mmul, data: x}\n",
            InputError,
            r"benchmark\.name must be one of the catalogue; got 'mmul'\. Did you mean 'mmlu'",
        ),
        ("benchmark: {name: own, data: x}\n", InputError, "benchmark.name"),
        ("benchmark: {data: x}\n", InputError, "got None"),
        ("benchmark: {name: mmlu, shot: 1}\n", InputError, "unknown key 'shot'"),
        ("benchmark: {name: mmlu}\n", InputError, "mmlu needs data"),
        ("benchmark: {name: needle}\ndata: rows.jsonl\n", InputError, "data and benchmark exclude each other"),
        (
            "benchmark: {name: needle}\nprompt: {instruction: x}\n",
            InputError,
            "prompt and benchmark exclude each other",
        ),
        ("benchmark: {name: needle}\nslices: [depth]\n", InputError, "no row of needle/test has a field 'depth'"),
        ("data: rows.jsonl\nslices: [topik]\n", InputError, "has a field 'topik'"),
        ("kind: choice\ndata: questions.jsonl\n", DataError, r"questions\.jsonl:\d+: the row has no choices"),
        ("data: questions.jsonl\nsamples: 0\n", InputError, "samples"),
        ("data: questions.jsonl\nscorers: [{name: exact, as: 3}]\n", InputError, "as is the name that results carry"),
    ],
)
def test_what_these_kinds_refuse(write: Write, yaml: str, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        read_task(write(yaml))
