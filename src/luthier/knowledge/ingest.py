"""Adding documents: what changed since the last time is parsed, cut, embedded and indexed, a batch at a time.

A batch is done in three steps, each atomic: its rows go into the index under new document ids, the database takes these documents in place
of the old ones, the old rows leave the index. A process that dies between them leaves rows that no search shows (``KnowledgeBase.current``)
and that the next addition removes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.document import Chunk, Document
from luthier.core.errors import InputError, LuthierError, StoreError
from luthier.core.run import Progress
from luthier.knowledge.base import KnowledgeBase, document_id, open_index
from luthier.knowledge.chunk import chunk_document
from luthier.knowledge.index import Index, IndexRow
from luthier.knowledge.parse import parse_bytes, parse_file
from luthier.store.home import now
from luthier.store.knowledge import (
    DocumentRecord,
    document_ids,
    drop_documents,
    find_base,
    folder_of,
    put_documents,
    update_base,
    writing,
)

if TYPE_CHECKING:
    from luthier.store.database import Store

BATCH = 1024
"""Chunks that are embedded and written together."""
_HIDDEN = (".", "~$")


@dataclass(frozen=True)
class AddReport:
    """What an addition did: sources by what became of them."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    chunks: int = 0
    warnings: tuple[tuple[str, str], ...] = ()


@dataclass
class _Ready:
    """A document that was parsed and cut."""

    record: DocumentRecord
    chunks: list[Chunk]
    old: str = ""


@dataclass
class _Work:
    """One addition on its way."""

    base: KnowledgeBase
    labels: tuple[str, ...]
    meta: dict[str, Any]
    options: Mapping[str, Mapping[str, Any]] | None
    known: dict[str, DocumentRecord]
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    chunks: int = 0


def add(
    base: KnowledgeBase,
    sources: Sequence[str | Path],
    *,
    labels: tuple[str, ...],
    meta: dict[str, Any],
    options: Mapping[str, Mapping[str, Any]] | None,
    progress: Progress,
) -> AddReport:
    """See ``KnowledgeBase.add``."""
    listed, folders = _listed(sources)
    with writing(base.store, base.name):
        _sweep(base)
        work = _Work(base, labels, meta, options, {each.source: each for each in base.documents()})
        batch: list[_Ready] = []
        for done, source in enumerate(listed, 1):
            ready = _read(work, source)
            batch += [ready] if ready is not None else []
            if sum(len(each.chunks) for each in batch) >= BATCH or done == len(listed):
                _write(work, batch)
                batch = []
            progress("add", done, len(listed))
        removed = _gone(work, set(listed), folders)
        if work.added or work.changed or removed:
            base.index.optimize()
    return AddReport(
        tuple(work.added), tuple(work.changed), tuple(work.unchanged), removed, tuple(work.failed), work.chunks,
        tuple(work.warnings),
    )  # fmt: skip


def rebuild(name: str, store: Store, progress: Progress) -> AddReport:
    """See ``knowledge.base.rebuild_base``."""
    from luthier.knowledge.base import _cache, _embedding_engine, _opened
    from luthier.knowledge.embed import Embedder

    record = find_base(store, name)
    engine = _embedding_engine(record.embedder, store)
    embedder = Embedder(engine, _cache(store))
    fresh = replace(record, embedder_digest=embedder.digest, width=embedder.width)
    aside, place = folder_of(store, name) / "index.new", folder_of(store, name) / "index"
    with writing(store, name):
        shutil.rmtree(aside, ignore_errors=True)
        base = _opened(store, fresh, embedder, own=True)
        base.index.close()
        base.index = open_index(store, fresh, aside)
        work = _Work(base, (), {}, None, {})
        records: list[DocumentRecord] = []
        known = base.documents()
        for done, old in enumerate(known, 1):
            ready = _parsed(work, old.source, old)
            if ready is not None:
                _index(base, [ready], base.index)
                records.append(ready.record)
                work.chunks += len(ready.chunks)
            progress("add", done, len(known))
        base.index.optimize()
        base.close()
        backup = folder_of(store, name) / "index.old"
        shutil.rmtree(backup, ignore_errors=True)
        if place.exists():
            place.rename(backup)
        aside.rename(place)
        put_documents(store, name, records)
        update_base(store, name, embedder_digest=fresh.embedder_digest, width=fresh.width)
        shutil.rmtree(backup, ignore_errors=True)
    return AddReport(changed=tuple(each.source for each in records), failed=tuple(work.failed), chunks=work.chunks)


