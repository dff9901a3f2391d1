"""Plain text: paragraphs with their lines, in any encoding."""

from __future__ import annotations

import time

import pytest

from luthier.core.errors import DataError
from luthier.knowledge.parse import parse_bytes

ENGLISH = "The parcel was déjà vu: “quoted” – and naïve façades cost 5 €."
CHINESE = "小提琴的面板用云杉制成,背板用枫木制成。琴弦的张力很大,所以琴码必须结实。"
JAPANESE = "バイオリンの表板はスプルースで作られ、裏板はメープルで作られます。とても美しい音がします。"
KOREAN = "바이올린의 앞판은 가문비나무로 만들고 뒤판은 단풍나무로 만든다. 소리가 매우 아름답다."
RUSSIAN = "Верхняя дека скрипки делается из ели, а нижняя из клёна. Звук у неё очень красивый."


def test_paragraphs_and_their_lines() -> None:
    document = parse_bytes("one\ntwo\r\n\r\n\t\nthree\n\n\n四\n".encode(), "notes.txt")
    assert [(block.text, block.place) for block in document.blocks] == [
        ("one\ntwo", "lines 1-2"),
        ("three", "line 5"),
        ("四", "line 8"),
    ]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", CHINESE), ("utf-8-sig", CHINESE), ("utf-16", CHINESE), ("utf-32", CHINESE), ("gb18030", CHINESE),
        ("gb18030", f"Violin: {CHINESE}"), ("gb18030", f"{'a line of code; ' * 20}\n{CHINESE}"), ("cp1252", ENGLISH),
        ("utf-16-le", "plain letters without a mark"), ("utf-16-be", "plain letters without a mark"),
        ("cp1251", RUSSIAN), ("euc_kr", KOREAN), ("euc_jp", JAPANESE), ("shift_jis", JAPANESE),
    ],
)  # fmt: skip
def test_encodings(encoding: str, text: str) -> None:
    assert parse_bytes(text.encode(encoding), "notes.txt").text == text


def test_a_cut_character_does_not_cost_the_text() -> None:
    assert CHINESE[:-2] in parse_bytes((CHINESE * 20).encode("gb18030")[:-1], "cut.txt").text


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"noise\.txt is not text, and no format that can be parsed"):
        parse_bytes(bytes(range(256)) * 10, "noise.txt")


@pytest.mark.parametrize("name", ["long.txt", "long.py", "long.csv", "long.md"])
@pytest.mark.parametrize("unit", [" ", "\n", "\t", "\n \n", "a", "- "])
def test_long_runs_of_one_thing_are_quick(name: str, unit: str) -> None:
    data = ("x\n" + unit * 100_000 + "\n  y").encode()
    started = time.perf_counter()
    assert "y" in parse_bytes(data, name).text
    assert time.perf_counter() - started < 10
