"""Batches in the store, and which server process works on them: a claim that must be renewed, so that what a killed one left is taken up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, or_, select, update

from luthier.core.batch import OPEN, BatchRecord
from luthier.core.errors import ConflictError, NotFoundError
from luthier.store.database import Store
from luthier.store.home import disk_errors, new_id, now
from luthier.store.tables import batches


def create_batch(
    store: Store,
    *,
    tenant: str,
    key_id: str,
    endpoint: str,
    input_file: str,
    window: str,
    expires_at: str,
    about: Mapping[str, str] | None = None,
) -> BatchRecord:
    """A new batch, to be validated."""
    made = BatchRecord(
        id=new_id("batch"),
        tenant=tenant,
        endpoint=endpoint,
        input_file=input_file,
        window=window,
        status="validating",
        created_at=now(),
        expires_at=expires_at,
        key_id=key_id,
        about=dict(about or {}),
    )
    with store.write() as connection:
        connection.execute(insert(batches).values(**_row(made)))
    return made


def find_batch(store: Store, batch_id: str, tenant: str | None = None) -> BatchRecord:
    """A batch. Raises NotFoundError, also for another than ``tenant``'s, where that is given."""
    with store.read() as connection:
        return _find(connection, batch_id, tenant)


def list_batches(
    store: Store, tenant: str | None = None, *, after: str | None = None, limit: int = 20, states: Sequence[str] = ()
) -> list[BatchRecord]:
    """Batches, newest first."""
    query = select(batches).order_by(batches.c.id.desc()).limit(limit)
    query = query if tenant is None else query.where(batches.c.tenant == tenant)
    query = query if after is None else query.where(batches.c.id < after)
    query = query.where(batches.c.status.in_(states)) if states else query
    with store.read() as connection:
        return [_record(row) for row in connection.execute(query).mappings()]


def count_open(store: Store, tenant: str) -> int:
    """How many batches of a tenant have something to be done."""
    query = select(func.count()).where(batches.c.tenant == tenant, batches.c.status.in_(OPEN))
    with store.read() as connection:
        return int(connection.execute(query).scalar_one())


def cancel_batch(store: Store, batch_id: str, tenant: str | None = None) -> BatchRecord:
    """Have a batch stop. Raises ConflictError for one that has ended."""
    with store.write() as connection:
        found = _find(connection, batch_id, tenant)
        if found.status == "cancelling":
            return found
        if found.status not in ("validating", "in_progress"):
            raise ConflictError(f"batch {batch_id} is {found.status} and cannot be cancelled any more")
        return _change(connection, found, status="cancelling", times={**found.times, "cancelling": now()})


def claim_batches(
    store: Store, worker: str, at_s: float, lease_s: float, limit: int, tenants: Sequence[str] | None = None
) -> list[BatchRecord]:
    """Take batches that nobody works on, of ``tenants`` where that is given: tenants in turn, each one's oldest first."""
    free = or_(batches.c.worker.is_(None), batches.c.lease_until_s < at_s, batches.c.worker == worker)
    turn = func.row_number().over(partition_by=batches.c.tenant, order_by=batches.c.id).label("turn")
    query = select(batches, turn).where(batches.c.status.in_(OPEN), free).order_by(turn, batches.c.id).limit(limit)
    if tenants is not None:
        query = query.where(batches.c.tenant.in_(tenants))
    with store.read() as connection:  # cheap, and most of the time there is nothing
        if connection.execute(query).first() is None:
            return []
    with store.write() as connection:
        found = [_record(row) for row in connection.execute(query).mappings()]
        return [_change(connection, each, worker=worker, lease_until_s=at_s + lease_s) for each in found]


def renew(store: Store, worker: str, held: Sequence[str], at_s: float, lease_s: float) -> dict[str, str]:
    """Go on holding batches; returns the status of those that are still held, which a client may have changed to cancelling."""
    if not held:
        return {}
    mine = (batches.c.id.in_(held), batches.c.worker == worker)
    with store.write() as connection:
        connection.execute(update(batches).where(*mine).values(lease_until_s=at_s + lease_s))
        rows = connection.execute(select(batches.c.id, batches.c.status).where(*mine))
        return {row.id: row.status for row in rows}


def release(store: Store, worker: str, held: Sequence[str]) -> None:
    """Let others take batches."""
    if held:
        with store.write() as connection:
            connection.execute(
                update(batches)
                .where(batches.c.id.in_(held), batches.c.worker == worker)
                .values(worker=None, lease_until_s=None)
            )


def update_batch(store: Store, worker: str, batch_id: str, *, to: str | None = None, **changes: Any) -> BatchRecord:
    """Change a batch that ``worker`` holds; ``to`` is a new status. Raises ConflictError when it is no longer held."""
    with store.write() as connection:
        found = _find(connection, batch_id, None)
        if found.worker != worker:
            raise ConflictError(f"batch {batch_id} is another worker's")
        if to is not None:
            changes |= {"status": to, "times": {**found.times, to: now()}}
            if to not in OPEN:
                changes |= {"worker": None, "lease_until_s": None}
        return _change(connection, found, **changes)


def batch_folder(store: Store, batch_id: str) -> Path:
    """Where a batch's answers are gathered until they become files."""
    folder = store.home.root / "batches" / batch_id
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _find(connection: Connection, batch_id: str, tenant: str | None) -> BatchRecord:
    query = select(batches).where(batches.c.id == batch_id)
    row = connection.execute(query if tenant is None else query.where(batches.c.tenant == tenant)).mappings().first()
    if row is None:
        raise NotFoundError(f"batch {batch_id!r} is not known")
    return _record(row)


def _change(connection: Connection, found: BatchRecord, **changes: Any) -> BatchRecord:
    changed = replace(found, **changes)
    row = _row(changed)
    connection.execute(update(batches).where(batches.c.id == found.id).values(**{name: row[name] for name in changes}))
    return changed


def _row(batch: BatchRecord) -> dict[str, Any]:
    row = asdict(batch)
    return row | {
        "times": dict(batch.times),
        "about": dict(batch.about),
        "errors": [dict(each) for each in batch.errors],
    }


def _record(row: Mapping[Any, Any]) -> BatchRecord:
    values = {each.name: row[each.name] for each in fields(BatchRecord)}
    return BatchRecord(**values | {"errors": tuple(values["errors"])})
