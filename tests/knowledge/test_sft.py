"""Training rows for answers from documents: the prompt of serving, letter by letter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.knowledge.scripted import Scripted
from tests.knowledge.test_synthesis import FACTS, GOOD

from luthier.core.engine import Sampling
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.data.read import read
from luthier.knowledge.base import KnowledgeBase, create_base
from luthier.knowledge.prompt import NOT_FOUND
from luthier.knowledge.rag import rag
from luthier.knowledge.sft import write_sft_rows


@pytest.fixture
def base(home: Path, tmp_path: Path) -> Iterator[KnowledgeBase]:
    for name, fact in FACTS.items():
        (tmp_path / f"{name}.txt").write_text(fact)
    with create_base("village", embedder="fake") as made:
        made.add([tmp_path / f"{name}.txt" for name in FACTS])
        yield made


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"question": q, "answers": [a], "source": f"{name}.txt"} for name, (q, a) in GOOD.items()]
    rows.append({"question": "Who sank the ship?", "answers": []})  # type: ignore[typeddict-item]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_prompt_is_the_one_of_serving(base: KnowledgeBase, questions: Path, tmp_path: Path) -> None:
    write_sft_rows(base, questions, tmp_path / "train.jsonl", distractors=3, drop_gold=0.0)
    for row in rows(tmp_path / "train.jsonl"):
        prompt = row["messages"][-2]["content"]  # type: ignore[index]
        question = next((q for q, _ in GOOD.values() if prompt.endswith(q)), None)
        if question is None:
            continue
        engine = Scripted(lambda text: "It is so [1].")
        served = rag(base, engine, k=4)
        order = {
            hit.chunk.text: prompt.index(hit.chunk.text)
            for hit in served.generate([user(question)], Sampling())[0].hits
        }
        assert len(order) == 4 and len(row["messages"]) == 2  # type: ignore[arg-type]
        shuffled = _in_order(base, question, sorted(order, key=order.__getitem__))
        assert prompt == shuffled


def _in_order(base: KnowledgeBase, question: str, texts: list[str]) -> str:
    """What serving asks when a search returns these passages in this order."""

    class Fixed:
        name = "village"

        def search(self, *args: object, **options: object) -> list[object]:
            hits = {hit.chunk.text: hit for hit in base.search(question, 4)}
            return [hits[text] for text in texts]

    engine = Scripted(lambda text: "so")
    rag(Fixed(), engine, k=4).generate([user(question)], Sampling())  # type: ignore[arg-type]
    return engine.asked[-1]


def test_answers_cite_the_right_passage(base: KnowledgeBase, questions: Path, tmp_path: Path) -> None:
    report = write_sft_rows(base, questions, tmp_path / "train.jsonl", drop_gold=0.0)
    assert (report.answered, report.not_in_documents) == (4, 1)
    for row in rows(tmp_path / "train.jsonl"):
        prompt, answer = (turn["content"] for turn in row["messages"][-2:])  # type: ignore[index,attr-defined]
        number = row["meta"]["gold"]  # type: ignore[index]
        if not number:
            assert answer == NOT_FOUND["en"]
            continue
        name = next(name for name, (q, _) in GOOD.items() if prompt.endswith(q))
        assert GOOD[name][1] in answer and f"[{number}]" in answer and answer[-1] in ".。"
        assert FACTS[name] in prompt.split(f'number="{number}"')[1].split("</passage>")[0]
    assert len({row["meta"]["gold"] for row in rows(tmp_path / "train.jsonl")}) > 2, "it does not always stand first"  # type: ignore[index]


def test_a_share_loses_its_passage_and_is_refused(base: KnowledgeBase, questions: Path, tmp_path: Path) -> None:
    report = write_sft_rows(base, questions, tmp_path / "train.jsonl", distractors=2, drop_gold=0.999)
    assert (report.answered, report.not_in_documents) == (0, 5)
    for row in rows(tmp_path / "train.jsonl"):
        prompt, answer = (turn["content"] for turn in row["messages"][-2:])  # type: ignore[index,attr-defined]
        assert answer == NOT_FOUND["zh" if prompt.endswith("设计?") else "en"]
        asked = next((name for name, (q, _) in GOOD.items() if prompt.endswith(q)), None)
        assert asked is None or GOOD[asked][1] not in prompt
    assert [row["messages"] for row in rows(tmp_path / "train.jsonl")] == [
        row["messages"] for row in _again(base, questions, tmp_path)
    ], "the same by the same seed"


def _again(base: KnowledgeBase, questions: Path, tmp_path: Path) -> list[dict[str, object]]:
    write_sft_rows(base, questions, tmp_path / "again.jsonl", distractors=2, drop_gold=0.999)
    return rows(tmp_path / "again.jsonl")


def test_training_reads_the_file(base: KnowledgeBase, questions: Path, tmp_path: Path) -> None:
    write_sft_rows(base, questions, tmp_path / "train.jsonl")
    assert read(tmp_path / "train.jsonl").kind == "chat"


def test_what_cannot_be_used_is_said(base: KnowledgeBase, questions: Path, tmp_path: Path) -> None:
    for options in ({"distractors": 0}, {"drop_gold": 1.0}, {"drop_gold": -0.1}):
        with pytest.raises(InputError, match="distractors must be at least 1"):
            write_sft_rows(base, questions, tmp_path / "t.jsonl", **options)  # type: ignore[arg-type]
    (tmp_path / "far.jsonl").write_text(
        '{"question": "Who?", "answers": ["X"], "source": "far.txt"}\n{"question": "Why?", "source": "mill.txt"}'
    )
    with pytest.raises(InputError, match=r"no question of .*not_in_the_base"):
        write_sft_rows(base, tmp_path / "far.jsonl", tmp_path / "t.jsonl")
