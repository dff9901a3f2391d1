"""What every chunker must do, with every document and tokenizer."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.knowledge.chunkers.documents import DOCUMENTS, TOKENIZERS, tools_of
from tokenizers import Tokenizer

from luthier.core import catalog
from luthier.core.document import Block, Chunk, Document
from luthier.core.errors import InputError
from luthier.knowledge.chunk import chunk_document
from luthier.knowledge.chunkers._spans import ChunkTools

CHUNKERS = catalog.names("chunkers")
SMALL = {"parent_child": {"tokens": 40, "child_tokens": 12}}


def small(name: str) -> dict[str, int]:
    return SMALL.get(name, {"tokens": 24})


def solid(text: str) -> Counter[str]:
    """Characters that are not white space."""
    return Counter(character for character in text if not character.isspace())


def check(document: Document, chunks: list[Chunk], tokenizer: Tokenizer, most: int) -> None:
    shown = "".join(chunk.text for chunk in chunks if not chunk.question)
    lost = solid("".join(block.text for block in document.blocks)) - solid(shown)
    assert not lost, f"lost {lost}"
    for number, chunk in enumerate(chunks):
        assert chunk.number == number
        assert chunk.text.strip() and chunk.text == chunk.text.rstrip()
        alone = len(
            [span for span in tokenizer.encode(chunk.text, add_special_tokens=False).offsets if span[1] > span[0]]
        )
        assert alone <= most, chunk.text
        assert chunk.question or chunk.tokens >= alone
        first, last = chunk.blocks
        assert 0 <= first <= last < len(document.blocks)
        pages = [block.page for block in document.blocks[first : last + 1] if block.page and block.text.strip()]
        assert chunk.pages == ((min(pages), max(pages)) if pages else None)
    ids = [chunk.id for chunk in chunks]
    assert len(set(ids)) == len(ids)
    assert {chunk.parent for chunk in chunks if chunk.parent} <= set(ids)


@pytest.mark.parametrize("name", CHUNKERS)
@pytest.mark.parametrize("which", sorted(DOCUMENTS))
def test_nothing_is_lost_and_nothing_is_too_long(
    name: str, which: str, tokenizer: Tokenizer, tools: ChunkTools
) -> None:
    document = DOCUMENTS[which]
    chunks = chunk_document(document, name, small(name), tools)
    check(document, chunks, tokenizer, small(name)["tokens"])
    assert bool(chunks) == bool(document.text.strip())
    assert chunks == chunk_document(document, name, small(name), tools), "the same again"


@pytest.mark.parametrize("name", CHUNKERS)
def test_ids_differ_between_options_and_documents(name: str, tools: ChunkTools) -> None:
    document = DOCUMENTS["english"]
    other = Document("b.md", "another digest", "text/markdown", blocks=document.blocks)
    options = small(name)
    more = {**options, "tokens": options["tokens"] + 20}
    seen = [
        chunk_document(*each, tools=tools)
        for each in ((document, name, options), (document, name, more), (other, name, options))
    ]
    ids = [chunk.id for chunks in seen for chunk in chunks]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", [n for n in CHUNKERS if n not in ("clustered", "question_answer")])
def test_chunks_are_in_the_order_of_the_document(name: str, tools: ChunkTools) -> None:
    chunks = [c for c in chunk_document(DOCUMENTS["english"], name, small(name), tools) if c.searched]
    assert all(one.blocks <= two.blocks for one, two in pairwise(chunks))


@pytest.mark.parametrize("name", CHUNKERS)
def test_headings_are_those_above(name: str, tools: ChunkTools) -> None:
    document = DOCUMENTS["english"]
    for chunk in chunk_document(document, name, small(name), tools):
        above = {0: (), 1: ("The mill",), 2: ("The mill",), 3: ("The mill", "Its wheel"), 4: ("The mill",)}
        assert chunk.headings == above.get(chunk.blocks[0], ("The mill", "Its owners"))


@pytest.mark.parametrize("name", [n for n in CHUNKERS if n not in ("fixed", "code", "clustered")])
def test_each_part_of_a_table_has_its_header(name: str, tools: ChunkTools) -> None:
    chunks = [c for c in chunk_document(DOCUMENTS["table"], name, {**small(name), "tokens": 120}, tools) if c.searched]
    parts = [chunk for chunk in chunks if "| screw" in chunk.text]
    if name == "parent_child":
        parts = [
            c
            for c in chunk_document(DOCUMENTS["table"], name, {"tokens": 120, "child_tokens": 100}, tools)
            if "| screw" in c.text
        ]
    assert len(parts) > 3
    for part in parts:
        assert "| part | price | place |\n| --- | ---: | --- |\n" in part.text
        assert part.place == "sheet Prices!A1:C61" or part.blocks != (1, 1)
        rows = [line for line in part.text.splitlines() if line.startswith("| screw")]
        assert all(line.endswith("|") and line.count("|") == 4 for line in rows), "rows are whole"


def test_all_rows_of_a_table_once(tools: ChunkTools) -> None:
    chunks = chunk_document(DOCUMENTS["table"], "recursive", {"tokens": 120, "overlap": 0}, tools)
    rows = [line for chunk in chunks for line in chunk.text.splitlines() if line.startswith("| screw")]
    assert rows == DOCUMENTS["table"].blocks[1].text.splitlines()[2:]


@pytest.mark.parametrize("name", ["recursive", "fixed", "heading", "page", "parent_child"])
def test_overlap_is_the_end_of_the_one_before(name: str, tools: ChunkTools) -> None:
    document = Document("a.txt", "o1", "text/plain", blocks=(Block(DOCUMENTS["english"].blocks[1].text * 4),))
    parts = [
        c for c in chunk_document(document, name, {**small(name), "tokens": 60, "overlap": 20}, tools) if not c.parent
    ]
    repeated = [shared(one.text, two.text) for one, two in pairwise(parts)]
    assert len(parts) > 3
    assert all(len(tools.offsets(text)) <= 22 for text in repeated)  # a word alone may have other tokens than in a text
    assert sum(bool(text) for text in repeated) > 0.7 * len(repeated)
    none = [
        c for c in chunk_document(document, name, {**small(name), "tokens": 60, "overlap": 0}, tools) if not c.parent
    ]
    assert solid("".join(c.text for c in none)) == solid(document.text), "without overlap nothing is there twice"


def shared(one: str, two: str) -> str:
    """The longest end of ``one`` that ``two`` begins with."""
    return next((one[-n:] for n in range(min(len(one), len(two)), 0, -1) if two.startswith(one[-n:])), "")


@pytest.mark.parametrize("name", ["recursive", "fixed", "heading", "page", "parent_child"])
def test_too_much_overlap_is_refused(name: str, tools: ChunkTools) -> None:
    with pytest.raises(InputError, match="overlap must be at most half of tokens"):
        chunk_document(DOCUMENTS["english"], name, {**small(name), "tokens": 40, "overlap": 21}, tools)


@pytest.mark.parametrize("name", ["semantic", "clustered", "question_answer"])
def test_what_is_needed_and_not_there_is_named(name: str) -> None:
    tools = ChunkTools(tools_of(TOKENIZERS["wordpiece"]).offsets)
    with pytest.raises(InputError, match=f"chunker {name}"):
        chunk_document(DOCUMENTS["english"], name, {"tokens": 24}, tools)


kinds = st.sampled_from(["paragraph", "heading", "list", "table", "code", "quote", "caption"])
texts = st.lists(
    st.sampled_from(["word ", "另一个句子。", "End. ", "\n", "\n\n", "| a | b |\n", "| --- | --- |\n", "\u200b", "  ", "x" * 90, "é", "👩‍👧", "?\n", "Q: why?\n"]),
    max_size=60,
).map("".join)  # fmt: skip
blocks = st.builds(
    Block, texts, kinds, st.integers(1, 6), st.one_of(st.none(), st.integers(1, 4)),
    st.sampled_from(["", "line 3", "lines 4-9", "sheet A!B1"]),
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(blocks, max_size=8), st.sampled_from(sorted(TOKENIZERS)), st.integers(8, 40))
def test_any_document(made: list[Block], which: str, tokens: int) -> None:
    document = Document("h.txt", "h", "text/plain", blocks=tuple(made))
    tools = tools_of(TOKENIZERS[which])
    for name in CHUNKERS:
        options = {"tokens": max(tokens, 18), "child_tokens": 9} if name == "parent_child" else {"tokens": tokens}
        chunks = chunk_document(document, name, options, tools)
        check(document, chunks, TOKENIZERS[which], options["tokens"])
