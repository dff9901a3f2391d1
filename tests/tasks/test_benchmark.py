from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.errors import DataError, InputError
from luthier.tasks import boolq, mmlu
from luthier.tasks._benchmark import build_task
from luthier.tasks._load import load_task


def harness_draws(pool: int, count: int, questions: int, own: list[int] | None = None) -> list[list[int]]:
    """lm-evaluation-harness's ``ContextSampler``: one generator for all questions; where the question may be in the pool, one more is
    drawn and the question dropped."""
    generator = random.Random(1234)
    out = []
    for question in range(questions):
        if own is None:
            out.append(generator.sample(list(range(pool)), count))
            continue
        drawn = generator.sample(list(range(pool)), count + 1)
        out.append([one for one in drawn if one != own[question]][:count])
    return out


def shown(raw: str, word: str) -> list[int]:
    """Numbers of the worked examples in a prompt."""
    return [int(part.split()[0]) for part in raw.split(word)[1:]]


def test_shots_are_drawn_anew_for_each_question(tmp_path: Path) -> None:
    task = load_task("gsm8k", [f"data={rows.write(tmp_path, 'gsm8k')}", "shots=3"])
    got = [[n - 10 for n in shown(e.raw[0], "Tom has ")[:-1]] for e in task.examples("test")]
    assert got == harness_draws(6, 3, 3)


def test_the_question_itself_is_dropped_from_the_draw(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, "piqa")
    (folder / "train.jsonl").write_text(
        (folder / "validation.jsonl").read_text() + (folder / "train.jsonl").read_text()
    )
    task = load_task("piqa", [f"data={folder}", "shots=2"])
    pool = [*range(3), *range(10, 15)]
    got = [[pool.index(n) for n in shown(e.raw[0].replace("\n", " "), "jar ")[:-1]] for e in task.examples("test")]
    assert got == harness_draws(8, 2, 3, own=[0, 1, 2])


def test_another_seed_draws_others(tmp_path: Path) -> None:
    told = [f"data={rows.write(tmp_path, 'gsm8k')}", "shots=3"]
    assert load_task("gsm8k", told).digest != load_task("gsm8k", [*told, "seed=1"]).digest


def test_the_train_part_comes_along_with_answers_as_they_are_written(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, "boolq")
    task = load_task("boolq", [f"data={folder}", "train=2"])
    assert [(e.target, e.text[:6]) for e in task.examples("train")] == [("no", "Boat 1"), ("yes", "Boat 1")]
    assert load_task("boolq", [f"data={folder}", "train=0"]).examples("train") == ()
    (folder / "test.jsonl").write_text((folder / "validation.jsonl").read_text())
    asked = load_task("boolq", [f"data={folder}", "split=test"])
    assert len(asked.examples("validation")) == 3  # a part that is not asked is there to tune on


def test_worked_examples_from_another_place(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, "boolq")
    (folder / "train.jsonl").rename(tmp_path / "more.jsonl")
    with pytest.raises(DataError, match="has no train file"):
        load_task("boolq", [f"data={folder}", "shots=1"])
    one = load_task("boolq", [f"data={folder}/validation.jsonl", "shots=1", f"examples={tmp_path}/more.jsonl"])
    assert one.examples("test")[0].raw[0].count("Question:") == 2
    assert len(one.examples("train")) == 5


def test_equal_rows_have_ids_of_their_own_and_a_prompt_decides_them(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(json.dumps(rows.FILES["boolq"]["validation"][0]) + "\n")
    path.write_text(path.read_text() * 2)
    first, second = load_task("boolq", [f"data={path}"]).examples("test")
    assert second.id == f"{first.id}-2"
    other = replace(boolq.define(boolq.Config()), delimiter="\n")
    assert build_task(other, boolq.Config(data=str(path))).examples("test")[0].id != first.id


def test_what_does_not_fit_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mmlu needs data: a file, a folder .*hub:cais/mmlu") as raised:
        build_task(mmlu.define(mmlu.Config()), mmlu.Config())
    assert "question, choices (4)" in str(raised.value.hint)
    with pytest.raises(InputError, match="unknown key 'shot'"):
        load_task("mmlu", ["data=x", "shot=3"])
    with pytest.raises(InputError, match="shots"):
        load_task("mmlu", ["data=x", "shots=-1"])
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no rows"):
        load_task("mmlu", [f"data={tmp_path}/empty.jsonl", "shots=0"])


def test_many_broken_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": 1}\n' * 30)
    with pytest.raises(DataError, match="no row can be used") as raised:
        load_task("boolq", [f"data={path}"])
    assert "... and 10 more" in str(raised.value)
