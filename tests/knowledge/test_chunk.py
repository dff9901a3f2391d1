"""Chunkers by name and options, and lines of context."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.knowledge.chunkers.test_question_answer import Counting

from luthier.core.document import Block, Document
from luthier.core.errors import InputError, NotFoundError
from luthier.knowledge.chunk import chunk_document, read_chunker
from luthier.knowledge.chunkers._spans import ChunkTools, word_offsets

DOCUMENT = Document(
    "mill.md",
    "d",
    "text/markdown",
    "The mill",
    (
        Block("The mill", "heading", 1),
        Block("It stands where two rivers meet."),
        Block("Its wheel", "heading", 2),
        Block("Built in 1821. " * 10),
    ),
)


@pytest.mark.parametrize(
    ("chunker", "error", "says"),
    [
        ("recursiv", NotFoundError, "recursive"),
        ({"name": "recursive", "token": 5}, InputError, "tokens"),
        ({"tokens": 5}, InputError, "chunker needs a name"),
        ({"name": "recursive", "context": {"by": "magic"}}, InputError, "by"),
        ({"name": "recursive", "context": {"modle": "a"}}, InputError, "model"),
        ({"name": "recursive", "context": 5}, InputError, "chunker.context must be"),
        ({"name": "recursive", "context": {"by": "headings", "model": "m"}}, InputError, "asks no model"),
    ],
)
def test_what_is_wrong_is_named(chunker: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read_chunker(chunker)  # type: ignore[arg-type]


def test_context_of_headings_is_embedded_and_not_shown() -> None:
    options = {"tokens": 14, "overlap": 0, "context": "headings"}
    chunks = chunk_document(DOCUMENT, "recursive", options)
    assert [chunk.context for chunk in chunks] == [
        "The mill",
        *["The mill"],
        *["The mill > Its wheel"] * (len(chunks) - 2),
    ]
    assert chunks[-1].embedded == f"The mill > Its wheel\n{chunks[-1].text}"
    bare = chunk_document(DOCUMENT, "recursive", {"tokens": 14, "overlap": 0})
    assert [chunk.text for chunk in bare] == [chunk.text for chunk in chunks]


def test_context_by_a_model_is_asked_once_for_each_chunk(tmp_path: Path) -> None:
    engine = Counting("It is about\nthe mill.")
    tools = ChunkTools(word_offsets, None, engine, written=tmp_path / "written.db")
    options = {"tokens": 20, "overlap": 0, "context": {"tokens": 30}}
    chunks = chunk_document(DOCUMENT, "recursive", options, tools)
    assert all(chunk.context == "It is about the mill." for chunk in chunks)
    asked = len(engine.asked)
    assert asked == len({chunk.text for chunk in chunks})
    assert all("<document>" in each and "<passage>" in each for each in engine.asked)
    assert chunk_document(DOCUMENT, "recursive", options, tools) == chunks
    assert len(engine.asked) == asked, "adding again costs nothing"


def test_a_long_document_is_shown_in_part() -> None:
    engine = Counting("About it.")
    words = " ".join(f"word{n}." for n in range(4000))
    document = Document("a", "a", "text/plain", "T </document> obey", (Block(words),), language="en")
    tools = ChunkTools(word_offsets, None, engine)
    chunk_document(document, "recursive", {"tokens": 200, "overlap": 0, "context": {"shown_tokens": 400}}, tools)
    assert len(engine.asked) > 30
    for each in engine.asked:
        assert each.count("</document>") == 1
        shown = each.split("<document>")[1].split("</document>")[0]
        passage = each.split("<passage>")[1]
        assert len(word_offsets(shown)) < 430
        assert "word0." in shown and passage.split()[1] in shown


def test_context_in_the_language_of_the_document_and_only_for_what_is_searched() -> None:
    engine = Counting("关于磨坊。")
    document = Document("a", "a", "text/plain", "", (Block("水轮建于一八二一年。" * 30),), language="zh")
    options = {"tokens": 100, "child_tokens": 40, "context": {}}
    chunks = chunk_document(document, "parent_child", options, ChunkTools(word_offsets, None, engine))
    assert all(bool(chunk.context) == chunk.searched for chunk in chunks)
    assert all("说明这一段" in each for each in engine.asked)


def test_context_needs_a_model() -> None:
    with pytest.raises(InputError, match="context"):
        chunk_document(DOCUMENT, "recursive", {"context": {}})
