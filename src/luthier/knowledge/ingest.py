"""Adding documents: what changed since the last time is parsed, cut, embedded and indexed, a batch at a time.

A batch is done in three steps, each atomic: its rows go into the index under new document ids, the database takes these documents in place
of the old ones, the old rows leave the index. A process that dies between them leaves rows that no search shows (``knowledge.current``),
and a mark by which the next addition knows that it has to remove them.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core import catalog
from luthier.core.document import Chunk, Document
from luthier.core.errors import InputError, LuthierError, StoreError
from luthier.core.run import Progress, no_progress
from luthier.knowledge.base import clear_leftover, document_id
from luthier.knowledge.chunk import chunk_document
from luthier.knowledge.filters import date_of
from luthier.knowledge.index import IndexRow
from luthier.knowledge.parse import parse_bytes, parse_file
from luthier.store.home import disk_errors, file_sha256, now
from luthier.store.knowledge import DocumentRecord, document_ids, drop_documents, folder_of, put_documents, writing

if TYPE_CHECKING:
    from luthier.knowledge.base import KnowledgeBase

BATCH = 1024
"""Chunks that are embedded and written together."""
_HIDDEN = (".", "~$")
_MARK = "unfinished"


@dataclass(frozen=True)
class AddReport:
    """What an addition did: sources by what became of them; ``failed`` and ``warnings`` with what there is to say."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    chunks: int = 0
    warnings: tuple[tuple[str, str], ...] = ()


@dataclass
class Ready:
    """A document that was parsed and cut. ``about`` is what its chunks can be searched by."""

    record: DocumentRecord
    chunks: list[Chunk]
    about: Mapping[str, Any]
    old: str = ""


@dataclass
class Listed:
    """What is to be added: single sources in order, the folders among those given, and folders below them that cannot be read."""

    sources: dict[str, None] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    closed: dict[str, str] = field(default_factory=dict)


@dataclass
class _Work:
    """One addition on its way. ``noted`` are documents of which only the record changes."""

    base: KnowledgeBase
    labels: tuple[str, ...] | None
    meta: dict[str, Any]
    options: Mapping[str, Mapping[str, Any]]
    known: dict[str, DocumentRecord]
    batch: list[Ready] = field(default_factory=list)
    noted: list[DocumentRecord] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    chunks: int = 0


def add(
    base: KnowledgeBase,
    sources: Sequence[str | Path],
    *,
    labels: tuple[str, ...] | None,
    meta: dict[str, Any],
    options: Mapping[str, Mapping[str, Any]],
    progress: Progress,
) -> AddReport:
    """See ``KnowledgeBase.add``."""
    listed = _listed(sources)
    for name, given in options.items():
        catalog.load("parsers", name).configure(given)
    waiting = partial(progress, "wait for another change of this base", 0, 0)
    with writing(base.store, base.name, waiting):
        clear_leftover(base.store, base.record)
        base.refresh()
        mark = folder_of(base.store, base.name) / _MARK
        unfinished = mark.exists()
        if unfinished:
            sweep(base)
        work = _Work(base, labels, meta, options, {each.source: each for each in base.documents()})
        work.failed += listed.closed.items()
        total = len(listed.sources)
        for done, source in enumerate(listed.sources, 1):
            ready = _read(work, source)
            if ready is not None:
                work.batch.append(ready)
            else:
                progress("add", done - len(work.batch), total)
            if sum(len(each.chunks) for each in work.batch) >= BATCH or done == total:
                _write(work, mark, progress, done, total)
        removed = _gone(work, listed, mark)
        if unfinished or mark.exists():
            base.index.optimize()
            mark.unlink(missing_ok=True)
    return AddReport(
        tuple(work.added), tuple(work.changed), tuple(work.unchanged), removed, tuple(work.failed), work.chunks,
        tuple(work.warnings),
    )  # fmt: skip


