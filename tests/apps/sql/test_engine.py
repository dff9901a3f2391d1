from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.apps.sql.conftest import QUICK, Scripted

from luthier.apps.sql.ask import Asking
from luthier.apps.sql.connect import connect
from luthier.apps.sql.engine import SqlEngine
from luthier.core.engine import GENERATE, STREAM, Engine, Sampling, ScoreRequest
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Message, user

SQL = "SELECT city, COUNT(*) AS n FROM customers GROUP BY city ORDER BY city"


@pytest.fixture
def writer() -> Scripted:
    return Scripted("SELECT nosuch FROM customers", SQL, "Bergen has 1 and Oslo has 2.")


@pytest.fixture
def engine(shops: dict[str, Path], writer: Scripted) -> Iterator[SqlEngine]:
    made = SqlEngine("shop", connect(shops["sqlite"], QUICK), writer, Asking(), QUICK)
    yield made
    made.close()
    assert writer.closed


def test_it_answers_with_words_query_and_table(engine: SqlEngine) -> None:
    assert (
        isinstance(engine, Engine) and engine.info.model == "db:shop" and engine.info.capabilities == {GENERATE, STREAM}
    )
    (answer,) = engine.generate([user("Customers by city?")], Sampling())
    assert (
        answer.text
        == f"Bergen has 1 and Oslo has 2.\n\n```sql\n{SQL}\n```\n\n| city | n |\n| --- | --- |\n| Bergen | 1 |\n| Oslo | 2 |"
    )
    failed, ran = answer.steps
    assert "nosuch" in failed["sql"] and failed["error"]
    assert ran["sql"] == SQL and ran["columns"] == ["city", "n"] and ran["rows"] == [["Bergen", 1], ["Oslo", 2]]
    assert (answer.calls, answer.prompt_tokens, answer.completion_tokens) == (3, 30, 9)


def test_a_conversation_goes_on(engine: SqlEngine, writer: Scripted) -> None:
    (first,) = engine.generate([user("Customers by city?")], Sampling())
    turns = (
        Message("user", "Customers by city?"),
        Message("assistant", first.text),
        Message("user", "and their names?"),
    )
    asked = len(writer.asked)
    engine.generate([turns], Sampling())
    assert f"assistant: {SQL}\nuser: Question: and their names?" in writer.shown(asked)


def test_a_stream_can_be_left_at_each_step(engine: SqlEngine, writer: Scripted) -> None:
    deltas = list(engine.stream(user("Customers by city?"), Sampling()))
    assert [delta.text for delta in deltas[:3]] == ["", "", ""] and deltas[-1].generation is not None
    assert "".join(delta.text for delta in deltas) == deltas[-1].generation.text
    asked = len(writer.asked)
    left = engine.stream(user("again?"), Sampling())
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert len(writer.asked) == asked


def test_failure_is_an_honest_answer(shops: dict[str, Path]) -> None:
    engine = SqlEngine(
        "shop", connect(shops["sqlite"], QUICK), Scripted("DROP TABLE customers"), Asking(repairs=1), QUICK
    )
    english, chinese = engine.generate([user("Drop it."), user("删除它。")], Sampling())
    assert english.text.startswith("I could not write a query") and "only SELECT is run" in english.text
    assert chinese.text.startswith("未能写出")
    assert [step["sql"] for step in english.steps] == ["DROP TABLE customers"] * 2
    engine.close()


def test_what_it_cannot(engine: SqlEngine) -> None:
    with pytest.raises(UnsupportedError):
        engine.embed(["x"])
    with pytest.raises(UnsupportedError):
        engine.score([ScoreRequest("x", ("y",))])
    with pytest.raises(InputError, match="question"):
        engine.generate([user("  ")], Sampling())
