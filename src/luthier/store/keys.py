"""Keys and tenants in the store. A key itself is shown once, when it is made; the store has its sha256 only."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert, select, update

from luthier.core.errors import ConflictError, InputError, NotFoundError, did_you_mean
from luthier.core.key import SCOPES, KeyRecord, Limits, check_labels
from luthier.store.audit import append, user
from luthier.store.database import Store
from luthier.store.home import new_id, now
from luthier.store.tables import api_keys, tenants, versions

PREFIX = "lth_"
VERSION = "keys"
DEFAULT_SCOPES = ("inference", "feedback")
_HINT = len(PREFIX) + 6
_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SPAN = re.compile(r"(\d{1,6})(m|h|d|w)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def new_secret() -> str:
    """A key: a prefix by which scanners for leaked secrets recognise it, and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    """sha256 of a key. One round is enough: 256 random bits cannot be guessed, however fast the hash is."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def create_key(
    store: Store,
    tenant: str,
    name: str = "",
    *,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    models: Sequence[str] = ("*",),
    labels: Sequence[str] = (),
    limits: Mapping[str, Any] | None = None,
    expires: str | None = None,
    actor: str | None = None,
    address: str = "",
) -> tuple[KeyRecord, str]:
    """Make a key for ``tenant``; returns its record and the key, which nobody can read again.

    ``models`` are shell patterns; ``labels`` are access labels of documents; ``limits`` are fields of ``core.key.Limits``; ``expires`` is a time (``2027-01-31``) or a span (``90d``, ``12h``).
    Raises InputError for what cannot be.
    """
    secret = new_secret()
    actor = actor or user()
    made = KeyRecord(
        id=new_id("key"),
        tenant=check_tenant(tenant),
        name=_checked_name(name),
        hint=secret[:_HINT],
        digest=digest_of(secret),
        scopes=check_scopes(scopes),
        models=_checked_models(models),
        labels=check_labels(labels),
        limits=Limits().changed(limits or {}),
        created_at=now(),
        created_by=actor,
        expires_at=read_expiry(expires),
    )
    with store.write() as connection:
        connection.execute(insert(api_keys).values(**_row(made)))
        if connection.execute(select(tenants.c.name).where(tenants.c.name == tenant)).first() is None:
            connection.execute(insert(tenants).values(name=tenant, limits={}, created_at=made.created_at))
        _changed(connection)
        said = {name: made.as_dict()[name] for name in ("name", "scopes", "models", "labels", "limits", "expires_at")}
        append(connection, actor, "key.create", made.id, said, tenant=tenant, address=address)
    return made, secret


def list_keys(store: Store, tenant: str | None = None) -> list[KeyRecord]:
    """All keys, oldest first, the dead ones too."""
    query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
    with store.read() as connection:
        rows = connection.execute(query if tenant is None else query.where(api_keys.c.tenant == tenant)).mappings()
        return [_record(row) for row in rows]


def find_key(store: Store, which: str) -> KeyRecord:
    """The key with this id, hint (``lth_a1b2c3``) or name. Raises NotFoundError; ConflictError when a name fits several."""
    with store.read() as connection:
        return _find(connection, which)


def revoke_key(store: Store, which: str, *, actor: str | None = None, address: str = "") -> KeyRecord:
    """End a key for good. Servers that run on this store refuse it within about a second. Revoking twice changes nothing."""
    with store.write() as connection:
        found = _find(connection, which)
        if found.revoked_at is not None:
            return found
        return _change(
            connection, found, "key.revoke", {}, actor, address, revoked_at=now(), old_digest=None, old_until=None
        )


def rotate_key(
    store: Store, which: str, *, grace: str | None = None, actor: str | None = None, address: str = ""
) -> tuple[KeyRecord, str]:
    """Give a key a new secret; id, limits and what it has used stay. The old secret works for ``grace`` (``24h``), without it no longer.

    Raises ConflictError for a key that is revoked or expired.
    """
    until = read_expiry(grace, "grace")
    secret = new_secret()
    with store.write() as connection:
        found = _find(connection, which)
        if found.state() != "active":
            raise ConflictError(f"key {found.id} is {found.state()}; make a new one", hint="luthier keys create TENANT")
        changes = {
            "digest": digest_of(secret), "hint": secret[:_HINT],
            "old_digest": found.digest if until else None, "old_until": until,
        }  # fmt: skip
        return _change(connection, found, "key.rotate", {"old_until": until}, actor, address, **changes), secret


def limit_key(
    store: Store, which: str, limits: Mapping[str, Any], *, actor: str | None = None, address: str = ""
) -> KeyRecord:
    """Change limits of a key; None lifts one, those that are not named stay."""
    with store.write() as connection:
        found = _find(connection, which)
        changed = found.limits.changed(limits)
        return _change(connection, found, "key.limits", dict(limits), actor, address, limits=changed)


def tenant_limits(store: Store, tenant: str) -> Limits:
    """The limits of a tenant. Raises NotFoundError for one without keys."""
    with store.read() as connection:
        return _tenant(connection, tenant)


def limit_tenant(
    store: Store, tenant: str, limits: Mapping[str, Any], *, actor: str | None = None, address: str = ""
) -> Limits:
    """Change the limits that a tenant's keys share."""
    with store.write() as connection:
        changed = _tenant(connection, tenant).changed(limits)
        connection.execute(update(tenants).where(tenants.c.name == tenant).values(limits=changed.as_dict()))
        _changed(connection)
        append(connection, actor or user(), "tenant.limits", tenant, dict(limits), tenant=tenant, address=address)
    return changed


