"""Entrants that answer from documents, and one that is tuned to: with a made-up model and a tiny one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.core.config import validate
from luthier.core.engine import Generation, Sampling
from luthier.core.errors import InputError, NotFoundError, UnsupportedError
from luthier.core.message import Prompt, last_user_text
from luthier.core.run import Progress, no_progress
from luthier.engines.fake import Config as FakeConfig
from luthier.engines.fake import FakeEngine
from luthier.knowledge.base import KnowledgeBase, create_base, open_base
from luthier.store.database import Store, open_store
from luthier.store.models import find
from luthier.store.runs import folder
from luthier.tasks.own import Config, read_config, read_task
from luthier.tournament.documents import from_documents, read_documents, shown_passages
from luthier.tournament.plan import read_plan
from luthier.tournament.promote import promote
from luthier.tournament.tournament import tournament

TASK = """
name: bridges
data: {path: rows.jsonl, split: {train: 0.5, validation: 0.2, test: 0.3}}
documents: {path: towns, embedder: fake, retrieval: [keyword]}
models: {decoder: tiny-decoder}
train: {max_steps: 2, dtype: fp32}
max_new_tokens: 8
entrants:
  - {model: fake, strategy: zero_shot, name: alone}
  - {model: fake, rag: true, name: reads}
  - {rag: {k: 1}, method: lora, name: tuned}
