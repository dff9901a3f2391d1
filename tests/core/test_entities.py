from __future__ import annotations

import pytest

from luthier.core.entities import Entity, answer_text, counts_by_type, from_answer, overlapping, spans_of_tags


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-A I-A O B-B", [(1, 3, "A"), (4, 5, "B")]),
        ("B-A B-A I-A", [(0, 1, "A"), (1, 3, "A")]),
        ("I-A I-B O I-B", [(0, 1, "A"), (1, 2, "B"), (3, 4, "B")]),  # conlleval: nothing opened them, so they open
        ("S-A B-A E-A E-A U-B L-B", [(0, 1, "A"), (1, 3, "A"), (3, 4, "A"), (4, 5, "B"), (5, 6, "B")]),
        ("B-A-B I-A-B", [(0, 2, "A-B")]),
        ("", []),
    ],
)
def test_spans_of_tags(tags: str, spans: list[tuple[int, int, str]]) -> None:
    assert spans_of_tags(tags.split()) == spans


@pytest.mark.parametrize("tag", ["PERSON", "B-", "X-A", "3"])
def test_other_tags_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="is not O, B-TYPE or I-TYPE"):
        spans_of_tags(["O", tag])


def test_an_answer_reads_back() -> None:
    entities = [Entity(4, 6, "B"), Entity(0, 3, "A")]
    text = answer_text("Ada in", entities)
    assert text.startswith('[{"type": "A", "start": 0, "end": 3, "text": "Ada"}')
    assert from_answer(text) == sorted(entities)


def test_counts_and_overlaps() -> None:
    gold, said = [Entity(0, 3, "A"), Entity(4, 6, "B")], [Entity(0, 3, "A"), Entity(0, 3, "A"), Entity(4, 6, "A")]
    assert counts_by_type(gold, said) == {"A": (1, 1, 2), "B": (0, 1, 0)}
    assert overlapping(gold) is None
    assert overlapping([Entity(5, 6, "B"), Entity(0, 9, "A"), Entity(1, 2, "C")]) == (
        Entity(0, 9, "A"),
        Entity(1, 2, "C"),
    )
