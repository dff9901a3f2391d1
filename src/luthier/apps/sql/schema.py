"""What a model is told of a database: tables, columns, keys, some values."""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

_WORD = re.compile(r"[a-z]+|[0-9]+|[\u4e00-\u9fff]")


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
    """``rows`` is how many there are, None when that was not counted."""

    name: str
    columns: tuple[Column, ...]
    keys: tuple[ForeignKey, ...] = ()
    rows: int | None = None
    description: str = ""


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
                    rows=table["rows"],
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

    def render(self) -> str:
        """CREATE TABLE statements with samples and descriptions as comments."""
        return "\n\n".join(map(_render, self.tables))


def link(schema: Schema, question: str, *, most_characters: int = 6000) -> Schema:
    """The tables that a question may need, when not all of them fit: those whose names, columns and samples share words with it, and the
    tables that connect them. At least one is kept."""
    if len(schema.render()) <= most_characters:
        return schema
    asked = set(_words(question))
    scores = {table.name: _shared(table, asked) for table in schema.tables}
    order = sorted(schema.tables, key=lambda table: (-scores[table.name], table.name))
    chosen: dict[str, Table] = {}
    size = 0
    for table in order:
        near = [table, *(found for key in table.keys if (found := schema.table(key.to_table)) is not None)]
        for each in near if scores[table.name] else [table]:
            length = len(_render(each)) + 2
            if each.name not in chosen and (size + length <= most_characters or not chosen):
                chosen[each.name] = each
                size += length
    return Schema(tuple(table for table in schema.tables if table.name in chosen))


def _shared(table: Table, asked: set[str]) -> float:
    """How much of the question's words a table has: names count most, then columns, then samples."""
    score = 3.0 * len(asked & set(_words(table.name)))
    for column in table.columns:
        score += 1.0 * len(asked & set(_words(column.name))) + 0.5 * len(asked & set(_words(column.description)))
        score += 0.7 * any(asked & set(_words(sample)) for sample in column.samples)
    return score


def _words(text: str) -> Iterable[str]:
    """Words in lower case without a plural s; ``customerName`` and ``customer_name`` are two."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return (word[:-1] if len(word) > 3 and word.endswith("s") else word for word in _WORD.findall(apart.lower()))


def _render(table: Table) -> str:
    lines = []
    for column in table.columns:
        notes = [column.description] if column.description else []
        notes += [f"for example {', '.join(column.samples)}"] if column.samples else []
        comment = f"  -- {'; '.join(notes)}" if notes else ""
        lines.append(
            (f"  {quoted(column.name)} {column.type}{' PRIMARY KEY' if column.primary else ''}".rstrip(), comment)
        )
    for key in table.keys:
        here, there = (", ".join(map(quoted, names)) for names in (key.columns, key.to_columns))
        lines.append((f"  FOREIGN KEY ({here}) REFERENCES {quoted(key.to_table)} ({there})", ""))
    body = "\n".join(f"{text}{',' if at < len(lines) - 1 else ''}{note}" for at, (text, note) in enumerate(lines))
    head = f"-- {_one_line(table.description)}\n" if table.description else ""
    return f"{head}CREATE TABLE {quoted(table.name)} (\n{body}\n);"


def quoted(name: str) -> str:
    """A name as SQL writes it: in quotes unless it is plain."""
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


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