"""
RAG: dict[str, Any] = {"mode": "stuff", "k": 2, "retrieval": ["keyword"], "options": {}}


@pytest.fixture
def path(home: Path, tmp_path: Path) -> Path:
    (tmp_path / "towns").mkdir()
    rows = []
    for number in range(20):
        name = f"Town{number}" if number % 2 else f"城{number}"
        text = f"{name} has {number + 3} bridges." if number % 2 else f"{name}有{number + 3}座桥。"
        (tmp_path / "towns" / f"{name}.md").write_text(text, encoding="utf-8")
        asked = f"How many bridges has {name}?" if number % 2 else f"{name}有几座桥？"
        rows.append({"question": asked, "answer": str(number + 3), "source": f"{name}.md"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "task.yaml"
    path.write_text(TASK, encoding="utf-8")
    return path


@pytest.fixture
def base(path: Path, tmp_path: Path) -> Iterator[KnowledgeBase]:
    with create_base("towns", embedder="fake", engine=FakeEngine("fake", FakeConfig())) as made:
        made.add([tmp_path / "towns"])
        yield made


def test_a_tournament_with_documents(path: Path, tiny_decoder: str) -> None:
    stages: list[str] = []
    board = tournament(path, progress=lambda stage, done, total: stages.append(stage))
    standings = {s.name: s for s in board.standings}
    assert {name: s.status for name, s in standings.items()} == dict.fromkeys(("alone", "reads", "tuned"), "done"), [
        s.reason for s in board.standings
    ]
    assert board.task["primary"] == "token_f1"
    assert [standings[name].way for name in ("alone", "reads", "tuned")] == ["zero_shot", "rag", "rag + lora"]
    alone, reads, tuned = (standings[name] for name in ("alone", "reads", "tuned"))
    assert reads.prompt_tokens is not None
    assert alone.prompt_tokens is not None
    assert reads.prompt_tokens > alone.prompt_tokens  # the passages are paid for
    assert tuned.trainable_parameters
    assert tuned.latency_p50_s
    assert tuned.weights_mb
    assert {(c.first, c.second) for c in board.comparisons} >= {(board.standings[0].name, board.standings[1].name)}
    store = open_store()
    assert find(store, tuned.target).kind == "adapter"
    records = [json.loads(line) for line in (folder(store, reads.eval_run) / "records.jsonl").read_text().splitlines()]
    assert all(record["hits"] for record in records)
    with open_base("bridges-documents") as kept:
        assert len(kept.documents()) == 20
    assert tournament(path).as_dict()["standings"] == board.as_dict()["standings"]  # nothing is done twice
    with pytest.raises(UnsupportedError, match="answers from a knowledge base") as refused:
        promote(board.run, entrant="tuned")
    assert tuned.target in str(refused.value.hint)


def test_changed_documents_are_another_tournament(path: Path, tmp_path: Path) -> None:
    first = read_plan(path, only=["reads"], store=open_store())
    assert read_plan(path, only=["reads"], store=open_store()).entrants[0].key == first.entrants[0].key
    (tmp_path / "towns" / "more.md").write_text("Town1 has 99 bridges.", encoding="utf-8")
    assert read_plan(path, only=["reads"], store=open_store()).entrants[0].key != first.entrants[0].key


class Listens(FakeEngine):
    """Notes what it is asked."""

    def __init__(self) -> None:
        super().__init__("listens", FakeConfig())
        self.asked: list[str] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        self.asked += [last_user_text(prompt) for prompt in prompts]
        return super().generate(prompts, sampling, progress)


def test_training_shows_what_serving_shows(path: Path, base: KnowledgeBase) -> None:
    task = read_task(path)
    shown = shown_passages(task, base, RAG)
    listens = Listens()
    from_documents(base, listens, RAG).generate([e.messages for e in task.splits.train.examples], Sampling())
    assert [example.text for example in shown.splits.train.examples] == listens.asked
    for example, was in zip(shown.splits.train.examples, task.splits.train.examples, strict=True):
        assert was.text in example.text
        assert "<passages>" in example.text
        assert example.target == was.target
        assert str(was.meta["source"]).removesuffix(".md") in example.text.split("</passages>")[0]
    assert shown.splits.test == task.splits.test
    assert not {e.id for e in shown.splits.train.examples} & {e.id for e in task.splits.train.examples}
    assert shown.prompt.messages("x")[-1].content == "x"


def test_default_entrants(path: Path) -> None:
    path.write_text(TASK.partition("entrants:")[0], encoding="utf-8")
    config, _ = read_config(path)
    from luthier.tournament.entrant import read_entrants

    assert [each.name for each in read_entrants(config, "generate")][-2:] == ["rag", "rag + lora"]


def with_documents(value: Any) -> Config:
    made: Config = validate(Config, {"documents": value}, where="task")
    return made


@pytest.mark.parametrize(
    ("value", "said"),
    [({}, "a base or a path"), ({"base": "a", "path": "b"}, "and not both"), ({"base": "a", "chunker": "page"}, "chunker belong"), ({"folder": "x"}, "folder")],
)  # fmt: skip
def test_documents_that_cannot_be(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_documents(with_documents(value))
    assert read_documents(Config()) is None


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (("documents: {path: towns, embedder: fake, retrieval: [keyword]}\n", ""), InputError, "rag needs documents"),
        (
            ("documents: {path: towns, embedder: fake, retrieval: [keyword]}", "documents: nowhere"),
            NotFoundError,
            "nowhere",
        ),
        (("rag: true", "rag: true, strategy: zero_shot"), InputError, "exclude each other"),
        (("{k: 1}", "{mode: refine}"), InputError, "prompts of mode stuff"),
        (("{k: 1}", "{mode: stuf}"), NotFoundError, "stuf"),
        (("{k: 1}", "{k: 0}"), InputError, "k"),
        (("{rag: {k: 1}, method: lora, name: tuned}", "rag + lorra"), NotFoundError, "lorra"),
        (("answer", "answer"), InputError, "of kind classify"),
    ],
)
def test_bad_input(path: Path, tmp_path: Path, change: tuple[str, str], error: type[Exception], said: str) -> None:
    path.write_text(TASK.replace(*change), encoding="utf-8")
    if change[0] == "answer":
        rows = [{"text": f"row {n}", "label": "ab"[n % 2]} for n in range(20)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(error, match=said):
        read_plan(path, store=open_store())


def test_a_base_by_its_name(path: Path, base: KnowledgeBase) -> None:
    path.write_text(TASK.replace("{path: towns, embedder: fake, retrieval: [keyword]}", "towns"), encoding="utf-8")
    (path.parent / "towns").rename(path.parent / "elsewhere")
    store: Store = open_store()
    plan = read_plan(path, only=["reads"], store=store)
    assert plan.base == "towns"
