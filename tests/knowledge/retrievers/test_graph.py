"""The step graph: questions whose answer stands two relations away, in both languages; what may not be seen is neither shown nor followed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from luthier.core.engine import EngineInfo, Generation, Sampling, Vectors
from luthier.core.errors import InputError
from luthier.core.message import Prompt
from luthier.knowledge.base import KnowledgeBase, create_base
from luthier.knowledge.graph import build_graph
from luthier.knowledge.index import Filter

TEXTS = {
    # the answer to where the founder of Lindal Strings was born stands in the second text, which does not name the firm
    "firm.txt": "Lindal Strings was founded by Greta Olsen.",
    "life.txt": "Greta Olsen comes from Bergen, a rainy harbour.",
    "企业.txt": "云杉琴行由陈立明创办。",
    "生平.txt": "陈立明来自景德镇,那里以瓷器闻名。",
    **{
        f"other{n}.txt": f"The founder of firm number {n} was born where strings are made, in town {n}."
        for n in range(12)
    },
    **{f"别的{n}.txt": f"第{n}家琴行的创办人出生在哪里,出生在第{n}镇,大家都知道。" for n in range(12)},
}
QUESTIONS = {
    "en": ("Where was the founder of Lindal Strings born?", "life.txt", "Greta Olsen — comes from — Bergen"),
    "zh": ("云杉琴行的创办人出生在哪里?", "生平.txt", "陈立明 — 来自 — 景德镇"),
}
RELATIONS = [
    ("Lindal Strings", "was founded by", "Greta Olsen"), ("Greta Olsen", "comes from", "Bergen"),
    ("云杉琴行", "创办人", "陈立明"), ("陈立明", "来自", "景德镇"),
]  # fmt: skip


class Words:
    """Embeds texts by their words and characters, so that a text is near that shares them; states ``RELATIONS`` when it is asked to write."""

    info = EngineInfo("words", "scripted", frozenset({"embed", "generate"}), model_digest="d" * 64)

    def embed(self, texts: Sequence[str], progress: object = None) -> Vectors:
        out = np.zeros((len(texts), 512), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"[a-z]+|[\u4e00-\u9fff]", text.lower()):
                out[row, int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % 512] += 1
            out[row, 0] += 1e-3
        return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True), np.float32)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, progress: object = None) -> list[Generation]:
        out = []
        for prompt in prompts:
            shown = prompt[0].content.split("<passage>")[1]
            keys = ("source", "relation", "target")
            said = [dict(zip(keys, each, strict=True)) for each in RELATIONS if each[0] in shown and each[2] in shown]
            out.append(Generation(json.dumps({"relations": said}), (), (), "stop"))
        return out

    def close(self) -> None: ...


@pytest.fixture
def base(home: Path, tmp_path: Path) -> Iterator[KnowledgeBase]:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text in TEXTS.items():
        (docs / name).write_text(text, encoding="utf-8")
    made = create_base("firms", embedder="words", engine=Words())  # type: ignore[arg-type]
    made.add([docs / "life.txt"], labels=["staff"])
    made.add([docs / "生平.txt"], labels=["staff"])
    made.add([path for path in sorted(docs.iterdir()) if path.name not in ("life.txt", "生平.txt")])
    yield made
    made.close()


def names(hits: Sequence[object]) -> list[str]:
    return [Path(hit.source).name for hit in hits]  # type: ignore[attr-defined]


@pytest.mark.parametrize("language", QUESTIONS)
def test_a_question_over_two_relations(base: KnowledgeBase, language: str) -> None:
    question, answer, path = QUESTIONS[language]
    assert answer not in names(base.search(question, 5, retrieval=[{"name": "dense"}]))
    build_graph(base, Words())  # type: ignore[arg-type]
    found = base.search(question, 5, retrieval=[{"name": "graph"}, {"name": "dense"}])
    assert answer in names(found)[:4]
    hit = next(hit for hit in found if Path(hit.source).name == answer)
    first, second = str(hit.meta["path"]).split("; ")
    assert second == path and path.split(" — ")[0] in first  # from the question's entity to the answer
    assert hit.scores["graph"] > 0
    alone = base.search(question, 5, retrieval=[{"name": "graph", "inner": False}])
    assert len(alone) == 2 and answer in names(alone)
    near = base.search(question, 5, retrieval=[{"name": "graph", "inner": False, "hops": 1, "linked": 0}])
    assert answer not in names(near)


@pytest.mark.parametrize("language", QUESTIONS)
def test_what_may_not_be_seen_is_neither_shown_nor_followed(base: KnowledgeBase, language: str) -> None:
    question, answer, path = QUESTIONS[language]
    build_graph(base, Words())  # type: ignore[arg-type]
    steps = [{"name": "graph", "inner": False}]
    for where, seen in (
        (Filter(labels=()), False),
        (Filter(labels=("guest",)), False),
        (Filter(labels=("staff",)), True),
        (Filter(sources=("*other*",)), False),
        (Filter(documents=("doc_nothing",)), False),
        (Filter(), True),
    ):
        found = base.search(question, 5, where, retrieval=steps)
        assert (answer in names(found)) is seen, where
        assert (path in str([hit.meta for hit in found])) is seen, where


def test_many_documents_are_checked_exactly(
    base: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub with relations in many documents, of which every third may be seen."""
    monkeypatch.setattr(f"{__name__}.RELATIONS", [("Hub Hall", "has room", f"Room{n}x") for n in range(30)])
    rooms = [tmp_path / f"room{n}.txt" for n in range(30)]
    for n, path in enumerate(rooms):
        path.write_text(f"Hub Hall has Room{n}x. Rooms are rooms.", encoding="utf-8")
    base.add(rooms[::3])
    base.add([path for n, path in enumerate(rooms) if n % 3], labels=["staff"])
    build_graph(base, Words())  # type: ignore[arg-type]
    found = base.search(
        "What rooms has Hub Hall?",
        100,
        Filter(labels=()),
        retrieval=[{"name": "graph", "inner": False, "candidates": 100}],
    )
    assert sorted(names(found)) == sorted(f"room{n}.txt" for n in range(0, 30, 3))


def test_without_a_graph_or_entities(base: KnowledgeBase) -> None:
    with pytest.raises(InputError, match="has no graph yet"):
        base.search("Who?", retrieval=[{"name": "graph"}])
    build_graph(base, Words())  # type: ignore[arg-type]
    steps = [{"name": "graph", "linked": 0}, {"name": "dense"}]
    assert names(base.search("Which towns are there?", 3, retrieval=steps)) == names(
        base.search("Which towns are there?", 3, retrieval=[{"name": "dense"}])
    )


def test_a_graph_that_is_older_than_the_base_shows_nothing_that_is_gone(base: KnowledgeBase) -> None:
    build_graph(base, Words())  # type: ignore[arg-type]
    base.remove(["*life.txt"])
    found = base.search(QUESTIONS["en"][0], 5, retrieval=[{"name": "graph", "inner": False}])
    assert names(found) == ["firm.txt"]
