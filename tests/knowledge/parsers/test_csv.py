"""Tables in text: separators, quotes, long and ragged tables."""

from __future__ import annotations

import pytest

from luthier.knowledge.parse import parse_bytes


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_separator_is_found(mark: str) -> None:
    rows = [["part", "note"], ["bow", "long, light"], ["琴弓", "价格; 一百"]]
    data = "\n".join(mark.join(f'"{cell}"' for cell in row) for row in rows).encode()
    document = parse_bytes(data, "parts.csv")
    assert document.meta["delimiter"] == mark
    assert document.blocks[0].text.splitlines()[2:] == ["| bow | long, light |", "| 琴弓 | 价格; 一百 |"]
    assert document.blocks[0].place == "rows 1-3"


def test_long_tables_repeat_their_head_and_count_their_rows() -> None:
    data = ("part,price\n" + "".join(f"p{n},{n}\n" for n in range(2, 47))).encode()
    blocks = parse_bytes(data, "parts.csv").blocks
    assert [block.place for block in blocks] == ["rows 1-21", "rows 22-41", "rows 42-46"]
    assert all(block.text.startswith("| part | price |") for block in blocks)
    assert "| p22 | 22 |" in blocks[1].text


def test_a_very_wide_head_is_not_repeated() -> None:
    data = (",".join(f"column{n}" for n in range(5000)) + "\n" + "1,2\n" * 2000).encode()
    document = parse_bytes(data, "wide.csv")
    assert len(document.text) < 10 * len(data)
    assert document.text.count("column4999") == 1


def test_broken_quotes_and_ragged_rows_give_text() -> None:
    text = parse_bytes(b'a,b\n1,2,3,4\n"never closed,5\n6\n', "odd.csv").text
    assert "| 1 | 2 | 3 | 4 |" in text and "never closed" in text


def test_a_cell_of_a_megabyte() -> None:
    assert len(parse_bytes(b"a,b\n" + b"x" * 2**20 + b",1\n", "cell.csv").text) > 2**20
