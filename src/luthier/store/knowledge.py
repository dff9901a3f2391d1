"""Knowledge bases and their documents: what is kept about them in the database (the chunks are in an index, in the base's folder)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select, update

from luthier.core.errors import ConflictError, InputError, NotFoundError, did_you_mean
from luthier.store.database import Store
from luthier.store.home import disk_errors, now
from luthier.store.tables import knowledge_bases, knowledge_documents


@dataclass(frozen=True)
class KnowledgeRecord:
    """How a knowledge base is made: the embedder by name and digest, and the entries of its catalogues with their options.

    ``chunker``, ``index``: ``{"name": ..., **options}``; ``retrieval``: a list of such; ``answer``: the mode and its options, and the ``model`` that
    writes. ``version`` counts changes of its documents.
    """

    name: str
    embedder: str
    embedder_digest: str
    width: int
    chunker: Mapping[str, Any]
    index: Mapping[str, Any]
    retrieval: Sequence[Mapping[str, Any]] = ()
    answer: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    created_at: str = ""
    version: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """How often its index was built anew."""
        return int(self.meta.get("generation", 0))


@dataclass(frozen=True)
class DocumentRecord:
    """A document of a base. ``id`` follows from base, source and content; ``status`` is ready or failed (then ``error`` says why).

    ``size_bytes`` and ``modified_ns`` are the file's when it was read: while they are the same it is not read again.
    """

    id: str
    base: str
    source: str
    digest: str
    title: str = ""
    media_type: str = ""
    language: str = ""
    status: str = "ready"
    error: str = ""
    pages: int | None = None
    chunks: int = 0
    size_bytes: int = 0
    modified_ns: int = 0
    labels: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    added_at: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def folder_of(store: Store, name: str) -> Path:
    """Where a base's index lies."""
    return store.home.root / "knowledge" / name


def check_new(store: Store, name: str) -> None:
    """Raise InputError for a name that is no name, ConflictError for one that is taken."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > 64 or not all(c.isalnum() or c in "-_." for c in name):
        raise InputError(f"name must be 1 to 64 letters, digits, '-', '_' or '.'; got {name!r}")
    if name.startswith((".", "-")):
        raise InputError(f"name must begin with a letter, a digit or '_'; got {name!r}")
    with store.read() as connection:
        _check_free(connection, name)


def record_base(store: Store, record: KnowledgeRecord) -> KnowledgeRecord:
    """Write a new base. Raises as ``check_new``."""
    check_new(store, record.name)
    record = replace(record, created_at=record.created_at or now())
    with store.write() as connection:
        _check_free(connection, record.name)
        connection.execute(insert(knowledge_bases).values(**_plain(record)))
    return record


def _check_free(connection: Any, name: str) -> None:
    if connection.execute(select(knowledge_bases.c.name).where(knowledge_bases.c.name == name)).first() is not None:
        raise ConflictError(f"knowledge base {name!r} is there already", hint=f"luthier kb show {name}")


def find_base(store: Store, name: str) -> KnowledgeRecord:
    """A base by its name. Raises NotFoundError with the near names."""
    with store.read() as connection:
        row = connection.execute(select(knowledge_bases).where(knowledge_bases.c.name == name)).mappings().first()
        names = [] if row is not None else list(connection.execute(select(knowledge_bases.c.name)).scalars())
    if row is None:
        raise NotFoundError(
            f"knowledge base {name!r} is not known. {did_you_mean(name, names)}", hint="luthier kb list"
        )
    return KnowledgeRecord(**{each.name: row[each.name] for each in fields(KnowledgeRecord)})


def list_bases(store: Store) -> list[KnowledgeRecord]:
    """All bases by name."""
    with store.read() as connection:
        rows = connection.execute(select(knowledge_bases).order_by(knowledge_bases.c.name)).mappings().all()
    return [KnowledgeRecord(**{each.name: row[each.name] for each in fields(KnowledgeRecord)}) for row in rows]


def update_base(store: Store, name: str, **changes: Any) -> KnowledgeRecord:
    """Change fields of a base; those who have it open see it at their next search. Raises NotFoundError."""
    find_base(store, name)
    with store.write() as connection:
        connection.execute(update(knowledge_bases).where(knowledge_bases.c.name == name).values(**changes))
        _changed(connection, name)
    return find_base(store, name)


def delete_base(store: Store, name: str) -> None:
    """Forget a base and its documents; its folder is the caller's. Raises NotFoundError."""
    find_base(store, name)
    with store.write() as connection:
        connection.execute(delete(knowledge_documents).where(knowledge_documents.c.base == name))
        connection.execute(delete(knowledge_bases).where(knowledge_bases.c.name == name))


