"""Descriptions of tables and columns, written by who knows the database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.apps.sql.schema import Schema
from luthier.core.config import read_yaml
from luthier.core.errors import InputError, did_you_mean

MOST_CHARACTERS = 500


def read_notes(source: str | Path | Mapping[str, Any]) -> dict[str, str]:
    """Notes from a YAML or JSON file, or a mapping: ``table: text``, ``table.column: text``, or ``table: {column: text}`` (the table itself
    under the key ``""``). Raises InputError for what is not text."""
    values = source if isinstance(source, Mapping) else read_yaml(source).values
    out: dict[str, str] = {}
    for name, said in values.items():
        parts = (
            {f"{name}.{column}" if column else str(name): text for column, text in said.items()}
            if isinstance(said, Mapping)
            else {str(name): said}
        )
        for key, text in parts.items():
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"notes: {key} must be described in words; got {text!r}")
            if len(text) > MOST_CHARACTERS:
                raise InputError(
                    f"notes: {key} has {len(text)} characters; at most {MOST_CHARACTERS} are shown to a model"
                )
            out[key] = text
    return out


def check_notes(notes: Mapping[str, str], schema: Schema) -> None:
    """Raise InputError for a note about what the database has not."""
    known = {table.name.lower(): table.name for table in schema.tables}
    known |= {
        f"{table.name}.{column.name}".lower(): f"{table.name}.{column.name}"
        for table in schema.tables
        for column in table.columns
    }
    for name in notes:
        if name.lower() not in known:
            raise InputError(f"notes: the database has no {name!r}. {did_you_mean(name, known.values())}")