def add_bytes(
    base: KnowledgeBase,
    data: bytes,
    source: str,
    labels: tuple[str, ...],
    meta: dict[str, Any],
    options: Mapping[str, Mapping[str, Any]],
) -> DocumentRecord:
    """See ``KnowledgeBase.add_bytes``."""
    with writing(base.store, base.name):
        clear_leftover(base.store, base.record)
        base.refresh()
        old = next((each for each in base.documents() if each.source == source), None)
        try:
            ready = cut(base, parse_bytes(data, source, options=options), labels, meta, (len(data), 0))
        except StoreError:
            raise
        except LuthierError as error:
            failed = failed_record(base.name, source, reason_of(source, error), labels, meta)
            put_documents(base.store, base.name, [replace(failed, size_bytes=len(data))])
            if old is not None:
                base.index.remove([old.id])
            return failed
        if old is not None and old.id == ready.record.id:
            ready.record = replace(ready.record, id=document_id(base.name, source, old.digest, old.id))
        mark = folder_of(base.store, base.name) / _MARK
        if mark.exists():
            sweep(base)
        mark_unfinished(mark)
        write_rows(base, [ready])
        put_documents(base.store, base.name, [ready.record])
        if old is not None:
            base.index.remove([old.id])
        base.index.optimize()
        mark.unlink(missing_ok=True)
        return ready.record


def begin_bytes(base: KnowledgeBase, source: str, size_bytes: int, meta: dict[str, Any]) -> DocumentRecord:
    """See ``KnowledgeBase.begin_bytes``. Raises NotFoundError."""
    old = next((each for each in base.documents() if each.source == source), None)
    if old is not None and old.status == "ready":
        return replace(old, status="in_progress")
    made = DocumentRecord(
        document_id(base.name, source, ""), base.name, source, "", status="in_progress", size_bytes=size_bytes,
        added_at=now(), meta=meta,
    )  # fmt: skip
    put_documents(base.store, base.name, [made])
    return made


def sweep(base: KnowledgeBase) -> None:
    """Remove rows of documents that the database does not know: of a process that died."""
    _, known = document_ids(base.store, base.name)
    strangers = [each for each in base.index.documents() if each not in known]
    if strangers:
        base.index.remove(strangers)


def parse_source(
    base: KnowledgeBase,
    source: str,
    options: Mapping[str, Mapping[str, Any]],
    labels: tuple[str, ...],
    meta: Mapping[str, Any],
) -> Ready:
    """A source parsed and cut. Raises LuthierError and OSError for one that cannot be read."""
    size, modified = 0, 0
    if is_url(source):
        from luthier.knowledge.fetch import fetch

        fetched = fetch(source)
        document = parse_bytes(fetched.data, source, media_type=fetched.media_type, options=options)
        size = len(fetched.data)
    else:
        found = os.stat(source)  # noqa: PTH116 - before it is read: what is written meanwhile is seen the next time
        size, modified = found.st_size, found.st_mtime_ns
        document = (base.read or parse_file)(source, options)
    return cut(base, document, labels, meta, (size, modified))


def cut(
    base: KnowledgeBase,
    document: Document,
    labels: tuple[str, ...],
    meta: Mapping[str, Any],
    file: tuple[int, int] = (0, 0),
) -> Ready:
    """A parsed document cut by the base's chunker. ``file``: its bytes and when it was modified (ns)."""
    options = dict(base.record.chunker)
    chunks = chunk_document(document, str(options.pop("name")), options, replace(base.tools, ask=base.ask))
    record = DocumentRecord(
        id=document_id(base.name, document.source, document.digest),
        base=base.name,
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
        meta=dict(meta),
    )
    return Ready(record, chunks, {**document.meta, "language": document.language, "media_type": document.media_type})


