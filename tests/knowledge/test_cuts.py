"""Chunks to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import InputError
from luthier.knowledge.base import create_base
from luthier.knowledge.cuts import cut_base, cut_file, shared

TEXT = (
    "# Mill\n\n" + " ".join(f"Sentence number {n} stands here." for n in range(60)) + "\n\n## Wheel\n\n水轮在这里。\n"
)


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ("it grinds corn.", "corn. It stops.", 5),
        ("aaaa", "aaaaab", 4),
        ("abcabcabd", "abcabdabcab", 6),
        ("水轮在这里转动", "在这里转动着", 5),
        ("same text", "same text", 9),
        ("long same text", "same text", 9),
        ("nothing", "else", 0),
        ("ends in a", "a begins", 0),
        ("", "anything", 0),
        ("anything", "", 0),
    ],
)
def test_what_is_shared(one: str, two: str, expected: int) -> None:
    assert shared(one, two) == expected


def test_what_is_shared_is_the_longest_end() -> None:
    import random

    draw = random.Random(0)
    for _ in range(300):
        one, two = ("".join(draw.choice("ab") for _ in range(draw.randint(0, 14))) for _ in range(2))
        slow = max((n for n in range(min(len(one), len(two)) + 1) if n == 0 or one[-n:] == two[:n]), default=0)
        assert shared(one, two) == (slow if slow >= 4 else 0), (one, two)


def test_a_file_and_a_base_of_it_are_cut_alike(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "mill.md"
    path.write_text(TEXT)
    chunker = {"name": "recursive", "tokens": 60, "overlap": 15}
    alone = cut_file(path, chunker, embedder="fake")
    with create_base("mill", embedder="fake", chunker=chunker) as base:
        base.add([path])
    kept = cut_base("mill")
    assert [each.chunk.text for each in kept.chunks] == [each.chunk.text for each in alone.chunks]
    assert [each.overlap for each in kept.chunks] == [each.overlap for each in alone.chunks]
    assert cut_base("mill", "mill.md").chunks == cut_base("mill", str(path)).chunks == kept.chunks
    repeated = [each.chunk.text[: each.overlap] for each in kept.chunks if each.overlap]
    assert repeated and all(text.startswith("Sentence number") for text in repeated)
    with pytest.raises(InputError, match=r"mill has no document 'none\.md'"):
        cut_base("mill", "none.md")


def test_sizes_are_those_of_the_chunks(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "mill.md"
    path.write_text(TEXT)
    found = cut_file(path, {"name": "parent_child", "tokens": 100, "child_tokens": 20}, embedder="fake")
    sizes = found.sizes
    counts = sorted(each.chunk.tokens for each in found.chunks if each.chunk.searched)
    assert (sizes.least, sizes.most, sizes.tokens) == (counts[0], counts[-1], sum(counts))
    assert counts[(len(counts) - 1) // 2] <= sizes.median <= counts[len(counts) // 2]
    assert sum(count for _, _, count in sizes.bins) == sizes.searched == len(counts) < sizes.chunks
    assert sizes.bins[0][0] == counts[0] and sizes.bins[-1][1] > counts[-1]


def test_an_empty_file(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(" \n")
    assert cut_file(path, "fixed", embedder="fake").sizes.chunks == 0


def test_chunkers_that_compare_and_write_get_their_models(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "mill.md"
    path.write_text(TEXT)
    assert len(cut_file(path, {"name": "semantic", "tokens": 60}, embedder="fake").chunks) > 3
    options = {"name": "recursive", "context": {"model": "fake"}}
    assert all(each.chunk.context for each in cut_file(path, options, embedder="fake").chunks)
    with pytest.raises(InputError, match="context has a model write"):
        cut_file(path, {"name": "recursive", "context": {}}, embedder="fake")


def test_a_base_whose_chunks_have_context_finds_them_by_it(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "mill.md"
    path.write_text("# Harrow\n\nIt stands where two rivers meet.\n")
    with create_base("with", embedder="fake", chunker={"name": "recursive", "context": "headings"}) as base:
        base.add([path])
        assert base.record.chunker["context"] == "headings"
        found = base.search("Harrow", 1, retrieval=[{"name": "keyword"}])
        assert found[0].chunk.context == "Harrow"
    with create_base(
        "by", embedder="fake", chunker={"name": "recursive", "context": {}}, answer={"model": "fake"}
    ) as base:
        report = base.add([path])
        assert not report.failed and cut_base("by").chunks[0].chunk.context
