"""Some values of each column, within a time of their own."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Sequence
from typing import Any

from luthier.apps.sql.schema import samples_of

MOST_TABLES = 500
_ALL_S, _EACH_S = 10.0, 1.0


class Sampler:
    """Reads samples until ten seconds are spent; a table too slow to be looked at (a view over much) goes without.

    ``fetch`` runs a query with a time limit in seconds and gives rows, or raises whatever its driver raises.
    """

    def __init__(
        self,
        fetch: Callable[[str, float], Sequence[Sequence[Any]]],
        count: int,
        private: Sequence[str],
        quote: str = '"',
    ) -> None:
        self._fetch, self._count, self._quote = fetch, count, quote
        self._private = [pattern.lower() for pattern in private]
        self._deadline = time.monotonic() + _ALL_S

    def of(self, table: str, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Samples of the columns that are not private, from the first rows of ``table``."""
        shown = [each for each in columns if not self._hidden(table, each)]
        if not shown or not self._count or time.monotonic() > self._deadline:
            return {}
        names = ", ".join(map(self.quoted, shown))
        try:
            rows = self._fetch(f"SELECT {names} FROM {self.quoted(table)} LIMIT 200", _EACH_S)
        except Exception:  # noqa: BLE001 - drivers raise what they like; a table without samples is still a table
            return {}
        return {name: samples_of([row[at] for row in rows], self._count) for at, name in enumerate(shown)}

    def quoted(self, name: str) -> str:
        """A name in the dialect's quotes."""
        return self._quote + name.replace(self._quote, 2 * self._quote) + self._quote

    def _hidden(self, table: str, column: str) -> bool:
        names = (column.lower(), f"{table}.{column}".lower())
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self._private)
