"""Values of a database as JSON and back: what a process that holds a database sends of a result."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_READ: dict[str, Callable[[str], Any]] = {
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "decimal": decimal.Decimal,
}
_SHOWN_BYTES = 32


def encode(value: Any, most_characters: int) -> Any:
    """A value as JSON: what JSON has as it is, times and decimals as ``{kind: text}``, bytes and the rest as text that is cut."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 256 else str(value)[:most_characters]
    for kind, type_ in (("datetime", datetime.datetime), ("date", datetime.date), ("time", datetime.time)):
        if isinstance(value, type_):
            return {kind: value.isoformat()}
    if isinstance(value, decimal.Decimal):
        return {"decimal": str(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value[: _SHOWN_BYTES + 1])
        return f"0x{data[:_SHOWN_BYTES].hex()}" + (f"… ({len(value):,} bytes)" if len(data) > _SHOWN_BYTES else "")
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= most_characters else text[: most_characters - 1] + "…"


def decode(value: Any) -> Any:
    """What ``encode`` made, as a value."""
    if isinstance(value, dict):
        ((kind, text),) = value.items()
        return _READ[kind](text)
    return value


def weight(row: Iterable[Any]) -> int:
    """About how many bytes an encoded row is, in JSON."""
    return sum(6 * len(cell) if isinstance(cell, str) else 24 for cell in row) + 2


class Kept:
    """Rows as they come, ``most`` at most and until the bytes are spent: ``cut`` says that there were more."""

    def __init__(self, rows: int, cell_characters: int, result_bytes: int) -> None:
        self.rows: list[list[Any]] = []
        self.cut = False
        self.most, self._cell, self._left = rows, cell_characters, result_bytes

    @property
    def fetched(self) -> int:
        """How many rows to fetch next: at least one more than are kept, so that a cut is known."""
        return min(self.most + 1 - len(self.rows), 256)

    def add(self, rows: Sequence[Sequence[Any]]) -> bool:
        """Keep ``rows``. False when no more are wanted."""
        for row in rows:
            encoded = [encode(value, self._cell) for value in row]
            self._left -= weight(encoded)
            if len(self.rows) >= self.most or (self._left < 0 and self.rows):
                self.cut = True
                return False
            self.rows.append(encoded)
        return bool(rows)
