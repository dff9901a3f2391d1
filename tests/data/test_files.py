from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.data import files
from luthier.data.files import Broken, bare_name, rows_of


def rows(path: Path) -> list[tuple[int, object]]:
    return [(line, row.reason if isinstance(row, Broken) else row) for line, row in rows_of(path)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_json_lines_with_mark_crlf_blank_lines_and_line_separator(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b\xe2\x80\xa8c"}')
    assert rows(path) == [(1, {"text": "a"}), (3, {"text": "b\u2028c"})]


def test_every_broken_line_says_what_is_wrong(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "open}',
        b'{"text": 1} trailing',
        b"[1, 2]",
        b"null",
        b'{"text": NaN}',
        b'{"text": "caf\xe9"}',
        b"[" * 100_000,
        b'{"text": "good too"}',
    ]
    found = rows(written(tmp_path, "a.jsonl", b"\n".join(lines)))
    assert [line for line, _ in found] == list(range(1, 10))
    offset = sum(len(line) + 1 for line in lines[:6]) + lines[6].index(b"\xe9")
    assert [row for _, row in found[1:8]] == [
        "invalid JSON at column 10: Unterminated string starting at",
        "invalid JSON at column 13: Extra data",
        "expected a JSON object; got a list",
        "expected a JSON object; got null",
        "invalid JSON: NaN is not a JSON value",
        f"not UTF-8: byte 0xe9 at offset {offset} of the file",
        "invalid JSON: nested too deeply",
    ]


@pytest.mark.parametrize(
    "content",
    [
        '[\n{"text": "a"},\n\n{"text": "b"}]',
        '{"version": {"data": [1]}, "data": [{"text": "a"},\n\n\n{"text": "b"}], "more": 1}',
        '{"text": "a"}\n\n\n{"text": "b"}\n',
    ],
)
def test_json_list_data_object_and_lines_under_a_wrong_name(tmp_path: Path, content: str) -> None:
    found = rows(written(tmp_path, "a.json", content))
    assert [row for _, row in found] == [{"text": "a"}, {"text": "b"}]
    assert found[1][0] == 4


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '[\n{"text": "a"},\n{"text": }]')
    with pytest.raises(DataError, match=r"a\.json:3: invalid JSON at column 10"):
        rows(path)
    with pytest.raises(DataError, match=r"a\.json:2: expected ',' or '\]'; got the end of the file"):
        rows(written(tmp_path, "a.json", '[{"text": "a"}\n'))
    with pytest.raises(DataError, match=r"got an object with the keys \['rows'\]"):
        rows(written(tmp_path, "a.json", '{"rows": [{"text": "a"}]}'))
    with pytest.raises(DataError, match="expected a list of rows"):
        rows(written(tmp_path, "a.json", '"text"'))
    with pytest.raises(DataError, match=r"a\.json:2: not UTF-8: byte 0xff at offset 12"):
        rows(written(tmp_path, "a.json", b'[\n{"text": "\xff"}]'))
    assert rows(written(tmp_path, "a.json", "[1, {}]")) == [(1, "expected a JSON object; got the number 1"), (1, {})]


def test_table_with_quotes_newlines_and_broken_rows(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbftext, label\r\n"a, ""quoted""\r\nand long",x\r\n\r\nshort\r\nb,y,z\r\nc\xff,y\r\n"d"e,y\r\nlast,"never\r\nclosed'
    assert rows(written(tmp_path, "a.csv", content)) == [
        (2, {"text": 'a, "quoted"\r\nand long', "label": "x"}),
        (5, "expected 2 columns as in the first line; got 1"),
        (6, "expected 2 columns as in the first line; got 3"),
        (7, f"not UTF-8: byte 0xff at offset {content.index(0xFF)} of the file"),
        (8, "invalid CSV: ',' expected after '\"'"),
        (9, "invalid CSV: a quote that opens here is never closed"),
    ]


@pytest.mark.parametrize("name, sign", [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_other_delimiters(tmp_path: Path, name: str, sign: str) -> None:
    path = written(tmp_path, name, f"text{sign}label\na, b{sign}x\n")
    assert rows(path) == [(2, {"text": "a, b", "label": "x"})]


def test_long_cells_and_conversations_in_cells(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "x" * 300_000}]
    cell = json.dumps(turns).replace('"', '""')
    assert rows(written(tmp_path, "a.csv", f'messages\n"{cell}"\n')) == [(2, {"messages": turns})]


def test_table_header_must_name_columns_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv:1: column 'text' occurs twice"):
        rows(written(tmp_path, "a.csv", "text,text\na,b\n"))
    with pytest.raises(DataError, match="must name the columns"):
        rows(written(tmp_path, "a.csv", "\n\n"))


def test_parquet_with_class_names_and_structures(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "messages": [[{"role": "user", "content": "q", "weight": None}], []],
            "label": [1, 7],
            "day": [__import__("datetime").date(2024, 5, 1), None],
        }
    )
    names = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [
        (1, {"messages": [{"role": "user", "content": "q"}], "label": "pos", "day": "2024-05-01"}),
        (2, {"messages": [], "label": 7, "day": None}),
    ]
    with pytest.raises(DataError, match="not a readable Parquet file"):
        rows(written(tmp_path, "b.parquet", b"PAR1 nonsense"))


def test_gzip_whole_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(b'{"text": "a"}\n{"text": "b"}\n')
    path = written(tmp_path, "a.jsonl.gz", packed)
    assert [row for _, row in rows(path)] == [{"text": "a"}, {"text": "b"}]
    assert bare_name(path) == "a"
    with pytest.raises(DataError, match="not a whole gzip file"):
        rows(written(tmp_path, "b.jsonl.gz", packed[:-9]))
    with pytest.raises(DataError, match="not a whole gzip file"):
        rows(written(tmp_path, "c.jsonl.gz", b'{"text": "not packed"}'))
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 20)
    with pytest.raises(DataError, match="unpacked it is more than 20 bytes"):
        rows(path)


def test_overlong_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10)
    with pytest.raises(DataError, match=r"a\.jsonl:1: line must be at most 10 bytes"):
        rows(written(tmp_path, "a.jsonl", '{"text": "a"}'))