def _listed(sources: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """All single sources in order, and the folders among those that were given. Raises InputError for one that is not there."""
    out: dict[str, None] = {}
    folders = []
    for source in sources:
        if _is_url(str(source)):
            out[str(source)] = None
            continue
        path = Path(source).expanduser().absolute()
        if path.is_dir():
            folders.append(str(path))
            out |= dict.fromkeys(map(str, _files(path)))
        elif path.exists():
            out[str(path)] = None
        else:
            raise InputError(f"no such file or folder: {source}")
    return list(out), folders


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder by name; hidden ones and links that lead elsewhere are left out."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(_HIDDEN):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            yield path


def _read(work: _Work, source: str) -> _Ready | None:
    """A source that is new or has changed, parsed and cut; None when it has not changed or cannot be read (which is noted)."""
    old = work.known.get(source)
    if old is not None and not _is_url(source):
        stat = Path(source).stat()
        same = (stat.st_size, stat.st_mtime_ns) == (old.size_bytes, old.modified_ns)
        if same and old.labels == work.labels and not work.meta:
            work.unchanged.append(source)
            return None
    ready = _parsed(work, source, old)
    if ready is None:
        return None
    if (
        old is not None
        and (ready.record.id, old.labels, old.status) == (old.id, work.labels, "ready")
        and not work.meta
    ):
        put_documents(work.base.store, work.base.name, [replace(old, modified_ns=ready.record.modified_ns)])
        work.unchanged.append(source)  # written again with the same content
        return None
    (work.changed if old is not None else work.added).append(source)
    return ready


def _parsed(work: _Work, source: str, old: DocumentRecord | None) -> _Ready | None:
    base = work.base
    labels = work.labels or (old.labels if old is not None else ())
    meta = {**(old.meta if old is not None else {}), **work.meta}
    size, modified = 0, 0
    try:
        if _is_url(source):
            from luthier.knowledge.fetch import fetch

            fetched = fetch(source)
            document = parse_bytes(fetched.data, source, media_type=fetched.media_type, options=work.options)
            size = len(fetched.data)
        else:
            stat = Path(source).stat()
            size, modified = stat.st_size, stat.st_mtime_ns
            document = parse_file(source, work.options)
        options = dict(base.record.chunker)
        chunks = chunk_document(document, str(options.pop("name")), options, replace(base.tools, ask=base.ask))
    except StoreError:
        raise
    except (LuthierError, OSError) as error:
        reason = error.message if isinstance(error, LuthierError) else str(error)
        work.failed.append((source, reason))
        if old is None:
            failed = DocumentRecord(
                document_id(base.name, source, ""), base.name, source, "", status="failed", error=reason, labels=labels,
                size_bytes=0, added_at=now(),
            )  # fmt: skip
            put_documents(base.store, base.name, [failed])
        return None
    work.warnings += [(source, each) for each in document.warnings]
    return _Ready(
        _record(base.name, document, chunks, labels, meta, (size, modified)), chunks, old.id if old is not None else ""
    )


def _record(
    base: str,
    document: Document,
    chunks: list[Chunk],
    labels: tuple[str, ...],
    meta: dict[str, Any],
    file: tuple[int, int],
) -> DocumentRecord:
    return DocumentRecord(
        id=document_id(base, document.source, document.digest),
        base=base,
        source=document.source,
        digest=document.digest,
        title=document.title,
        media_type=document.media_type,
        language=document.language,
        pages=document.pages,
        chunks=len(chunks),
        size_bytes=file[0],
        modified_ns=file[1],
        labels=labels,
        warnings=document.warnings,
        added_at=now(),
        meta=meta,
    )


def _write(work: _Work, batch: list[_Ready]) -> None:
    if not batch:
        return
    base = work.base
    _index(base, batch, base.index)
    put_documents(base.store, base.name, [each.record for each in batch])
    base.index.remove([each.old for each in batch if each.old and each.old != each.record.id])
    work.chunks += sum(len(each.chunks) for each in batch)


def _index(base: KnowledgeBase, batch: Sequence[_Ready], index: Index) -> None:
    searched = [chunk for each in batch for chunk in each.chunks if chunk.searched]
    vectors = iter(base.embedder.embed([chunk.embedded for chunk in searched]))
    rows = []
    for each in batch:
        date = (
            datetime.fromtimestamp(each.record.modified_ns / 1e9, UTC).isoformat() if each.record.modified_ns else now()
        )
        meta = {"language": each.record.language, "media_type": each.record.media_type, **each.record.meta}
        own = partial(_own_id, each.record.id)
        for chunk in each.chunks:
            rows.append(
                IndexRow(
                    chunk=replace(chunk, id=own(chunk.id), parent=own(chunk.parent) if chunk.parent else ""),
                    document=each.record.id,
                    source=each.record.source,
                    title=each.record.title,
                    labels=each.record.labels,
                    date=str(meta.get("date") or date),
                    meta=meta,
                    vector=np.asarray(next(vectors)) if chunk.searched else None,
                )
            )
    index.add(rows)


def _own_id(document: str, chunk: str) -> str:
    """A chunk's id in the index: files with the same content have chunks of their own."""
    return f"{document.removeprefix('doc_')}{chunk}"[:48]


def _gone(work: _Work, listed: set[str], folders: Sequence[str]) -> tuple[str, ...]:
    """Drop documents of the folders whose files are not there any more."""
    base = work.base
    gone = [
        each
        for each in work.known.values()
        if each.source not in listed and any(Path(each.source).is_relative_to(folder) for folder in folders)
    ]
    if gone:
        drop_documents(base.store, base.name, [each.id for each in gone])
        base.index.remove([each.id for each in gone])
    return tuple(each.source for each in gone)


def _sweep(base: KnowledgeBase) -> None:
    """Remove rows of documents that the database does not know: of a process that died."""
    _, known = document_ids(base.store, base.name)
    strangers = [each for each in base.index.documents() if each not in known]
    if strangers:
        base.index.remove(strangers)


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))
