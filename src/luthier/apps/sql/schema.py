"""What a model is told of a database: tables, columns, keys, some values."""

# ruff: noqa: SIM905 - a list of a hundred words is read, not counted
from __future__ import annotations

import decimal
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MOST_CHARACTERS = 12_000
"""Of a schema in a prompt, where nothing else is said."""

_WORD = re.compile(r"[a-z]+|[0-9]+|[\u4e00-\u9fff]+")
_RESERVED = frozenset(
    """all and as asc between by case cast check column constraint create cross current_date default delete desc distinct drop else end except
    exists false fetch for foreign from full grant group having in index inner insert intersect into is join key left like limit natural not null
    offset on or order outer primary references right select set table then to true union unique update user using values view when where
    window with""".split()
)
_STOP = frozenset(
    "the of and for with that this what which who how many are all each per has have from their there list show find give name names id".split()
)


@dataclass(frozen=True, slots=True)
class Column:
    """``samples`` are some of its values as text; ``description`` is what its owner says of it."""

    name: str
    type: str = ""
    primary: bool = False
    samples: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """``columns`` of a table point at ``to_columns`` of ``to_table``."""

    columns: tuple[str, ...]
    to_table: str
    to_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table or a view; ``description`` is what its owner says of it."""

    name: str
    columns: tuple[Column, ...]
    keys: tuple[ForeignKey, ...] = ()
    description: str = ""

    def summary(self) -> str:
        """Its names and descriptions as one line, to be compared with a question."""
        columns = ", ".join(" ".join(filter(None, (each.name, each.description))) for each in self.columns)
        return f"{self.name}: {self.description} {columns}"


@dataclass(frozen=True)
class Schema:
    """The tables of a database."""

    tables: tuple[Table, ...] = field(default_factory=tuple)

    def table(self, name: str) -> Table | None:
        """A table by its name, whatever its case."""
        return next((each for each in self.tables if each.name.lower() == name.lower()), None)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Schema:
        """What ``as_dict`` made."""
        return Schema(
            tuple(
                Table(
                    name=table["name"],
                    columns=tuple(
                        Column(**{**column, "samples": tuple(column["samples"])}) for column in table["columns"]
                    ),
                    keys=tuple(
                        ForeignKey(tuple(key["columns"]), key["to_table"], tuple(key["to_columns"]))
                        for key in table["keys"]
                    ),
                    description=table["description"],
                )
                for table in data["tables"]
            )
        )

    def described(self, notes: Mapping[str, str]) -> Schema:
        """The schema with descriptions: ``notes`` are keyed by ``table`` or ``table.column``."""
        known = {name.lower(): text for name, text in notes.items()}
        tables = []
        for table in self.tables:
            columns = tuple(
                replace(column, description=known.get(f"{table.name}.{column.name}".lower(), column.description))
                for column in table.columns
            )
            tables.append(replace(table, columns=columns, description=known.get(table.name.lower(), table.description)))
        return Schema(tuple(tables))

    def render(self, dialect: str = "sqlite") -> str:
        """CREATE TABLE statements with samples and descriptions as comments."""
        return "\n\n".join(_render(table, dialect) for table in self.tables)


def link(
    schema: Schema, question: str, *, most_characters: int = MOST_CHARACTERS, similar: Mapping[str, float] | None = None
) -> Schema:
    """The tables that a question may need, when not all of them fit into ``most_characters``: those whose names, columns and samples share
    words with it (rare words count more), are ``similar`` to it (cosine by table), and those that connect them. Of a wide table the keys and
    the columns that share words stay. At least one table is kept.
    """
    if len(schema.render()) <= most_characters:
        return schema
    weights = _weights(schema, set(_words(question)))
    scores = {
        table.name: _shared(table, weights) + 3.0 * (similar or {}).get(table.name, 0.0) for table in schema.tables
    }
    order = sorted(schema.tables, key=lambda table: (-scores[table.name], -len(table.keys), table.name))
    chosen: dict[str, Table] = {}
    left = most_characters
    for table in order:
        near = [found for key in table.keys if (found := schema.table(key.to_table)) is not None]
        for each in [table, *(near if scores[table.name] > 0 else [])]:
            if each.name in chosen:
                continue
            narrow = _narrow(each, weights, left if not chosen else min(left, max(most_characters // 3, 400)))
            length = len(_render(narrow)) + 2
            if length <= left or not chosen:
                chosen[each.name] = narrow
                left -= length
    return Schema(tuple(chosen[table.name] for table in schema.tables if table.name in chosen))


def _weights(schema: Schema, asked: set[str]) -> dict[str, float]:
    """The question's words, each by how few tables have it."""
    having = dict.fromkeys(asked, 0)
    for table in schema.tables:
        for word in asked & set(_words(" ".join([table.name, table.description, *_texts(table)]))):
            having[word] += 1
    return {word: 1.0 / count for word, count in having.items() if count}