def list_documents(store: Store, base: str) -> list[DocumentRecord]:
    """The documents of a base by source."""
    query = select(knowledge_documents).where(knowledge_documents.c.base == base).order_by(knowledge_documents.c.source)
    with store.read() as connection:
        rows = connection.execute(query).mappings().all()
    out = []
    for row in rows:
        values = {each.name: row[each.name] for each in fields(DocumentRecord)}
        out.append(DocumentRecord(**values | {name: tuple(values[name] or ()) for name in ("labels", "warnings")}))
    return out


def put_documents(store: Store, base: str, documents: Sequence[DocumentRecord]) -> None:
    """Write documents in one transaction; each takes the place of the one with its source."""
    if not documents:
        return
    with store.write() as connection:
        sources = [each.source for each in documents]
        for start in range(0, len(sources), 500):
            same = knowledge_documents.c.source.in_(sources[start : start + 500])
            connection.execute(delete(knowledge_documents).where(knowledge_documents.c.base == base, same))
        connection.execute(insert(knowledge_documents), [_plain(each) for each in documents])
        _changed(connection, base)


def replace_documents(store: Store, record: KnowledgeRecord, documents: Sequence[DocumentRecord]) -> None:
    """Write how a base is made and all its documents in place of those it had, in one transaction."""
    values = {key: value for key, value in _plain(record).items() if key not in ("name", "version", "created_at")}
    made = {key: values[key] for key in ("embedder", "embedder_digest", "width", "chunker", "index", "meta")}
    with store.write() as connection:
        connection.execute(delete(knowledge_documents).where(knowledge_documents.c.base == record.name))
        for start in range(0, len(documents), 500):
            rows = [_plain(each) for each in documents[start : start + 500]]
            connection.execute(insert(knowledge_documents), rows)
        connection.execute(update(knowledge_bases).where(knowledge_bases.c.name == record.name).values(**made))
        _changed(connection, record.name)


def drop_documents(store: Store, base: str, ids: Sequence[str]) -> int:
    """Forget documents by their ids; returns how many there were."""
    gone = 0
    with store.write() as connection:
        for start in range(0, len(ids), 500):
            chosen = knowledge_documents.c.id.in_(ids[start : start + 500])
            gone += connection.execute(
                delete(knowledge_documents).where(knowledge_documents.c.base == base, chosen)
            ).rowcount
        _changed(connection, base)
    return gone


def document_ids(store: Store, base: str) -> tuple[int, frozenset[str]]:
    """The base's version, and the ids of the documents that it has now."""
    chosen = knowledge_documents.c.base == base
    with store.read() as connection:
        version = connection.execute(select(knowledge_bases.c.version).where(knowledge_bases.c.name == base)).scalar()
        ids = connection.execute(select(knowledge_documents.c.id).where(chosen)).scalars().all()
    return int(version or 0), frozenset(ids)


def base_version(store: Store, base: str) -> int:
    """How often the base and its documents were changed; -1 for one that is not there."""
    with store.read() as connection:
        query = select(knowledge_bases.c.version).where(knowledge_bases.c.name == base)
        found = connection.execute(query).scalar()
    return -1 if found is None else int(found)


@contextmanager
def writing(store: Store, name: str, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Only one process at a time changes a base; others wait here (``waiting`` is called once before). The system frees the lock of a
    process that dies. Raises NotFoundError when there is no such base (any more), StoreError when the disk refuses."""
    import fcntl
    import os

    find_base(store, name)
    file = store.home.root / "knowledge" / ".locks" / name  # not in the base's folder, which is removed with it
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        folder_of(store, name).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        find_base(store, name)  # it may have been removed meanwhile
        yield
    finally:
        os.close(descriptor)


def _changed(connection: Any, base: str) -> None:
    more = {"version": knowledge_bases.c.version + 1}
    connection.execute(update(knowledge_bases).where(knowledge_bases.c.name == base).values(**more))


def _plain(record: KnowledgeRecord | DocumentRecord) -> dict[str, Any]:
    """The fields as the database takes them: JSON has neither tuples nor read-only mappings."""
    out: dict[str, Any] = {}
    for each in fields(record):
        value = getattr(record, each.name)
        if isinstance(value, Mapping):
            value = dict(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = list(value)
        out[each.name] = value
    return out
