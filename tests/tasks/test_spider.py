from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError, InputError
from luthier.evaluation.loop import scorers_of, target_of
from luthier.scorers._score import Answer
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    folder.mkdir(exist_ok=True)
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "spider"


SCHEMA = "CREATE TABLE item (name TEXT, price REAL)"


def test_the_prompt_holds_the_schema(tmp_path: Path) -> None:
    first = asked(tmp_path)[0]
    assert first.raw == (
        f"{SCHEMA}\n\n-- Using valid SQLite, answer the question for the tables above with one query.\n"
        "-- Question: How many items are there?\nSQL:",
    )
    assert first.target == "SELECT count(*) FROM item"
    assert Path(first.meta["database"]).is_file()
    assert asked(tmp_path / "chat", "chat=true")[0].messages[-1].content.endswith("-- Write the query alone.")


def test_worked_examples_bring_their_own_schema(tmp_path: Path) -> None:
    assert asked(tmp_path, "shots=1")[0].raw[0].startswith(f"{SCHEMA}\n\n-- Using valid SQLite")
    assert "List all items.\nSQL: SELECT name FROM item\n\n" in asked(tmp_path / "b", "shots=1")[0].raw[0]


def test_answers_are_run(tmp_path: Path) -> None:
    task = load_task(NAME, [f"data={rows.write(tmp_path, NAME)}"])
    target, scorer = target_of(task.examples("test")[1]), scorers_of(task)[0]
    assert (
        scorer.entry(Answer(" SELECT price FROM item ORDER BY price DESC LIMIT 1"), target, scorer.config).value == 1.0
    )
    assert scorer.entry(Answer("SELECT min(price) FROM item"), target, scorer.config).value == 0.0
    assert scorer.entry(Answer("DROP TABLE item"), target, scorer.config).value == 0.0


def test_where_databases_are_looked_for(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, NAME)
    line = '{"question": "q", "sql": "SELECT 1", "database": "databases/shop/shop.sqlite"}\n'
    (folder / "own.jsonl").write_text(line)
    assert SCHEMA in load_task(NAME, [f"data={folder}/own.jsonl"]).examples("test")[0].raw[0]
    (folder / "databases").rename(folder / "elsewhere")
    with pytest.raises(DataError, match=r"own\.jsonl:1: there is no database"):
        load_task(NAME, [f"data={folder}/own.jsonl"])
    with pytest.raises(DataError, match=r"no database shop/shop\.sqlite in"):
        load_task(NAME, [f"data={folder}"])
    assert load_task(NAME, [f"data={folder}", f"databases={folder}/elsewhere"]).examples("test")
    (folder / "elsewhere" / "shop" / "shop.sqlite").write_text("no database at all")
    with pytest.raises(DataError, match="is not a readable SQLite database"):
        load_task(NAME, [f"data={folder}", f"databases={folder}/elsewhere"])
    (folder / "own.jsonl").write_text('{"question": "q", "sql": "SELECT 1", "db_id": "../x"}\n')
    with pytest.raises(DataError, match="db_id must be a plain name"):
        load_task(NAME, [f"data={folder}/own.jsonl"])
    with pytest.raises(InputError, match="the hub has no databases"):
        load_task(NAME, ["data=hub:xlangai/spider"])