def _texts(table: Table) -> Iterable[str]:
    for column in table.columns:
        yield from (column.name, column.description, *column.samples)


def _shared(table: Table, weights: Mapping[str, float]) -> float:
    """How much of the question a table has: names count most, then columns, then samples."""

    def found(text: str) -> float:
        return sum(weights.get(word, 0.0) for word in set(_words(text)))

    score = 3.0 * found(table.name) + found(table.description)
    return score + sum(_column_score(column, weights) for column in table.columns)


def _column_score(column: Column, weights: Mapping[str, float]) -> float:
    def found(text: str) -> float:
        return sum(weights.get(word, 0.0) for word in set(_words(text)))

    return found(column.name) + 0.5 * found(column.description) + 0.7 * max(map(found, column.samples), default=0.0)


def _narrow(table: Table, weights: Mapping[str, float], most_characters: int) -> Table:
    """The table without samples, then without the columns that share least with the question, until it fits; keys stay."""
    if len(_render(table)) <= most_characters:
        return table
    table = replace(table, columns=tuple(replace(column, samples=()) for column in table.columns))
    if len(_render(table)) <= most_characters:
        return table
    pointing = {name for key in table.keys for name in key.columns}
    order = sorted(
        range(len(table.columns)),
        key=lambda at: (
            not (table.columns[at].primary or table.columns[at].name in pointing),
            -_column_score(table.columns[at], weights),
            at,
        ),
    )
    kept: list[int] = []
    size = 60 + len(table.name) + len(table.description) + 80 * len(table.keys)
    for place, at in enumerate(order):
        column = table.columns[at]
        size += len(column.name) + len(column.type) + len(column.description) + 10
        if place and size > most_characters:
            break
        kept.append(at)
    here = {table.columns[at].name for at in kept}
    keys = tuple(key for key in table.keys if set(key.columns) <= here)
    return replace(table, columns=tuple(table.columns[at] for at in sorted(kept)), keys=keys)


def _words(text: str) -> Iterable[str]:
    """Words in lower case without a plural s; ``customerName`` and ``customer_name`` are two. Of Chinese, each pair of characters."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    for word in _WORD.findall(apart.lower()):
        if word[0] >= "\u4e00":
            yield from (word[at : at + 2] for at in range(max(len(word) - 1, 1)))
        elif word not in _STOP and len(word) > 1:
            yield (
                f"{word[:-3]}y" if word.endswith("ies") else word[:-1] if len(word) > 3 and word.endswith("s") else word
            )


def _render(table: Table, dialect: str = "sqlite") -> str:
    def named(names: Iterable[str]) -> str:
        return ", ".join(quoted(name, dialect) for name in names)

    lines = []
    for column in table.columns:
        notes = [_one_line(column.description)] if column.description else []
        notes += [f"for example {', '.join(column.samples)}"] if column.samples else []
        comment = f"  -- {'; '.join(notes)}" if notes else ""
        text = f"  {quoted(column.name, dialect)} {_one_line(column.type)}{' PRIMARY KEY' if column.primary else ''}"
        lines.append((text.rstrip(), comment))
    for key in table.keys:
        there = f"{quoted(key.to_table, dialect)} ({named(key.to_columns)})"
        lines.append((f"  FOREIGN KEY ({named(key.columns)}) REFERENCES {there}", ""))
    body = "\n".join(f"{text}{',' if at < len(lines) - 1 else ''}{note}" for at, (text, note) in enumerate(lines))
    head = f"-- {_one_line(table.description)}\n" if table.description else ""
    return f"{head}CREATE TABLE {quoted(table.name, dialect)} (\n{body}\n);"


def quoted(name: str, dialect: str = "sqlite") -> str:
    """A name as SQL writes it: in quotes unless it is plain."""
    plain = r"[a-z_][a-z0-9_]*" if dialect == "postgres" else r"[A-Za-z_][A-Za-z0-9_]*"
    if re.fullmatch(plain, name) and name.lower() not in _RESERVED:
        return name
    mark = "`" if dialect == "mysql" else '"'
    return mark + name.replace(mark, 2 * mark) + mark


def sample_text(value: object, most: int = 40) -> str:
    """A value as a sample: one line, cut, in quotes when it is text. Samples are data; nothing in them reads like SQL or a comment."""
    if value is None or isinstance(value, bytes | memoryview):
        return ""
    if isinstance(value, int | float | decimal.Decimal):
        return str(value)
    text = _one_line(str(value))
    return "'" + (text if len(text) <= most else text[: most - 1] + "…").replace("'", "''") + "'"


def _one_line(text: str) -> str:
    return " ".join(text.replace("--", "- -").replace("/*", "/ *").replace("*/", "* /").split())


def samples_of(values: Sequence[object], count: int = 3) -> tuple[str, ...]:
    """Distinct samples in order."""
    return tuple(dict.fromkeys(text for value in values if (text := sample_text(value))))[:count]
