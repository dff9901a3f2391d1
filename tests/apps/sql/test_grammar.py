"""The grammar accepts queries over the schema and nothing with another name in it, followed as a model would follow it, byte by byte."""

from __future__ import annotations

import random

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from luthier.apps.sql.check import DIALECTS, check
from luthier.apps.sql.grammar import grammar
from luthier.apps.sql.schema import Column, Schema, Table
from luthier.core.errors import InputError
from luthier.models.guidance import guidance

SCHEMA = Schema(
    (
        Table("singer", tuple(map(Column, ("id", "name", "age", "Duration")))),
        Table("concert", tuple(map(Column, ("id", "singer_id", "year")))),
        Table("订单", (Column("城市"), Column('odd "name\\'), Column("order"))),
    )
)


def follows(text: str, schema: Schema = SCHEMA, dialect: str = "sqlite") -> bool:
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, guidance(grammar(schema, dialect)))
    assert not matcher.is_error(), matcher.get_error()
    data = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT COUNT(*) FROM singer",
        "SELECT name, age FROM singer ORDER BY age DESC LIMIT 3",
        "SELECT T1.name FROM singer AS T1 JOIN concert AS T2 ON T1.id = T2.singer_id WHERE T2.year = 2014",
        "SELECT AVG(age), MIN(age) FROM singer WHERE name LIKE '%a''b%' AND age BETWEEN 3 AND 9",
        "SELECT year, COUNT(*) FROM concert GROUP BY year HAVING COUNT(*) > 2",
        "SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM concert)",
        "SELECT name FROM singer EXCEPT SELECT name FROM singer WHERE age > 30",
        "SELECT name FROM singer UNION SELECT name FROM singer ORDER BY name LIMIT 3",
        "SELECT name FROM singer WHERE age = (SELECT MAX(age) FROM singer)",
        "SELECT Duration FROM singer",
        "SELECT DISTINCT Duration FROM singer",
        "SELECT COUNT(DISTINCT Duration) FROM singer",
        'SELECT "城市", "order" FROM "订单"',
        'SELECT "odd ""name\\" FROM "订单"',
    ],
)
def test_queries_over_the_schema(sql: str) -> None:
    assert follows(sql)
    assert check(sql, "sqlite", SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT nosuch FROM singer",
        "SELECT name FROM singers",
        "SELECT name FROM sqlite_master",
        "SELECT load_extension('x') FROM singer",
        "SELECT name FROM singer; DROP TABLE singer",
        "SELECT name FROM singer ORDER BY name UNION SELECT name FROM singer",
        "DELETE FROM singer",
        "DROP TABLE singer",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "SELECT name FROM singer -- comment",
        "SELECT name",
        "Here is the query: SELECT name FROM singer",
        "",
    ],
)
def test_nothing_else(text: str) -> None:
    assert not follows(text)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_has_names_as_it_writes_them(dialect: str) -> None:
    mark = "`" if dialect == "mysql" else '"'
    assert follows(f"SELECT {mark}城市{mark} FROM {mark}订单{mark}", dialect=dialect)
    assert not follows("SELECT 城市 FROM 订单", dialect=dialect)


def drawn(seed: int) -> str:
    """A text that a model without any sense writes under the grammar."""
    rng = random.Random(seed)
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, guidance(grammar(SCHEMA)))
    data: list[int] = []
    while len(data) < 400 and not matcher.is_stopped():
        if matcher.is_accepting() and (rng.random() < 0.3 or len(data) > 150):
            break
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        token = rng.choice([int(at) for at in np.flatnonzero(bits[:256]) if at < 128] or [0x20])
        if not matcher.consume_token(token):
            break
        data.append(token)
    return bytes(data).decode("utf-8", "replace") if matcher.is_accepting() else ""


def test_what_is_drawn_from_the_grammar_can_be_parsed() -> None:
    texts = {text for seed in range(24) if (text := drawn(seed))}
    assert len(texts) >= 2
    for sql in texts:
        try:
            check(sql, "sqlite", SCHEMA)
        except (
            InputError
        ) as error:  # an alias that nothing defines, a column of another table: the database would say so, too
            assert "is in none of" in error.message or "not in this database" in error.message, sql
