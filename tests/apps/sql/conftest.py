"""A shop in each kind of database."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.apps.sql.connect import Database, Limits, connect
from luthier.core.engine import GENERATE, EngineInfo, Generation, Sampling
from luthier.core.message import Prompt

TABLES = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT, email TEXT);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers (id), total REAL, day TEXT);
CREATE TABLE "订单" ("编号" INTEGER PRIMARY KEY, "城市" TEXT, "金额" REAL);
"""
ROWS = {
    "customers": [
        (1, "Ada", "Oslo", "ada@example.org"),
        (2, "Bo", "Bergen", "bo@example.org"),
        (3, "Cy", "Oslo", None),
    ],
    "orders": [(n, 1 + n % 3, 10.0 * n, f"2026-{1 + n % 12:02d}-01") for n in range(1, 2001)],
    "订单": [(1, "北京", 100.0), (2, "上海", 250.5), (3, "北京", 60.0)],
}
QUICK = Limits(timeout_s=0.5, rows=50, memory_mb=256)


def fill(execute_many: object, mark: str = "?", quote: str = '"') -> None:
    """Insert the shop's rows through a driver's ``executemany``."""
    for table, rows in ROWS.items():
        marks = ", ".join([mark] * len(rows[0]))
        execute_many(f"INSERT INTO {quote}{table}{quote} VALUES ({marks})", rows)  # type: ignore[operator]


def digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def shops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shop as a SQLite and as a DuckDB file."""
    import duckdb
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("shops")
    light = sqlite3.connect(folder / "shop.sqlite")
    light.executescript(TABLES)
    fill(light.executemany)
    light.commit()
    light.close()
    duck = duckdb.connect(str(folder / "shop.duckdb"))
    duck.execute(TABLES.replace(" REAL", " DOUBLE"))
    for table, rows in ROWS.items():  # DuckDB takes columns at once, and rows one by one slowly
        names = [row[0] for row in duck.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchall()]
        duck.register("shown", pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)}))
        duck.execute(f'INSERT INTO "{table}" SELECT * FROM shown')
        duck.unregister("shown")
    duck.close()
    return {"sqlite": folder / "shop.sqlite", "duckdb": folder / "shop.duckdb"}


@pytest.fixture(scope="session", params=["sqlite", "duckdb"])
def shop(request: pytest.FixtureRequest, shops: dict[str, Path]) -> Iterator[Database]:
    """The shop, open; once in SQLite and once in DuckDB."""
    with connect(shops[request.param], QUICK) as database:
        yield database


def server_url(kind: str) -> str:
    """The URL of a server that tests may write to; skips without one."""
    name = {"postgres": "LUTHIER_TEST_POSTGRES", "mysql": "LUTHIER_TEST_MYSQL"}[kind]
    url = os.environ.get(name, "")
    if not url:
        pytest.skip(f"needs a {kind} server that tests may write to: set {name} to its URL")
    return url


class Scripted:
    """An engine that says one thing after the other (the last one again and again) and keeps what it was asked."""

    def __init__(self, *says: str, context_length: int = 0, parameters: frozenset[str] = frozenset()) -> None:
        self.info = EngineInfo(
            "scripted", "scripted", frozenset({GENERATE}), context_length=context_length, parameters=parameters
        )
        self.asked: list[Prompt] = []
        self.sampled: list[Sampling] = []
        self.closed = False
        self._says = list(says)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, progress: Any = None) -> list[Generation]:
        made = []
        for prompt in prompts:
            self.asked.append(prompt)
            self.sampled.append(sampling)
            text = self._says.pop(0) if len(self._says) > 1 else self._says[0]
            made.append(Generation(text, (), (), "stop", prompt_tokens=10, completion_tokens=3))
        return made

    def shown(self, at: int = -1) -> str:
        """The text of what it was asked."""
        prompt = self.asked[at]
        return prompt if isinstance(prompt, str) else "\n".join(f"{turn.role}: {turn.content}" for turn in prompt)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Any]:
        raise NotImplementedError

    def score(self, requests: Any, progress: Any = None) -> Any:
        raise NotImplementedError

    def embed(self, texts: Any, progress: Any = None) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True
