from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.scorers._words import is_unspaced, sentences, squad_normalise, squad_words, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The cat, the mat!", ["The", "cat", "the", "mat"]),
        ("GPT模型很好", ["GPT", "模", "型", "很", "好"]),
        ("ひらがなカタカナ", list("ひらがなカタカナ")),
        ("naïve café_x 42", ["naïve", "café", "x", "42"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("", []),
    ],
)
def test_words(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Cat's  hat.", "cats hat"),
        ("A theory, an atom; the end", "theory atom end"),
        ("blood–brain barrier", "blood–brain barrier"),
        ("《红楼梦》,曹雪芹。", "红楼梦曹雪芹"),
        ("The", ""),
    ],
)
def test_squads_normalisation(text: str, found: str) -> None:
    assert squad_normalise(text) == found


def test_chinese_is_cut_into_characters() -> None:
    assert squad_words("在2008年,北京") == ["在", "2008", "年", "北", "京"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Dr. Smith paid $3.50 to the U.S. government. He left.", 2),
        ("Version 2.0 is out. See e.g. the notes.", 2),
        ("今天很热。你好吗?我很好!", 3),
        ("他说:“今天很热。”然后走了。", 2),
        ("No stop at all", 1),
        ("", 0),
        ("\n\n", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count


@given(st.text())
def test_cutting_loses_only_separators(text: str) -> None:
    assert all(word and not word.isspace() for word in words(text))
    assert "".join("".join(sentences(text)).split()) == "".join(text.split()) or is_unspaced(text)
