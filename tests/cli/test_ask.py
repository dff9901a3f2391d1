from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.apps.sql.conftest import Scripted

from luthier.cli import ask as command
from luthier.cli import main

BY_CITY = 'SELECT "城市", SUM("销售额") AS "总额" FROM "销售" GROUP BY "城市" ORDER BY "总额" DESC'


@pytest.fixture
def sales(tmp_path: Path, home: Path) -> Path:
    path = tmp_path / "销售.csv"
    path.write_bytes("城市,月份,销售额\n北京,2026-01,100\n上海,2026-01,250.5\n北京,2026-02,60\n".encode("gb18030"))
    return path


def writes(monkeypatch: pytest.MonkeyPatch, *says: str) -> Scripted:
    """Let a scripted engine be the model."""
    engine = Scripted(*says)
    monkeypatch.setattr(command, "_opened", lambda model, engine_name: engine)
    return engine


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["ask", *arguments])
    return int(ended.value.code or 0)


def test_words_query_table_and_bars(
    sales: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = writes(monkeypatch, "SELECT 城市x FROM 销售", BY_CITY, "上海最高,为250.5。")
    assert run("--db", str(sales), "各城市的销售总额?", "--verbose") == 0
    shown = capsys.readouterr()
    assert "上海最高,为250.5。" in shown.out and BY_CITY in shown.out and "160.0" in shown.out and "█" in shown.out
    assert (
        "attempt 1: SELECT 城市x FROM 销售" in shown.err and "tables shown: 销售" in shown.err and "2 rows" in shown.err
    )
    assert engine.closed


def test_json_and_follow_up(sales: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine = writes(
        monkeypatch, BY_CITY, 'SELECT "月份", sum("销售额") AS "总额" FROM "销售" GROUP BY "月份" ORDER BY "月份"'
    )
    assert run("--db", str(sales), "各城市的销售总额?", "按月呢?", "--json", "--no-words") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["rows"] == [["上海", 250.5], ["北京", 160.0]] and second["rows"] == [
        ["2026-01", 350.5],
        ["2026-02", 60.0],
    ]
    assert "各城市的销售总额?" in engine.shown(1)


def test_sql_only_is_not_run(sales: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    writes(monkeypatch, BY_CITY)
    assert run("--db", str(sales), "各城市的销售总额?", "--sql-only") == 0
    assert capsys.readouterr().out.strip() == BY_CITY


def test_chart_notes_and_private(
    sales: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = writes(monkeypatch, BY_CITY, "好。")
    (tmp_path / "notes.yaml").write_text("销售.销售额: 单位是万元\n", encoding="utf-8")
    picture = tmp_path / "out.svg"
    assert (
        run(
            "--db",
            str(sales),
            "各城市?",
            "--chart",
            str(picture),
            "--notes",
            str(tmp_path / "notes.yaml"),
            "--private",
            "城市",
        )
        == 0
    )
    assert "上海" in picture.read_text(encoding="utf-8")
    assert "单位是万元" in engine.shown(0) and "'北京'" not in engine.shown(0)
    writes(monkeypatch, "SELECT 1")
    assert run("--db", str(sales), "x", "--no-words", "--chart", str(picture)) == 0
    assert "no chart suits" in capsys.readouterr().err


def test_a_real_model_name(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--db", str(sales), "anything", "--model", "fake", "--json", "--no-words") == 0
    assert json.loads(capsys.readouterr().out)["sql"].startswith("SELECT")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--db", "nosuch.db", "q"], "no such database: nosuch.db"),
        (["--db", "{sales}", " "], "question must not be empty"),
        (["--db", "{sales}", "q", "--rows", "0"], "rows must be 1 to"),
        (["--db", "{sales}", "q", "--timeout", "0"], "timeout_s must be"),
        (["--db", "{sales}", "q", "--repairs", "99"], "repairs must be 0 to 10"),
        (["--db", "{sales}", "q", "--chart", "x.bmp"], ".png or .svg"),
        (["--db", "{sales}", "q", "--notes", "nosuch.yaml"], "no such file"),
        (["--db", "{sales}", "q", "--constrained"], "does not follow grammars"),
        (["--db", "{sales}", "q"], "no query could be run in 3 attempts"),
        (["--db", "ftp://x/y", "q"], "got 'ftp'"),
    ],
)
def test_bad_input(
    arguments: list[str], said: str, sales: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writes(monkeypatch, "DROP TABLE 销售")
    assert run(*(each.format(sales=sales) for each in arguments)) == 2
    shown = capsys.readouterr()
    assert said in shown.err and "Traceback" not in shown.err
