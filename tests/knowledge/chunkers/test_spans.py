"""Places to cut, lines, pages and sentences."""

from __future__ import annotations

import itertools

import pytest

from luthier.core.document import Block, Document
from luthier.knowledge.chunk import chunk_document
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, sentence_starts, word_offsets


def of(*blocks: Block) -> Document:
    return Document("a.txt", "a", "text/plain", blocks=blocks)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ("Dr. Harrow met J. Finch in the U.S. Army. It rained.", ["Dr. Harrow met J. Finch in the U.S. Army. ", "It rained."]),
        ('He said "Stop." Then he left.', ['He said "Stop." ', "Then he left."]),
        ("Version 2.5 is out, e.g. today. fine", ["Version 2.5 is out, e.g. today. fine"]),
        ("他来了。“走吧!”她说。然后呢?", ["他来了。", "“走吧!”她说。", "然后呢?"]),
        ("价格是3.5元;很便宜。OK? 好。", ["价格是3.5元;很便宜。", "OK? ", "好。"]),
        ("no end", ["no end"]),
    ],
)  # fmt: skip
def test_sentences(text: str, sentences: list[str]) -> None:
    starts = sentence_starts(text)
    assert [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])] == sentences


def test_the_best_place_in_the_second_half_is_taken() -> None:
    section = [
        Block("Mill", "heading", 1),
        Block("one two three four five six."),
        Block("Wheel", "heading", 1),
        Block("seven eight nine ten. " * 3),
    ]
    chunks = chunk_document(of(*section), "recursive", {"tokens": 14, "overlap": 0})
    assert chunks[0].text == "Mill\n\none two three four five six.", "before a heading"
    chunks = chunk_document(
        of(Block("a b c d e f g. H i j k l m n o p q r s t")), "recursive", {"tokens": 12, "overlap": 0}
    )
    assert chunks[0].text == "a b c d e f g.", "after a sentence"
    chunks = chunk_document(
        of(Block("a b c d e f g h i j k l 1,000,000 m n o p")), "recursive", {"tokens": 15, "overlap": 0}
    )
    assert chunks[0].text.endswith("l"), "not in a number"


def test_a_heading_is_not_left_behind() -> None:
    blocks = (Block("one two three four five six seven eight nine."), Block("Wheel", "heading", 1), Block("ten " * 12))
    chunks = chunk_document(of(*blocks), "recursive", {"tokens": 12, "overlap": 0})
    assert chunks[0].text.endswith("nine.") and chunks[1].text.startswith("Wheel\n\nten")


def test_lines_are_those_of_the_file() -> None:
    text = "\n".join(f"line {n} of it" for n in range(10, 30))
    chunks = chunk_document(
        of(Block("first", place="line 8"), Block(text, place="lines 10-29")), "code", {"tokens": 20}
    )
    for chunk in chunks:
        numbers = [int(word) for word in chunk.text.split() if word.isdigit()]
        if "first" not in chunk.text:
            assert chunk.place == (f"lines {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"line {numbers[0]}")
    assert chunks[0].place.startswith("line")
    assert (
        chunk_document(of(Block("a", place="sheet A!A1"), Block("b", place="sheet B!A1")), "recursive")[0].place
        == "sheet A!A1 to sheet B!A1"
    )


def test_pages_are_kept_apart() -> None:
    document = of(*(Block(f"words of page {page}", page=page) for page in (1, 1, 2, 3)), Block("no page"))
    chunks = chunk_document(document, "page")
    assert [chunk.pages for chunk in chunks] == [(1, 1), (2, 2), (3, 3), None]


def test_sections_with_their_headings_and_short_ones_together() -> None:
    blocks = [Block("Book", "heading", 1)]
    for n in range(3):
        blocks += [Block(f"Part {n}", "heading", 2), Block(f"word{n} " * 20)]
    apart = chunk_document(of(*blocks), "heading", {"tokens": 60, "join_under": 0})
    assert [chunk.text.split("\n")[0] for chunk in apart] == ["Book", "Part 0", "Part 1", "Part 2"]
    assert [chunk.headings for chunk in apart] == [(), ("Book",), ("Book",), ("Book",)]
    joined = chunk_document(of(*blocks), "heading", {"tokens": 60, "join_under": 30})
    assert [chunk.text.count("Part") for chunk in joined] == [2, 1]


def test_code_is_cut_before_the_line_that_is_indented_least() -> None:
    body = "".join(f"        step({n})\n" for n in range(6))
    source = "".join(f"class A{n}:\n    def go(self):\n{body}" for n in range(5))
    chunks = chunk_document(of(Block(source.rstrip(), "code", place="lines 1-40")), "code", {"tokens": 50})
    assert len(chunks) == 5 and all(chunk.text.startswith("class A") for chunk in chunks)
    inner = chunk_document(of(Block("    indented = 1\n    more = 2", "code")), "code")
    assert inner[0].text.startswith("    indented"), "indentation stays"


def test_the_time_grows_with_the_text_and_not_with_its_square() -> None:
    """Counted in characters that are read by the tokenizer: no clock."""

    def read(times: int) -> int:
        seen = 0

        def offsets(text: str) -> list[tuple[int, int]]:
            nonlocal seen
            seen += len(text)
            return word_offsets(text)

        blocks = [
            Block("Part", "heading", 2),
            Block("The wheel turns. It grinds corn, slowly. " * 20, place="lines 3-9"),
        ] * times
        for name in ("recursive", "fixed", "sentence", "heading", "code", "page", "parent_child"):
            chunk_document(of(*blocks), name, tools=ChunkTools(offsets))
        return seen

    assert read(80) < 4.5 * read(20)


def test_words_of_a_long_run_without_tokens_are_counted() -> None:
    joined = Joined(of(Block("x" * 1000)), ChunkTools(lambda text: [(0, len(text))]))
    assert len(joined.tokens) == 250
    assert all(end - start <= 40 for start, end, _ in joined.cut(joined.whole, 10))
