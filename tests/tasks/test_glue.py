from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.errors import DataError, InputError
from luthier.evaluation.evaluate import evaluate
from luthier.tasks._load import load_task

NAME = "glue"


ASKED = {
    "cola": ("The cat sat.\nQuestion: Does this sentence make sense?\nAnswer:", (" no", " yes"), " yes"),
    "sst2": (
        "a fine film\nQuestion: Is this sentence positive or negative?\nAnswer:",
        (" negative", " positive"),
        " positive",
    ),
    "mrpc": (
        "Sentence 1: He left.\nSentence 2: He went away.\nQuestion: Do both sentences mean the same thing?\nAnswer:",
        (" no", " yes"),
        " yes",
    ),
    "qqp": (
        "Question 1: How old?\nQuestion 2: What age?\nQuestion: Do both questions ask the same thing?\nAnswer:",
        (" no", " yes"),
        " yes",
    ),
    "mnli": (
        "It rains.\nQuestion: It is wet. True, False or Neither?\nAnswer:",
        (" True", " Neither", " False"),
        " True",
    ),
    "qnli": ("Who?\nAnn did.\nQuestion: Does this response answer the question?\nAnswer:", (" yes", " no"), " yes"),
    "rte": ("It rains.\nQuestion: It is wet. True or False?\nAnswer:", (" True", " False"), " True"),
    "wnli": ("Bo met Al.\nQuestion: They met. True or False?\nAnswer:", (" False", " True"), " True"),
}


def one_file(folder: Path, task: str) -> Path:
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.GLUE[task]))
    return path


@pytest.mark.parametrize("task", ASKED)
def test_the_prompt_to_the_letter(tmp_path: Path, task: str) -> None:
    built = load_task(NAME, [f"data={one_file(tmp_path, task)}", f"task={task}"])
    first = built.examples("test")[0]
    assert (first.raw[0], first.choices, first.target) == ASKED[task]
    assert built.name == f"glue_{task}"


@pytest.mark.parametrize(
    ("task", "scorers"),
    [
        ("cola", ["matthews"]),
        ("sst2", ["multiple_choice"]),
        ("mrpc", ["multiple_choice", "f1"]),
        ("qqp", ["multiple_choice", "f1"]),
        ("stsb", ["pearson", "spearman"]),
    ],
)
def test_each_task_has_its_own_figures(tmp_path: Path, home: Path, task: str, scorers: list[str]) -> None:
    told = [f"data={one_file(tmp_path, task)}", f"task={task}"]
    built = load_task(NAME, told)
    assert [name for name, _ in built.scorers] == scorers
    evaluate("fake:3", built)
    if "f1" in scorers:  # the positive label is written as the choices are
        assert built.scorers[1][1]["positive"] in built.examples("test")[0].choices
        turns = load_task(NAME, [*told, "chat=true"])
        assert turns.scorers[1][1]["positive"] in turns.examples("test")[0].choices


def test_labels_by_name_and_what_is_no_label(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text('{"sentence": "s", "label": "acceptable"}\n')
    assert load_task(NAME, [f"data={path}", "task=cola"]).examples("test")[0].target == " yes"
    path.write_text('{"sentence": "s", "label": -1}\n')
    with pytest.raises(
        DataError, match="label must be one of unacceptable, acceptable, or a number from 0 to 1; got -1"
    ):
        load_task(NAME, [f"data={path}", "task=cola"])
    path.write_text('{"sentence1": "s", "sentence2": "t", "label": "much"}\n')
    with pytest.raises(DataError, match="label must be a number from 0 to 5; got 'much'"):
        load_task(NAME, [f"data={path}", "task=stsb"])


def test_the_two_parts_of_mnli(tmp_path: Path) -> None:
    for part in ("matched", "mismatched"):
        one_file(tmp_path, "mnli").rename(tmp_path / f"validation_{part}.jsonl")
    found = load_task(NAME, [f"data={tmp_path}", "task=mnli", "mismatched=true"]).examples("test")[0]
    assert "validation_mismatched" in found.source
    with pytest.raises(InputError, match="mismatched is for task mnli; got sst2"):
        load_task(NAME, [f"data={tmp_path}", "mismatched=true"])


def test_a_folder_of_all_tasks(tmp_path: Path) -> None:
    for task in ("cola", "rte"):
        (tmp_path / task).mkdir()
        one_file(tmp_path, task).rename(tmp_path / task / "validation.jsonl")
    assert load_task(NAME, [f"data={tmp_path}", "task=rte"]).examples("test")[0].raw[0] == ASKED["rte"][0]
    with pytest.raises(DataError, match="has no validation file; it holds: cola, rte"):
        load_task(NAME, [f"data={tmp_path}", "task=wnli"])
