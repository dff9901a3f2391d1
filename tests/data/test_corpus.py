from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.data.corpus import documents


def test_every_text_of_a_row_in_any_format(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}], "n": 3}, {"text": "你好", "meta": {"note": ["a", "b"]}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + "not json\n")
    (tmp_path / "rows.csv").write_text("title,body\nOne,Two\n")
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write('{"text": "packed"}\n')
    found = [(Path(d.where.rpartition(":")[0]).name, d.where.rpartition(":")[2], d.text) for d in documents([tmp_path])]
    assert found == [
        ("packed.jsonl.gz", "1", "packed"),
        ("rows.csv", "2", "One\nTwo"),
        ("rows.jsonl", "1", "user\nHi"),
        ("rows.jsonl", "2", "你好\na\nb"),
    ]


def test_plain_text_comes_in_paragraphs_and_long_ones_overlap(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("first line\nsecond line\n\n\nthird\n")
    assert [(d.where.rpartition(":")[2], d.text) for d in documents([path])] == [
        ("1", "first line\nsecond line\n"),
        ("5", "third\n"),
    ]
    path.write_text("".join(f"word{i} of one very long paragraph\n" for i in range(20_000)))
    pieces = list(documents([path]))
    assert len(pieces) > 2
    for before, after in pairwise(pieces):
        assert after.text.startswith(before.text[-2000:]), "no run of words is cut in two"
    assert pieces[-1].text.endswith("word19999 of one very long paragraph\n")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(documents([tmp_path / "nothing.jsonl"]))
    with pytest.raises(DataError, match="holds no file"):
        list(documents([tmp_path]))
    with pytest.raises(DataError, match="cannot read"):
        list(documents([tmp_path / "nothing.txt"]))
