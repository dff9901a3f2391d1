"""Spider-style text to SQL: one query that answers a question about a database never seen before (Yu et al., 2018).

Prompt: the database's CREATE TABLE statements, a line that asks for one SQLite query, the question, and ``SQL:`` (after the prompt that
Rajkumar et al., 2022, found best). No worked examples unless asked for, then drawn from the train part. Scorer: sql_execution: whether
the query gives the rows that the published one gives.
"""

from __future__ import annotations

from pathlib import Path

from luthier.core.errors import InputError
from luthier.core.task import Task
from luthier.data.fields import RowError
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, text
from luthier.tasks._parts import is_file, is_hub
from luthier.tasks._schema import schema
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Yu et al. (2018), Spider: A Large-Scale Human-Labeled Dataset for Text-to-SQL Tasks, arXiv:1809.08887",
    licence="CC BY-SA 4.0 (dataset); Apache-2.0 (repository)",
    fields="question, query (also called sql), db_id; databases as FOLDER/db_id/db_id.sqlite, or each row's own database path",
    hub="hub:xlangai/spider",
)
ASK = "-- Using valid SQLite, answer the question for the tables above with one query."


class Config(ShotsConfig):
    """``databases``: the folder of the SQLite files; left out, ``databases`` or ``database`` beside the data."""

    databases: str = ""


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="spider",
        kind="generate",
        source=SOURCE,
        read=lambda row: _read(row, config),
        scorers=(("sql_execution", {}),),
        part="validation",
        pool="train",
        stop=(";", "\n\n", "\n--"),
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    if config.data and is_hub(config.data) and not config.databases:
        raise InputError(
            "spider: the hub has no databases", hint="give databases=FOLDER, where FOLDER/db_id/db_id.sqlite are"
        )
    return build_task(define(config), config)


def _read(row: Fields, config: Config) -> Item:
    question, query = text(row, "question"), text(row, "query", "sql")
    database = _database(row, config)
    asked = f"{schema(database)}\n\n{ASK}\n-- Question: {question}\nSQL:"
    chat = asked.removesuffix("SQL:") + "-- Write the query alone."
    return Item(asked, query, target=query, asked=chat, meta={**row, "database": database})


def _database(row: Fields, config: Config) -> str:
    data = Path(config.data).expanduser()
    beside = data.parent if is_file(config.data) else data
    own = row.get("database")
    if isinstance(own, str) and own and not config.databases:
        return str((beside / own).resolve())
    name = text(row, "db_id")
    if Path(name).name != name:
        raise RowError(f"db_id must be a plain name; got {name!r}")
    folders = [Path(config.databases).expanduser()] if config.databases else [beside / "databases", beside / "database"]
    for folder in folders:
        for ending in ("sqlite", "db"):
            if (folder / name / f"{name}.{ending}").is_file():
                return str((folder / name / f"{name}.{ending}").resolve())
    raise RowError(f"no database {name}/{name}.sqlite in {' or '.join(map(str, folders))}")
