"""The rows of a batch on the disk, as they come: each group is appended and flushed before the next one is asked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from luthier.gateway.answer import json_bytes
from luthier.gateway.batch.lines import succeeded
from luthier.store.home import disk_errors


class Results:
    """An append-only file of rows. A torn last line (a killed process) is cut off when it is opened; what is whole stays."""

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        """Raises StoreError when the disk refuses."""
        self.path = path
        self.completed = 0
        self.failed = 0
        self.done: set[str] = set()
        with disk_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode)
            self._recover()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows; when this returns, they are on the disk. Raises StoreError, and then none of them counts."""
        if not rows:
            return
        data = b"".join(json_bytes(row) + b"\n" for row in rows)
        with disk_errors(self.path, len(data)):
            end = os.fstat(self._descriptor).st_size
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._descriptor, data[written:])
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, end)
                raise
        for row in rows:
            self._count(row)

    def rows(self) -> Iterator[tuple[bytes, bool]]:
        """Each row as it was written, and whether it is one of an answer."""
        with self.path.open("rb") as file:
            for data in file:
                yield data, succeeded(_row(data) or {"error": {}})

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _recover(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for data in file:
                row = _row(data) if data.endswith(b"\n") else None
                if row is None:
                    break
                whole += len(data)
                self._count(row)
        os.ftruncate(self._descriptor, whole)

    def _count(self, row: dict[str, Any]) -> None:
        self.done.add(row["custom_id"])
        good = succeeded(row)
        self.completed += good
        self.failed += not good


def _row(data: bytes) -> dict[str, Any] | None:
    """A row, None of bytes that are none."""
    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            row = json.loads(data)  # half of a surrogate pair, which orjson does not read
        except ValueError:
            return None
    return row if isinstance(row, dict) else None
