"""A new index beside the old one, and one transaction that goes over to it.

Until that transaction the base is what it was; after it, what it is to be. What a process that died has left in either case is an index
that the base's ``meta`` names and the next change of it deletes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from luthier.core.document import Hit
from luthier.core.errors import LuthierError, StoreError
from luthier.core.run import Progress
from luthier.knowledge.base import (
    KnowledgeBase,
    _opened,
    clear_leftover,
    document_id,
    index_folder,
    leftover,
    link_embedder,
    open_embedder,
    open_index,
)
from luthier.knowledge.ingest import BATCH, AddReport, Ready, failed_record, parse_source, reason_of, write_rows
from luthier.knowledge.settings import MADE_WITH, read_settings
from luthier.store.knowledge import (
    DocumentRecord,
    KnowledgeRecord,
    find_base,
    list_documents,
    replace_documents,
    update_base,
    writing,
)

if TYPE_CHECKING:
    from luthier.core.engine import Engine
    from luthier.knowledge.index import Index
    from luthier.store.database import Store


def rebuild(
    name: str,
    chosen: Mapping[str, Any],
    overrides: Sequence[str],
    store: Store,
    progress: Progress,
    engine: Engine | None,
) -> AddReport:
    """See ``knowledge.base.rebuild_base``."""
    find_base(store, name)
    with writing(store, name, partial(progress, "wait for another change of this base", 0, 0)):
        before = clear_leftover(store, find_base(store, name))
        values = {each: getattr(before, each) for each in MADE_WITH} | dict(chosen)
        settings = read_settings(values, overrides, allowed=MADE_WITH)
        embedder = open_embedder(settings["embedder"], store, engine)
        try:
            after = replace(
                before,
                **settings,
                embedder_digest=embedder.digest,
                width=embedder.width,
                meta={**before.meta, "generation": before.generation + 1},
            )
            update_base(store, name, meta={**before.meta, **leftover(after)})
            base = _opened(store, after, embedder, own=False)
            try:
                return _rebuilt(base, before, progress)
            finally:
                base.close()
        finally:
            embedder.close()
            if engine is None:
                embedder.engine.close()


def _rebuilt(base: KnowledgeBase, before: KnowledgeRecord, progress: Progress) -> AddReport:
    store, after = base.store, base.record
    old = _old_index(store, before)
    known = list_documents(store, before.name)
    records: list[DocumentRecord] = []
    failed: list[tuple[str, str]] = []
    warnings: list[tuple[str, str]] = []
    batch: list[Ready] = []
    chunks = 0
    for done, each in enumerate(known, 1):
        try:
            ready = parse_source(base, each.source, {}, each.labels, each.meta)
            warnings += [(each.source, one) for one in ready.record.warnings]
        except StoreError:
            raise
        except (LuthierError, OSError) as error:
            ready = _carried(old, each, reason_of(each.source, error))
            failed.append((each.source, ready.record.error))
        ready.record = replace(ready.record, id=document_id(before.name, each.source, ready.record.digest, each.id))
        records.append(ready.record)
        batch.append(ready)
        chunks += len(ready.chunks)
        if sum(len(one.chunks) for one in batch) >= BATCH or done == len(known):
            write_rows(base, batch)
            batch = []
            progress("rebuild", done, len(known))
    base.index.optimize()
    if old is not None:
        old.close()
    replace_documents(store, replace(after, meta={**after.meta, **leftover(before)}), records)
    link_embedder(store, after)
    clear_leftover(store, find_base(store, after.name))
    bad = {source for source, _ in failed}
    return AddReport(
        changed=tuple(each.source for each in records if each.source not in bad),
        failed=tuple(failed),
        chunks=chunks,
        warnings=tuple(warnings),
    )


def _carried(old: Index | None, document: DocumentRecord, reason: str) -> Ready:
    """A document whose source cannot be read any more, with the chunks that it has."""
    hits: list[Hit] = []
    if old is not None and document.status == "ready":
        hits = old.of_document(document.id)
    if not hits and (document.status != "ready" or document.chunks):
        return Ready(failed_record(document.base, document.source, reason, document.labels, document.meta), [], {})
    about = dict(hits[0].meta) if hits else {}
    prefix = document.id.removeprefix("doc_")
    chunks = [
        replace(hit.chunk, id=hit.chunk.id.removeprefix(prefix), parent=hit.chunk.parent.removeprefix(prefix))
        for hit in hits
    ]
    said = f"it cannot be read any more, its chunks are as they were: {reason}"
    return Ready(replace(document, error=said, chunks=len(chunks)), chunks, about)


def _old_index(store: Store, record: KnowledgeRecord) -> Index | None:
    """The index as it is; None for a damaged one."""
    if not index_folder(store, record).exists():
        return None
    try:
        return open_index(store, record)
    except LuthierError:
        return None
