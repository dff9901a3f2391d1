"""Questions and the chunks that answer them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.knowledge.test_synthesis import FACTS

from luthier.core.dataset import Example
from luthier.core.errors import InputError
from luthier.knowledge.base import KnowledgeBase, create_base
from luthier.knowledge.gold import Asked, apart, locate
from luthier.knowledge.questions import read_questions
from luthier.knowledge.synthesis import chunks_of


@pytest.fixture
def base(home: Path, tmp_path: Path) -> Iterator[KnowledgeBase]:
    for name, fact in FACTS.items():
        (tmp_path / f"{name}.txt").write_text(fact + "\n\n" + f"Nothing else is known of {name}. " * 12)
    chunker = {"name": "recursive", "tokens": 40, "overlap": 0}
    with create_base("village", embedder="fake", chunker=chunker, retrieval=[{"name": "keyword"}]) as made:
        made.add([tmp_path / f"{name}.txt" for name in FACTS])
        yield made


def examples(tmp_path: Path, *rows: str) -> tuple[Example, ...]:
    (tmp_path / "questions.jsonl").write_text("\n".join(rows))
    return read_questions(tmp_path / "questions.jsonl").examples


def test_by_place_chunk_and_answer(base: KnowledgeBase, tmp_path: Path) -> None:
    chunk = next(hit for hit in chunks_of(base) if "Margaret Finch" in hit.chunk.text)
    found = locate(base, examples(
        tmp_path,
        '{"question": "Who built the mill?", "answers": ["Jonathan Harrow"], "context_id": "mill"}',
        '{"question": "Who built the mill?", "answers": ["Jonathan Harrow"], "source": "elsewhere/mill.txt"}',
        f'{{"question": "Who paid?", "answers": ["Margaret Finch"], "chunk": "{chunk.chunk.id}"}}',
        '{"question": "水车由谁设计?", "answers": ["陈大文"]}',
        '{"question": "Who built the mill?", "answers": ["Peter Smith"], "context_id": "mill"}',
        '{"question": "Who flew?", "answers": [], "context_id": "mill"}',
        '{"question": "Who built it?", "answers": ["Jonathan Harrow"], "context_id": "not here"}',
    ))  # fmt: skip
    texts = [[hit.chunk.text for hit in each.gold] for each in found]
    for at, name in ((0, "Jonathan Harrow"), (2, "Margaret Finch"), (3, "陈大文")):
        assert texts[at] and all(name in text for text in texts[at])
    assert texts[1] in (texts[0], []), "a path's end is enough only where it is the same file's"
    assert texts[4:] == [[], [], []]
    assert found[5].answers == () and found[0].document == found[0].gold[0].document


def test_no_document_is_on_both_sides(base: KnowledgeBase) -> None:
    hits = {hit.document: hit for hit in chunks_of(base)}
    asked = [Asked(f"{document} {n}", ("a",), (hit,)) for document, hit in hits.items() for n in range(5)]
    learn, prove = apart(asked, 0.3, 0)
    assert {each.document for each in learn}.isdisjoint(each.document for each in prove)
    assert len(learn) + len(prove) == 20 and 6 <= len(prove) <= 10
    assert apart(asked, 0.3, 0) == (learn, prove)
    assert apart(asked, 0.99, 0)[0], "something is left to learn from"
    one = [each for each in asked if each.document == asked[0].document]
    with pytest.raises(InputError, match="cannot be cut"):
        apart(one, 0.3, 0)