def write_rows(base: KnowledgeBase, batch: Sequence[Ready], progress: Progress = no_progress) -> None:
    """Embed the chunks of documents and put them into the index. Raises StoreError when the disk refuses."""
    searched = [chunk for each in batch for chunk in each.chunks if chunk.searched]
    with _disk_errors(base):
        vectors = iter(base.embedder.embed([chunk.embedded for chunk in searched], progress))
        rows = []
        for each in batch:
            meta = {**each.about, **each.record.meta}
            date = date_of(meta.get("date"), each.record.modified_ns) or each.record.added_at
            own = partial(_own_id, each.record.id)
            for chunk in each.chunks:
                rows.append(
                    IndexRow(
                        chunk=replace(chunk, id=own(chunk.id), parent=own(chunk.parent) if chunk.parent else ""),
                        document=each.record.id,
                        source=each.record.source,
                        title=each.record.title,
                        labels=each.record.labels,
                        date=date,
                        meta=meta,
                        vector=np.asarray(next(vectors)) if chunk.searched else None,
                    )
                )
        base.index.add(rows)


@contextmanager
def _disk_errors(base: KnowledgeBase) -> Iterator[None]:
    try:
        with disk_errors(folder_of(base.store, base.name)):
            yield
    except sqlite3.Error as error:
        raise StoreError(f"the cache of vectors cannot be used: {error}", hint="luthier doctor") from error


def failed_record(
    base: str, source: str, reason: str, labels: tuple[str, ...], meta: Mapping[str, Any]
) -> DocumentRecord:
    """What is kept of a document that cannot be read."""
    return DocumentRecord(
        document_id(base, source, ""), base, source, "", status="failed", error=reason, labels=labels,
        added_at=now(), meta=dict(meta),
    )  # fmt: skip


def reason_of(source: str, error: Exception) -> str:
    """Why a source cannot be read, without its whole path."""
    said = error.message if isinstance(error, LuthierError) else str(error)
    return said.replace(source, Path(source).name)


def is_url(source: str) -> bool:
    """Whether a source is fetched."""
    return source.startswith(("http://", "https://"))


def _read(work: _Work, source: str) -> Ready | None:
    """A source that is new or has changed, parsed and cut; None when it has not changed or cannot be read (which is noted)."""
    old = work.known.get(source)
    labels = work.labels if work.labels is not None else old.labels if old is not None else ()
    meta = {**(old.meta if old is not None else {}), **work.meta}
    try:
        source.encode()  # a name that is no text cannot be kept
        same = (
            old is not None and (old.status, old.labels, dict(old.meta)) == ("ready", labels, meta) and not work.options
        )
        if same and old is not None and _unchanged(work, old):
            work.unchanged.append(source)
            return None
        ready = parse_source(work.base, source, work.options, labels, meta)
    except StoreError:
        raise
    except FileNotFoundError:
        work.vanished.append(source)  # since it was listed
        return None
    except (LuthierError, OSError, UnicodeError) as error:
        _failed(work, source, old, labels, meta, error)
        return None
    work.warnings += [(source, each) for each in ready.record.warnings]
    if old is None or old.status != "ready":
        work.added.append(source)
    elif same and ready.record.digest == old.digest:  # a URL that gave the same again
        work.noted += [replace(old, error="")] if old.error else []
        work.unchanged.append(source)
        return None
    else:
        work.changed.append(source)
    if old is not None and old.digest == ready.record.digest:
        ready.record = replace(ready.record, id=document_id(work.base.name, source, old.digest, old.id))
    ready.old = old.id if old is not None else ""
    return ready


def _unchanged(work: _Work, old: DocumentRecord) -> bool:
    """Whether a file is the one that was read: by its size and time, and by its content when only its time is another."""
    if is_url(old.source):
        return False
    found = os.stat(old.source)  # noqa: PTH116
    if (found.st_size, found.st_mtime_ns) == (old.size_bytes, old.modified_ns):
        return not old.error
    if found.st_size != old.size_bytes or not stat.S_ISREG(found.st_mode) or file_sha256(old.source) != old.digest:
        return False
    work.noted.append(replace(old, modified_ns=found.st_mtime_ns, error=""))
    return True