def test_files_that_are_none(tmp_path: Path) -> None:
    written(tmp_path, "tickets.jsonl", "{}")
    with pytest.raises(DataError, match=r"no such file: .*tikets\.jsonl\n  did you mean .*tickets\.jsonl\?"):
        rows(tmp_path / "tikets.jsonl")
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist either"):
        rows(tmp_path / "nowhere" / "a.jsonl")
    with pytest.raises(DataError, match=r"is a directory, not a data file\n  name one of its files: tickets\.jsonl"):
        rows(tmp_path)
    with pytest.raises(DataError, match=r"a\.jsonl is empty"):
        rows(written(tmp_path, "a.jsonl", ""))
    with pytest.raises(DataError, match=r"ending must be one of \.jsonl.*got '\.docx'"):
        rows(written(tmp_path, "a.docx", "hello"))
    with pytest.raises(DataError, match="is UTF-16, expected UTF-8"):
        rows(written(tmp_path, "b.jsonl", '{"text": "a"}'.encode("utf-16")))


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    assert rows(written(tmp_path, "a.txt", b"\xef\xbb\xbfOne.\r\n\r\nTwo: {\xe4\xbd\xa0}\n")) == [
        (1, {"text": "One.\n\nTwo: {\u4f60}\n"})
    ]
    assert rows(written(tmp_path, "b.md", "# Title\n\n- text")) == [(1, {"text": "# Title\n\n- text"})]
    assert rows(written(tmp_path, "c.txt.gz", gzip.compress(b"packed"))) == [(1, {"text": "packed"})]


def test_a_very_long_text_is_cut_at_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONG_TEXT_BYTES", 10)
    content = "first line\nof one\n\nsecond\n\nthird paragraph\n"
    found = rows(written(tmp_path, "a.txt", content))
    assert found == [(1, {"text": "first line\nof one\n"}), (3, {"text": "\nsecond\n\nthird paragraph\n"})]
    assert "".join(row["text"] for _, row in found) == content  # type: ignore[index]
    lines = rows(written(tmp_path, "b.txt", "no blank\n" * 6))  # beyond twice the size a line end will do
    assert [line for line, _ in lines] == [1, 4]


@pytest.mark.parametrize(
    "content, line, reason",
    [
        (b"fine\ncaf\xe9\n", 2, "not UTF-8: byte 0xe9 at offset 8 of the file; convert the file: iconv"),
        (b"a\x00b", 1, "holds a zero byte"),
        (b" \n\t\n", 1, "holds no text, only white space"),
    ],
)
def test_plain_text_that_is_none(tmp_path: Path, content: bytes, line: int, reason: str) -> None:
    (found,) = rows(written(tmp_path, "a.txt", content))
    assert found[0] == line and reason in str(found[1])


def test_wide_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is UTF-16, expected UTF-8"):
        rows(written(tmp_path, "a.txt", "hello".encode("utf-16")))


def test_conll_files(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes(b"-DOCSTART- -X- O\n\nAda NNP B-P\nmet VBD O\n\n\nBob NNP B-P\nalone\n\nlast X O")
    assert list(rows_of(path)) == [
        (3, {"tokens": ["Ada", "met"], "tags": ["B-P", "O"]}),
        (7, Broken("line 8: expected a word and its tag; got 'alone'")),
        (10, {"tokens": ["last"], "tags": ["O"]}),
    ]
    path.write_bytes(b"a O\n\xff O\n")
    assert list(rows_of(path)) == [(1, Broken("line 2: not UTF-8: byte 0xff at offset 4 of the file"))]
