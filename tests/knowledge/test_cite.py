"""Marks in answers, and the sentences that they rest on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.document import Chunk, Hit
from luthier.knowledge.cite import Marks, attributed, cite, clean, numbers_in, overlap, quote, statements


@pytest.mark.parametrize(
    ("text", "cleaned", "cited"),
    [
        ("A [1].", "A [1].", [1]),
        ("A [2, 3] B [1].", "A [2, 3] B [1].", [2, 3, 1]),
        ("A [1-3].", "A [1, 2, 3].", [1, 2, 3]),
        ("A [1–2]。", "A [1, 2]。", [1, 2]),
        ("甲【1】乙［2］。", "甲[1]乙[2]。", [1, 2]),
        ("甲[1、3]乙。", "甲[1, 3]乙。", [1, 3]),
        ("A 【2:0†source】.", "A [2].", [2]),
        ("A [Passage 2].", "A [2].", [2]),
        ("甲[段落3]。", "甲[3]。", [3]),
        ("A [9].", "A.", []),
        ("A [0] [4] [1, 9].", "A [1].", [1]),
        ("A [1][2][1].", "A [1][2][1].", [1, 2]),
        ("Use `a[1]` and ```\nb[2]\n``` [3].", "Use `a[1]` and ```\nb[2]\n``` [3].", [3]),
        ("See [link](x) [a] [] [1", "See [link](x) [a] [] [1", []),
        ("A [[1]].", "A [[1]].", [1]),
        ("[1\n] no", "[1\n] no", []),
        ("tail `[1]", "tail `[1]", []),
        ("x  [7] y", "x y", []),
    ],
)
def test_marks(text: str, cleaned: str, cited: list[int]) -> None:
    assert clean(text, 3) == (cleaned, cited)


@given(st.text(alphabet="ab `[]【】1239,-:† \n。", max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_pieces_make_no_difference(text: str, cuts: list[int]) -> None:
    whole, cited = clean(text, 3)
    marks, out, last = Marks(3), "", 0
    for cut in sorted(cuts):
        out += marks.feed(text[last:cut])
        last = max(last, cut)
    out += marks.feed(text[last:]) + marks.end()
    assert (out, marks.cited) == (whole, cited)
    assert clean(whole, 3)[1] == cited  # what is left has the same marks


@given(st.text(alphabet="ab [(,.\n", max_size=40))
def test_text_without_marks_stays(text: str) -> None:
    assert clean(text, 3) == (text, [])


@pytest.mark.parametrize(
    ("mark", "numbers"),
    [
        ("2", [2]),
        ("1,1, 2", [1, 2]),
        ("1-3, 7", [1, 2, 3, 7]),
        ("3-1", [3, 1]),
        ("1-9999", [1, 9999]),
        ("1和2", [1, 2]),
    ],
)
def test_numbers(mark: str, numbers: list[int]) -> None:
    assert numbers_in(mark) == numbers


def test_each_statement_has_its_marks() -> None:
    text = "Paris is the capital. [1] It lies on the Seine [2, 3]. Nobody knows why."
    assert statements(text) == [
        ("Paris is the capital .", (1,)),
        ("It lies on the Seine .", (2, 3)),
        ("Nobody knows why.", ()),
    ]


@pytest.mark.parametrize(
    ("passage", "statement", "best"),
    [
        (
            "Cats sleep a lot. The capital of France is Paris. Dogs bark.",
            "Paris is France's capital",
            "The capital of France is Paris.",
        ),
        ("公司成立于1998年。年假每年十五天。食堂免费。", "员工每年有十五天年假", "年假每年十五天。"),
        ("Cats sleep a lot. Dogs bark.", "Quantum physics is hard", ""),
        ("", "anything", ""),
        ("Only this sentence here.", "", ""),
    ],
)
def test_the_quote_is_the_sentence_that_says_so(passage: str, statement: str, best: str) -> None:
    assert quote(passage, statement) == best


def test_overlap_is_between_0_and_1_and_1_for_a_part() -> None:
    assert overlap("is Paris", "The capital is Paris today") == 1.0
    assert overlap("", "x") == overlap("x", "") == 0.0
    assert 0.0 < overlap("the capital of Spain", "the capital of France") < 1.0


def test_citations_point_to_their_hits_in_order_of_first_use() -> None:
    hits = [
        Hit(Chunk(f"c{n}", text, n, (n, n)), "d", "f")
        for n, text in enumerate(["Red is warm.", "Blue is cold. Ice is blue."])
    ]
    found = cite("Ice is blue [2]. Red is warm [1]. [5]", hits)
    assert [(each.number, each.hit.chunk.id, each.quote) for each in found] == [
        (2, "c1", "Ice is blue."),
        (1, "c0", "Red is warm."),
    ]


def test_an_answer_without_marks_is_attributed_to_what_it_repeats() -> None:
    hits = [
        Hit(Chunk(f"c{n}", text, n, (n, n)), "d", "f")
        for n, text in enumerate(["Bread is baked here. Red is warm.", "Ice is very blue. 年假每年十五天。"])
    ]
    found = attributed("Ice is blue. Nobody knows anything else about it. Yes.", hits)
    assert [(each.number, each.quote) for each in found] == [(2, "Ice is very blue.")]
    assert [(each.number, each.quote) for each in attributed("年假是每年十五天。", hits)] == [(2, "年假每年十五天。")]
    assert (
        attributed("Quantum physics is a hard field of study.", hits)
        == attributed("Ice.", hits)
        == attributed("Ice is blue.", [])
        == ()
    )
