from __future__ import annotations

import sqlite3

import pytest

from luthier.apps.sql.schema import Column, ForeignKey, Schema, Table, link, quoted, sample_text


def table(name: str, *columns: str, points: str = "", samples: tuple[str, ...] = ()) -> Table:
    keys = (ForeignKey((f"{points}_id",), points, ("id",)),) if points else ()
    own = ("id", *columns, *([f"{points}_id"] if points else []))
    return Table(
        name, tuple(Column(each, "TEXT", each == "id", samples if each == columns[-1] else ()) for each in own), keys
    )


WIDE = Schema(
    (
        table("invoices", "amount", "due_day", points="clients"),
        table("clients", "full_name", "country", samples=("'Norway'", "'Peru'")),
        table("machines", "serial", "weight"),
        table("天气记录", "城市", "降雨量", samples=("'北京'",)),
        *(table(f"archive_{n}", *(f"field_{m}" for m in range(10))) for n in range(30)),
    )
)


def test_rendered_schema_is_sql_that_runs() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(WIDE.render())
    assert len(connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()) == len(WIDE.tables)


def test_it_goes_through_json() -> None:
    assert Schema.from_dict(WIDE.as_dict()) == WIDE


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("What is the total amount of all invoices?", "invoices"),
        ("Who comes from Norway?", "clients"),
        ("How heavy are the machines?", "machines"),
        ("哪个城市的降雨量最大?", "天气记录"),
        ("北京怎么样", "天气记录"),
        ("sum of machineSerials", "machines"),
    ],
)
def test_linking_keeps_what_the_question_names(question: str, wanted: str) -> None:
    shown = link(WIDE, question, most_characters=700)
    assert shown.table(wanted) is not None and len(shown.render()) <= 700


def test_linking_keeps_what_tables_point_at() -> None:
    assert link(WIDE, "the due day of an invoice", most_characters=700).table("clients") is not None


def test_a_schema_that_fits_is_shown_whole() -> None:
    assert link(WIDE, "anything", most_characters=100_000) is WIDE


def test_of_a_wide_table_the_keys_and_the_columns_in_question_stay() -> None:
    huge = Schema(
        (
            Table(
                "facts",
                (
                    Column("id", "INT", True),
                    *(Column(f"measure_{n}", "REAL") for n in range(500)),
                    Column("humidity", "REAL"),
                ),
            ),
        )
    )
    shown = link(huge, "What is the highest humidity?", most_characters=600)
    names = [column.name for column in shown.tables[0].columns]
    assert names[0] == "id" and names[-1] == "humidity" and 2 < len(names) < 30


@pytest.mark.parametrize(
    ("name", "dialect", "written"),
    [
        ("plain", "sqlite", "plain"), ("order", "sqlite", '"order"'), ("two words", "duckdb", '"two words"'), ("Mixed", "postgres", '"Mixed"'),
        ("Mixed", "sqlite", "Mixed"), ("a`b c", "mysql", "`a``b c`"), ('a"b', "sqlite", '"a""b"'), ("城市", "sqlite", '"城市"'),
    ],
)  # fmt: skip
def test_names_are_quoted_as_the_dialect_needs(name: str, dialect: str, written: str) -> None:
    assert quoted(name, dialect) == written


def test_samples_are_one_line_that_holds_no_comment() -> None:
    assert sample_text("a\n-- b /* c */") == "'a - - b / * c * /'"
    assert sample_text("it's") == "'it''s'" and sample_text(None) == sample_text(b"x") == ""
    assert len(sample_text("x" * 500)) < 50
