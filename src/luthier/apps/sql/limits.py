"""What a query may use, what it gives back, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.core.errors import EngineError, InputError


@dataclass(frozen=True)
class Limits:
    """Of one query. ``memory_mb`` is what the process that holds the database may take beyond its program (tables loaded from files count);
    ``cell_characters`` and ``result_bytes`` cut values and results that are longer. The time of a query ends at most a second late."""

    timeout_s: float = 30.0
    rows: int = 1000
    memory_mb: int = 1024
    cell_characters: int = 4000
    result_bytes: int = 8_000_000

    def __post_init__(self) -> None:
        checks = (
            ("timeout_s", 0 < self.timeout_s <= 3600, "above 0 and at most 3600"),
            ("rows", 1 <= self.rows <= 1_000_000, "1 to 1,000,000"),
            ("memory_mb", self.memory_mb >= 64, "at least 64"),
            ("cell_characters", 16 <= self.cell_characters <= 1_000_000, "16 to 1,000,000"),
            ("result_bytes", 1000 <= self.result_bytes <= 1_000_000_000, "1,000 to 1,000,000,000"),
        )
        for name, good, allowed in checks:
            if not good:
                raise InputError(f"{name} must be {allowed}; got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Result:
    """Rows of a query. ``cut``: there were more than the limits let through."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...] = ()
    cut: bool = False
    took_s: float = 0.0


class QueryError(InputError):
    """The database refused a query, or it passed its limits; the message is for whoever wrote the query."""


class LostError(EngineError):
    """The connection to a database server is gone."""
