"""The audit log: who did what to which thing, when, from where. Rows are only ever added.

Each row carries the hash of the row before it, so a row that is changed, removed or slipped in shows (``verify``). What a chain cannot show by
itself is that its newest rows are gone: keep the newest hash elsewhere and give it to ``verify``.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, insert, select, text

from luthier.core.errors import InputError, StoreError
from luthier.core.key import LOCAL
from luthier.store.database import Store, to_json
from luthier.store.home import now
from luthier.store.tables import audit_log

FIRST = "0" * 64
_LOCK = 7_305_114  # any constant: PostgreSQL's advisory lock that lets one writer append at a time
_PAGE = 1_000


@dataclass(frozen=True)
class AuditRecord:
    """One row. ``actor`` is a key's id, ``user:NAME`` for somebody at a terminal, or the part of the gateway that acted by itself."""

    number: int
    at: str
    actor: str
    tenant: str
    address: str
    action: str
    target: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    previous: str = FIRST
    hash: str = ""

    def computed_hash(self) -> str:
        """sha256 over everything else in the row, the hash of the row before it included."""
        values = {name: value for name, value in asdict(self).items() if name != "hash"}
        return sha256(json.dumps(values, sort_keys=True, ensure_ascii=True).encode("ascii")).hexdigest()


def audit(
    store: Store,
    actor: str,
    action: str,
    target: str,
    detail: Mapping[str, Any] | None = None,
    *,
    tenant: str = LOCAL,
    address: str = "",
) -> AuditRecord:
    """Add a row in a transaction of its own. Blocks on the database: call it from a thread where an event loop runs."""
    with store.write() as connection:
        return append(connection, actor, action, target, detail, tenant=tenant, address=address)


def append(
    connection: Connection,
    actor: str,
    action: str,
    target: str,
    detail: Mapping[str, Any] | None = None,
    *,
    tenant: str = LOCAL,
    address: str = "",
) -> AuditRecord:
    """Add a row inside a write transaction, so that what was done and the row that says so stand or fall together."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    last = connection.execute(
        select(audit_log.c.number, audit_log.c.hash).order_by(audit_log.c.number.desc()).limit(1)
    ).first()
    plain = json.loads(to_json(dict(detail or {})))  # as it will be read again
    row = AuditRecord(
        number=last.number + 1 if last else 1,
        at=now(),
        actor=actor[:128],
        tenant=tenant,
        address=address[:64],
        action=action,
        target=target[:256],
        detail=plain,
        previous=last.hash if last else FIRST,
    )
    row = AuditRecord(**asdict(row) | {"hash": row.computed_hash()})
    connection.execute(insert(audit_log).values(**asdict(row)))
    return row


def list_audit(
    store: Store,
    *,
    action: str | None = None,
    actor: str | None = None,
    target: str | None = None,
    tenant: str | None = None,
    since: str | None = None,
    limit: int = 100,
) -> list[AuditRecord]:
    """The newest rows, newest first. ``action`` may end in ``*`` (``key.*``); ``since`` is an ISO-8601 time."""
    query = select(audit_log).order_by(audit_log.c.number.desc()).limit(limit)
    if action is not None:
        query = query.where(
            audit_log.c.action.startswith(action[:-1], autoescape=True)
            if action.endswith("*")
            else audit_log.c.action == action
        )
    for column, value in ((audit_log.c.actor, actor), (audit_log.c.target, target), (audit_log.c.tenant, tenant)):
        query = query if value is None else query.where(column == value)
    if since is not None:
        query = query.where(audit_log.c.at >= since)
    with store.read() as connection:
        return [_record(row) for row in connection.execute(query).mappings()]


def verify(store: Store, expected: str | None = None) -> AuditRecord | None:
    """Walk the whole chain; returns its newest row (None when there is none).

    ``expected`` is the hash of a row (or its first 12 characters or more) that must still be there. Raises StoreError that names the first row that was changed, removed or slipped in.
    """
    if expected is not None and not 12 <= len(expected) <= 64:
        raise InputError(f"expected must be 12 to 64 characters of a hash; got {len(expected)}")
    last: AuditRecord | None = None
    found = expected is None
    with store.read() as connection:
        while True:
            after = last.number if last else 0
            query = select(audit_log).where(audit_log.c.number > after).order_by(audit_log.c.number).limit(_PAGE)
            rows = [_record(row) for row in connection.execute(query).mappings()]
            for row in rows:
                _check(last, row)
                found = found or row.hash.startswith(expected or "")
                last = row
            if not rows:
                break
    if not found:
        raise StoreError(f"the audit log was cut: no row has the hash {expected}", hint="restore it from a backup")
    return last


def _check(last: AuditRecord | None, row: AuditRecord) -> None:
    number, previous = (last.number + 1, last.hash) if last else (1, FIRST)
    if row.number != number:
        raise StoreError(f"the audit log was changed: row {number} is missing", hint="restore it from a backup")
    if row.previous != previous or row.hash != row.computed_hash():
        raise StoreError(
            f"the audit log was changed: row {number} ({row.at} {row.actor} {row.action} {row.target}) is not as it was written",
            hint="restore it from a backup",
        )


def user() -> str:
    """The actor of somebody at a terminal: ``user:NAME``."""
    try:
        return f"user:{getpass.getuser()}"
    except (KeyError, OSError):  # a container without a name for its user
        return "user:unknown"


def _record(row: Mapping[Any, Any]) -> AuditRecord:
    return AuditRecord(**{each.name: row[each.name] for each in fields(AuditRecord)})
