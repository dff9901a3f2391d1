"""``db:NAME`` as a model of the gateway: any OpenAI client asks it; who may not, does not know of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIStatusError, BadRequestError

from luthier.core.errors import InputError
from luthier.gateway.config import read_config
from luthier.store.database import open_store
from luthier.store.keys import create_key
from luthier.store.traces import find_trace

SQL = "SELECT city, COUNT(*) AS n FROM customers GROUP BY city ORDER BY city"
ANSWERS = {
    "Customers by city": f"```sql\n{SQL}\n```",
    "Emails": "SELECT email FROM customers ORDER BY id",
    "and in total": "SELECT COUNT(*) AS n FROM customers",
    "customers there are": "SELECT nosuch FROM customers",
    "query failed": "SELECT COUNT(*) AS n FROM customers",
    "Drop": "DROP TABLE customers",
    "which are the result of a query": "As the rows say.",
}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, city TEXT, email TEXT)")
    rows = [(1, "Oslo", "ada@example.org"), (2, "Bergen", "bo@example.org"), (3, "Oslo", "cy@example.org")]
    connection.executemany("INSERT INTO customers VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def section(path: Path, **more: Any) -> dict[str, Any]:
    """The section ``databases`` with a model that says what it is told to."""
    return {"shop": {"url": str(path), "model": "fake", "options": {"answers": ANSWERS}, "constrained": False, **more}}


@pytest.fixture
def serve(database: Path, start: Callable[..., Any]) -> Callable[..., Any]:
    def served(config: dict[str, Any] | None = None, *, more: dict[str, Any] | None = None, **settings: Any) -> Any:
        return start(
            [],
            config={"models": ["fake"], "databases": section(database, **(more or {})), **(config or {})},
            **settings,
        )

    return served


def ask(server: Any, *texts: str, key: str = "unused", **more: Any) -> Any:
    """Ask as a conversation: every second text is the assistant's."""
    messages = [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]
    return server.client(api_key=key).chat.completions.create(model="db:shop", messages=messages, **more)


def test_words_query_table_and_the_same_as_data(serve: Callable[..., Any]) -> None:
    server = serve()
    got = ask(server, "Customers by city?")
    message = got.choices[0].message
    assert (
        message.content
        == f"As the rows say.\n\n```sql\n{SQL}\n```\n\n| city | n |\n| --- | --- |\n| Bergen | 1 |\n| Oslo | 2 |"
    )
    assert message.luthier == {
        "answered": True, "sql": SQL, "columns": ["city", "n"], "rows": [["Bergen", 1], ["Oslo", 2]], "cut": False,
        "tables": ["customers"], "attempts": [],
    }  # fmt: skip
    assert got.usage.completion_tokens > 0
    listed = {each.id: each for each in server.client().models.list()}
    assert listed["db:shop"].kind == "database" and listed["db:shop"].engine == "fake"


def test_traces_keep_the_query_and_not_the_rows(serve: Callable[..., Any], tmp_path: Path) -> None:
    server = serve()
    got = ask(server, "How many customers there are?")
    assert got.choices[0].message.luthier["attempts"][0]["sql"] == "SELECT nosuch FROM customers"
    trace = find_trace(server.store, got.id)
    (known,) = trace.details["database"]
    assert (known["database"], known["writer"], known["dialect"]) == ("shop", "fake", "sqlite")
    failed, ran = known["queries"]
    assert "nosuch" in failed["error"] and ran["sql"] == "SELECT COUNT(*) AS n FROM customers" and ran["rows"] == 1


def test_a_conversation_goes_on(serve: Callable[..., Any]) -> None:
    server = serve()
    first = ask(server, "Customers by city?").choices[0].message.content
    second = ask(server, "Customers by city?", first, "and in total?").choices[0].message
    assert second.luthier["rows"] == [[3]]


def test_streamed_and_in_the_other_wire_formats(serve: Callable[..., Any]) -> None:
    server = serve()
    chunks = list(ask(server, "Customers by city?", stream=True))
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text.startswith("As the rows say.") and "| Oslo | 2 |" in text
    told = [
        each.choices[0].delta.luthier for each in chunks if each.choices and hasattr(each.choices[0].delta, "luthier")
    ]
    assert told[0]["sql"] == SQL
    response = server.client().responses.create(model="db:shop", input="Customers by city?")
    assert "| Oslo | 2 |" in response.output_text and response.output[0].luthier["sql"] == SQL


