"""What tables a SQLite database has, as the statements that made them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import lru_cache
from pathlib import Path

from luthier.data.fields import RowError


def schema(database: str) -> str:
    """The CREATE TABLE statements, in their own order, one empty line between. Raises RowError for a file that is no database."""
    path = Path(database)
    if not path.is_file():
        raise RowError(f"there is no database {database}")
    return _read(path.resolve(), path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _read(path: Path, changed_ns: int) -> str:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            found = connection.execute(
                "SELECT sql FROM sqlite_master WHERE type = 'table' AND sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
            ).fetchall()
    except sqlite3.Error as error:
        raise RowError(f"{path} is not a readable SQLite database: {error}") from error
    if not found:
        raise RowError(f"the database {path} has no tables")
    return "\n\n".join(str(sql).strip() for (sql,) in found)