def list_tenants(store: Store) -> dict[str, Limits]:
    """Every tenant that has had a key, with its limits."""
    with store.read() as connection:
        return {row.name: Limits(**row.limits) for row in connection.execute(select(tenants).order_by(tenants.c.name))}


def keys_version(store: Store) -> int:
    """A number that grows whenever a key or a limit changes. Cheap to ask."""
    with store.read() as connection:
        return connection.execute(select(versions.c.number).where(versions.c.name == VERSION)).scalar() or 0


def note_last_used(store: Store, used: Mapping[str, str]) -> None:
    """Write when keys were last used: id to time. Servers need not hear of it."""
    with store.write() as connection:
        for key_id, at in used.items():
            connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=at))


def count_active(store: Store) -> int:
    """How many keys work now."""
    return sum(each.state() == "active" for each in list_keys(store))


def check_tenant(tenant: str) -> str:
    """The name of a tenant, or InputError."""
    if not _TENANT.fullmatch(tenant):
        raise InputError(
            f"tenant must be 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit; got {tenant!r}"
        )
    return tenant


def check_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Scopes in their usual order, or InputError."""
    asked = list(scopes)
    for scope in asked:
        if scope not in SCOPES:
            raise InputError(f"scope {scope!r} is not known. {did_you_mean(scope, SCOPES)}")
    if not asked:
        raise InputError(f"scopes must name at least one of {', '.join(SCOPES)}; got none")
    return tuple(scope for scope in SCOPES if scope in asked)


def read_expiry(text: str | None, name: str = "expires") -> str | None:
    """A time from a span (``30m``, ``12h``, ``90d``, ``4w``) or a date or time of ISO-8601 (UTC when it says no zone). It must be to come."""
    if text is None:
        return None
    span = _SPAN.fullmatch(text.strip())
    try:
        if span:
            at = datetime.now(UTC) + timedelta(**{_UNITS[span[2]]: int(span[1])})
        else:
            at = datetime.fromisoformat(text.strip())
            at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name} must be a span (12h, 90d) or a time (2027-01-31); got {text!r}") from error
    if at <= datetime.now(UTC):
        raise InputError(f"{name} must be in the future; got {text!r}")
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _checked_name(name: str) -> str:
    if len(name) > 128 or not name.isprintable():
        raise InputError(f"name must be at most 128 printable characters; got {len(name)}")
    return name


def _checked_models(models: Iterable[str]) -> tuple[str, ...]:
    patterns = tuple(models)
    if not patterns or not all(0 < len(each) <= 128 for each in patterns):
        raise InputError(f"models must be one or more patterns of 1 to 128 characters; got {list(patterns)}")
    return patterns


def _find(connection: Connection, which: str) -> KeyRecord:
    for column in (api_keys.c.id, api_keys.c.hint, api_keys.c.name):
        rows = connection.execute(select(api_keys).where(column == which)).mappings().all() if which else []
        if len(rows) > 1:
            ids = ", ".join(row["id"] for row in rows[:4])
            raise ConflictError(f"{len(rows)} keys are called {which!r}; say which by its id: {ids}")
        if rows:
            return _record(rows[0])
    if which.startswith(PREFIX) and len(which) > _HINT:
        raise NotFoundError(
            "the key is not known here; name keys by their id or their first characters, so that they stay out of your history",
            hint="luthier keys list",
        )
    raise NotFoundError(f"key {which!r} is not known", hint="luthier keys list")


def _tenant(connection: Connection, tenant: str) -> Limits:
    row = connection.execute(select(tenants.c.limits).where(tenants.c.name == tenant)).first()
    if row is None:
        known = connection.execute(select(tenants.c.name)).scalars().all()
        raise NotFoundError(
            f"tenant {tenant!r} has no key. {did_you_mean(tenant, known)}", hint="luthier keys create TENANT"
        )
    return Limits(**row.limits)


def _change(
    connection: Connection,
    found: KeyRecord,
    action: str,
    detail: Mapping[str, Any],
    actor: str | None,
    address: str,
    **changes: Any,
) -> KeyRecord:
    changed = replace(found, **changes)
    row = _row(changed)
    connection.execute(
        update(api_keys).where(api_keys.c.id == found.id).values(**{name: row[name] for name in changes})
    )
    _changed(connection)
    append(connection, actor or user(), action, found.id, detail, tenant=found.tenant, address=address)
    return changed


def _changed(connection: Connection) -> None:
    done = connection.execute(
        update(versions).where(versions.c.name == VERSION).values(number=versions.c.number + 1)
    ).rowcount
    if not done:
        connection.execute(insert(versions).values(name=VERSION, number=1))


def _row(key: KeyRecord) -> dict[str, Any]:
    row = {column.name: getattr(key, column.name) for column in api_keys.c}
    return row | {
        "scopes": list(key.scopes),
        "models": list(key.models),
        "labels": list(key.labels),
        "limits": key.limits.as_dict(),
    }


def _record(row: Mapping[Any, Any]) -> KeyRecord:
    values = {column.name: row[column.name] for column in api_keys.c}
    return KeyRecord(
        **values
        | {
            "scopes": tuple(values["scopes"]),
            "models": tuple(values["models"]),
            "labels": tuple(values["labels"] or ()),
            "limits": Limits(**values["limits"]),
            "digest": bytes(values["digest"]),
        }
    )