def test_what_cannot_be_answered_is_said_and_nothing_is_harmed(serve: Callable[..., Any], database: Path) -> None:
    before = database.read_bytes()
    message = ask(serve(more={"repairs": 0}), "Drop everything.").choices[0].message
    assert message.content.startswith("I could not write a query") and message.luthier["answered"] is False
    assert message.luthier["attempts"] == [{"sql": "DROP TABLE customers", "error": "only SELECT is run; got DROP"}]
    assert database.read_bytes() == before


def test_only_keys_that_may(serve: Callable[..., Any], tmp_path: Path) -> None:
    store = open_store(tmp_path / "home")
    allowed, other = (
        create_key(store, tenant, models=models)[1] for tenant, models in (("acme", ("db:*",)), ("other", ("fake",)))
    )
    server = serve(store=store, keys=True)
    assert ask(server, "Customers by city?", key=allowed).choices[0].message.luthier["sql"] == SQL
    with pytest.raises(APIStatusError) as refused:
        ask(server, "Customers by city?", key=other)
    assert refused.value.status_code in (403, 404)
    assert "db:shop" not in {each.id for each in server.client(api_key=other).models.list()}


def test_guardrails_that_hide_see_the_rows_too(serve: Callable[..., Any]) -> None:
    server = serve({"guardrails": [{"name": "pii", "on": "output", "action": "mask"}]})
    got = ask(server, "Emails?")
    assert "ada@example.org" not in json.dumps(got.model_dump())


def test_a_database_is_not_opened_over_http(serve: Callable[..., Any], database: Path) -> None:
    server = serve()
    body = {"model": "db:other", "options": {"url": str(database), "model": "fake"}}
    got = httpx.post(f"{server.base_url}/models", json=body)
    assert got.status_code == 400 and "configuration file" in got.text


def test_answers_of_a_changed_database_are_not_taken_from_the_cache(serve: Callable[..., Any], database: Path) -> None:
    server = serve({"cache": {"exact": True}})
    asked = [ask(server, "and in total?", temperature=0).choices[0].message.luthier["rows"] for _ in range(2)]
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO customers VALUES (4, 'Oslo', 'd@example.org')")
    connection.close()
    asked.append(ask(server, "and in total?", temperature=0).choices[0].message.luthier["rows"])
    assert asked == [[[3]], [[3]], [[4]]]


def test_empty_questions_and_fields_that_mean_nothing_are_refused(serve: Callable[..., Any]) -> None:
    server = serve()
    with pytest.raises(BadRequestError, match="question"):
        ask(server, " ")
    with pytest.raises(BadRequestError, match="tools"):
        ask(server, "x?", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"shop": {"url": "x.db"}}, "model"),
        ({"shop": {"model": "fake"}}, "exactly one of url and url_env"),
        ({"shop": {"url": "x.db", "url_env": "X", "model": "fake"}}, "exactly one of url and url_env"),
        ({"shop": {"url": "x.db", "model": "fake", "nosuch": 1}}, "nosuch"),
        ({"a b": {"url": "x.db", "model": "fake"}}, "names must be"),
        ({"shop": {"url": "x.db", "model": "fake", "rows": 0}}, "rows"),
    ],
)
def test_bad_configurations(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_config({"databases": config})


def test_what_cannot_be_opened_stops_the_server(
    database: Path, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no such database"):
        start([], config={"databases": section(database.with_name("missing.db"))})
    with pytest.raises(InputError, match="the environment variable SHOP_URL is not set"):
        start([], config={"databases": {"shop": {"url_env": "SHOP_URL", "model": "fake"}}})
    with pytest.raises(InputError, match=r"Did you mean 'customers'"):
        start([], config={"databases": section(database, notes={"custmers": "x"})})
    monkeypatch.setenv("SHOP_URL", str(database))
    start([], config={"databases": {"shop": {"url_env": "SHOP_URL", "model": "fake"}}})
