"""Files of tenants: a row each, the bytes in an artifact under their digest, so that equal content is on the disk once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, insert, select

from luthier.core.batch import FileRecord
from luthier.core.errors import NotFoundError, StoreError
from luthier.store.artifacts import discard_unused, path_of, put, staged
from luthier.store.database import Store
from luthier.store.home import new_id, now
from luthier.store.tables import files

CONTENT = "content"
"""The one file of an artifact that holds a tenant's file."""


@contextmanager
def receiving(store: Store) -> Iterator[Path]:
    """A path to write a file's bytes to, before ``keep_file``. It is removed at the end, whatever happens."""
    with staged(store) as folder:
        yield folder / CONTENT


def keep_file(
    store: Store, path: Path, *, tenant: str, name: str, purpose: str, key_id: str = "", keep_days: float | None = None
) -> FileRecord:
    """Make a file out of what was written to a ``receiving`` path. Raises StoreError when the disk refuses."""
    size = path.stat().st_size
    digest, _ = put(store, path.parent)
    expires = None if keep_days is None else datetime.now(UTC) + timedelta(days=keep_days)
    made = FileRecord(
        id=new_id("file"),
        tenant=tenant,
        name=name,
        purpose=purpose,
        size_bytes=size,
        digest=digest,
        created_at=now(),
        key_id=key_id,
        expires_at=expires.isoformat(timespec="milliseconds").replace("+00:00", "Z") if expires else None,
    )
    with store.write() as connection:
        connection.execute(insert(files).values(**asdict(made)))
    try:
        path_of(store, digest)
    except StoreError:  # somebody deleted the last other file of this content at this very moment
        with store.write() as connection:
            connection.execute(delete(files).where(files.c.id == made.id))
        raise
    return made


def keep_copy(store: Store, source: Path, **about: Any) -> FileRecord:
    """Make a file with the bytes of ``source``, which stays."""
    with receiving(store) as path:
        shutil.copyfile(source, path)
        return keep_file(store, path, **about)


def find_file(store: Store, file_id: str, tenant: str) -> FileRecord:
    """A tenant's file. Raises NotFoundError, also for another tenant's."""
    with store.read() as connection:
        row = (
            connection.execute(select(files).where(files.c.id == file_id, files.c.tenant == tenant)).mappings().first()
        )
    if row is None:
        raise NotFoundError(f"file {file_id!r} is not known")
    return _record(row)


def list_files(
    store: Store,
    tenant: str,
    *,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = 100,
    ascending: bool = False,
) -> list[FileRecord]:
    """A tenant's files, newest first; ``after`` is the id of the last one of an earlier page."""
    order = files.c.id.asc() if ascending else files.c.id.desc()
    query = select(files).where(files.c.tenant == tenant).order_by(order).limit(limit)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    if after is not None:
        query = query.where(files.c.id > after if ascending else files.c.id < after)
    with store.read() as connection:
        return [_record(row) for row in connection.execute(query).mappings()]


def file_path(store: Store, file: FileRecord) -> Path:
    """Where the bytes are. Raises StoreError when they are damaged."""
    return path_of(store, file.digest) / CONTENT


def delete_file(store: Store, file_id: str, tenant: str) -> None:
    """Remove a tenant's file, and its bytes unless another file has the same. Raises NotFoundError."""
    found = find_file(store, file_id, tenant)
    with store.write() as connection:
        connection.execute(delete(files).where(files.c.id == found.id))
    discard_unused(store, found.digest)


def held_by(store: Store, tenant: str) -> tuple[int, int]:
    """(files, bytes) of a tenant."""
    query = select(func.count(), func.coalesce(func.sum(files.c.size_bytes), 0)).where(files.c.tenant == tenant)
    with store.read() as connection:
        count, size = connection.execute(query).one()
    return int(count), int(size)


def expire_files(store: Store) -> int:
    """Remove files whose time is over; returns how many."""
    with store.read() as connection:
        rows = connection.execute(select(files).where(files.c.expires_at < now())).mappings().all()
    for row in rows:
        delete_file(store, row["id"], row["tenant"])
    return len(rows)


def _record(row: Mapping[Any, Any]) -> FileRecord:
    return FileRecord(**{each.name: row[each.name] for each in fields(FileRecord)})