def _failed(
    work: _Work,
    source: str,
    old: DocumentRecord | None,
    labels: tuple[str, ...],
    meta: dict[str, Any],
    error: Exception,
) -> None:
    """Note why a source cannot be read. What the base has of it from before stays."""
    reason = reason_of(source, error)
    shown = source.encode("utf-8", "replace").decode()
    work.failed.append((shown, reason))
    if isinstance(error, UnicodeError):
        work.failed[-1] = (shown, "its name is no UTF-8 text")
    elif old is not None and old.status == "ready":
        work.noted.append(replace(old, error=f"it has changed since and cannot be read: {reason}"))
    else:
        work.noted.append(failed_record(work.base.name, source, reason, labels, meta))


def _write(work: _Work, mark: Path, progress: Progress, done: int, total: int) -> None:
    """Write the batch: index, database, index."""
    base, batch, noted = work.base, work.batch, work.noted
    work.batch, work.noted = [], []
    if batch:
        mark_unfinished(mark)
        first = done - len(batch)

        def embedded(stage: str, so_far: int, of: int) -> None:
            if len(batch) == 1 and of > 1:
                progress(stage, so_far, of)
            else:
                progress("add", first + len(batch) * so_far // (of + 1), total)

        write_rows(base, batch, embedded)
    put_documents(base.store, base.name, [*(each.record for each in batch), *noted])
    if batch:
        base.index.remove([each.old for each in batch if each.old])
        work.chunks += sum(len(each.chunks) for each in batch)
    progress("add", done, total)


def mark_unfinished(mark: Path) -> None:
    """Leave a mark, removed when an addition is complete."""
    with disk_errors(mark):
        mark.touch()


def _gone(work: _Work, listed: Listed, mark: Path) -> tuple[str, ...]:
    """Drop documents of the folders whose files are not there any more."""
    base = work.base
    gone = [each for each in work.known.values() if _is_gone(work, listed, each.source)]
    alone = [each for each in work.vanished if not any(Path(each).is_relative_to(folder) for folder in listed.folders)]
    work.failed += [(each, "it was deleted while documents were added") for each in alone]
    if gone:
        mark_unfinished(mark)
        drop_documents(base.store, base.name, [each.id for each in gone])
        base.index.remove([each.id for each in gone])
    return tuple(each.source for each in gone)


def _is_gone(work: _Work, listed: Listed, source: str) -> bool:
    if is_url(source) or (source in listed.sources and source not in work.vanished):
        return False
    path = Path(source)
    if any(path.is_relative_to(folder) for folder in listed.closed):
        return False
    if not any(path.is_relative_to(folder) for folder in listed.folders):
        return False
    try:
        os.stat(path)  # noqa: PTH116 - Path.exists takes a folder that may not be read for one that is not there
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _listed(sources: Sequence[str | Path]) -> Listed:
    """What is to be added. Raises InputError for a source that is not there."""
    out = Listed()
    for source in sources:
        if is_url(str(source)):
            out.sources[str(source)] = None
            continue
        path = Path(os.path.abspath(Path(source).expanduser()))  # noqa: PTH100 - without "..", links as they are
        if path.is_dir():
            out.folders.append(str(path))
            out.sources |= dict.fromkeys(map(str, _files(path, out.closed)))
        elif path.exists():
            out.sources[str(path)] = None
        else:
            raise InputError(f"no such file or folder: {source}")
    return out


def _files(folder: Path, closed: dict[str, str]) -> Iterator[Path]:
    """All files below a folder by name; hidden ones and links that lead elsewhere are left out."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        closed[str(folder)] = f"cannot read this folder: {error.strerror or error}"
        return
    for path in inside:
        if path.name.startswith(_HIDDEN):
            continue
        try:
            if path.is_dir() and not path.is_symlink():
                yield from _files(path, closed)
            elif path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                yield path
        except FileNotFoundError:
            continue  # deleted a moment ago
        except OSError as error:
            closed[str(path)] = str(error.strerror or error)


def _own_id(document: str, chunk: str) -> str:
    """A chunk's id in the index: files with the same content have chunks of their own."""
    return f"{document.removeprefix('doc_')}{chunk}"[:48]
