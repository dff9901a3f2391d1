from __future__ import annotations

from pathlib import Path

import pytest
from tests.apps.sql.conftest import digest

from luthier.apps.sql.connect import connect
from luthier.core.errors import InputError

CHINESE = "城市,人口,成立\n北京,2154,1949-10-01\n上海,2424,1949-05-27\n"


def columns(path: Path, table: str) -> list[tuple[str, str]]:
    with connect(path) as database:
        found = database.schema().table(table)
        assert found is not None
        return [(column.name, column.type) for column in found.columns]


def rows(path: Path | str, sql: str) -> tuple[tuple[object, ...], ...]:
    with connect(path) as database:
        return database.run(sql).rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_csv_in_the_encodings_of_chinese_spreadsheets(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "城市表.csv"
    path.write_bytes(CHINESE.encode(encoding))
    before = digest(path)
    assert [name for name, _ in columns(path, "城市表")] == ["城市", "人口", "成立"]
    assert rows(path, 'SELECT "城市", "人口" FROM "城市表" ORDER BY "人口"') == (("北京", 2154), ("上海", 2424))
    assert rows(path, 'SELECT max(extract(year FROM "成立")) FROM "城市表"') == ((1949,),)
    assert digest(path) == before


def test_a_header_is_seen_where_every_column_is_text(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text("name,town\nAda,Oslo\nBo,Bergen\n", encoding="utf-8")
    assert columns(path, "people") == [("name", "VARCHAR"), ("town", "VARCHAR")]


def test_types_are_sniffed_and_a_late_surprise_becomes_text(tmp_path: Path) -> None:
    path = tmp_path / "mixed.csv"
    path.write_text("id;when;code\n" + "".join(f"{n};2026-01-02;{n}\n" for n in range(30_000)) + "7;2026-01-03;A7\n")
    assert columns(path, "mixed") == [("id", "BIGINT"), ("when", "DATE"), ("code", "VARCHAR")]
    assert rows(path, "SELECT count(*) FROM mixed WHERE code = 'A7'") == ((1,),)


def test_a_folder_of_files_is_a_database(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "a[1]*.csv").write_text("x,y\n1,2\n", encoding="utf-8")
    (tmp_path / "a-1.tsv").write_text("x\ty\n3\t4\n", encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text('{"k": 1, "v": "p"}\n{"k": 2, "v": "q"}\n', encoding="utf-8")
    (tmp_path / "ignored.txt").write_text("no table", encoding="utf-8")
    parquet.write_table(pa.table({"k": [1, 2], "名": ["甲", "乙"]}), tmp_path / "names.parquet")
    with connect(tmp_path) as database:
        assert {table.name for table in database.schema().tables} == {"a_1", "a_1_2", "lines", "names"}
        joined = database.run('SELECT v, "名" FROM lines JOIN names USING (k) ORDER BY v')
        assert joined.rows == (("p", "甲"), ("q", "乙"))


def test_several_files_by_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"{name}\n1\n", encoding="utf-8")
    assert rows(f"{tmp_path}/a.csv, {tmp_path}/b.csv", "SELECT a.a + b.b FROM a, b") == ((2,),)


def test_each_sheet_of_a_workbook_is_a_table(tmp_path: Path) -> None:
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    first = book.active
    assert first is not None
    first.title = "销售 2026"
    for row in (
        ["产品", "金额", "日期", None],
        [],
        ["笔", 2.5, datetime.date(2026, 1, 2), 1],
        ["杯", 4, datetime.date(2026, 1, 3), "x"],
    ):
        first.append(row)
    second = book.create_sheet("Costs")
    for values in (["item", "item", "cost"], ["pen", "p", 1], ["cup", "c", None]):
        second.append(values)
    book.create_sheet("empty")
    book.save(tmp_path / "shop.xlsx")
    before = digest(tmp_path / "shop.xlsx")
    with connect(tmp_path / "shop.xlsx") as database:
        assert {table.name for table in database.schema().tables} == {"shop_销售_2026", "shop_Costs"}
        assert database.run('SELECT sum("金额"), max("column_4") FROM "shop_销售_2026"').rows == ((6.5, "x"),)
        assert database.run('SELECT "item_2", cost FROM "shop_Costs" WHERE cost = 1').rows == (("p", 1),)
    assert digest(tmp_path / "shop.xlsx") == before


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.csv", b""),
        ("broken.parquet", b"PAR1 nothing"),
        ("broken.xlsx", b"PK\x03\x04 nothing"),
        ("broken.json", b'{"a": '),
    ],
)
def test_broken_files_are_refused_by_name(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        connect(tmp_path / name)
    assert name in error.value.message


def test_files_larger_than_the_memory_are_refused(tmp_path: Path) -> None:
    from luthier.apps.sql.connect import Limits

    path = tmp_path / "large.csv"
    path.write_text("a,b\n" + "".join(f"{n},{'xyz' * 9}{n}{n * 7919}\n" for n in range(700_000)), encoding="utf-8")
    with pytest.raises(InputError, match="large"):
        connect(path, Limits(memory_mb=64))
