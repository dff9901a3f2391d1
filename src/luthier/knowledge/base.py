"""A knowledge base: documents in, the chunks that answer a question out."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core import catalog
from luthier.core.document import Document, Hit
from luthier.core.errors import InputError, LuthierError, MismatchError, NotFoundError
from luthier.core.run import Progress, no_progress
from luthier.knowledge.chunkers._spans import ChunkTools, Span, word_offsets
from luthier.knowledge.embed import Embedder, read_prompts, token_offsets
from luthier.knowledge.index import Filter, Index, fits
from luthier.knowledge.settings import DEFAULTS, answer_of, chunker_of, entry_of, steps_of
from luthier.knowledge.written import Writers
from luthier.store.database import Store, open_store
from luthier.store.home import disk_errors
from luthier.store.knowledge import (
    DocumentRecord,
    KnowledgeRecord,
    base_version,
    delete_base,
    document_ids,
    drop_documents,
    find_base,
    folder_of,
    list_documents,
    record_base,
    update_base,
    writing,
)

if TYPE_CHECKING:
    from luthier.core.engine import Engine
    from luthier.knowledge.current import CurrentIndex
    from luthier.knowledge.ingest import AddReport

LEFTOVER = "leftover"


@dataclass
class KnowledgeBase:
    """An open base. Safe from several threads; ``close`` it, or use it in a ``with`` block.

    Changes wait for one another, also across processes; what other processes change is seen by the next search. ``ask`` is a model that
    writes, for the chunkers and searches that need one. ``index`` is all that is kept; ``current`` what the base has now. ``read`` makes
    documents of files in place of ``parse_file`` (path, options of parsers): where they are parsed already.
    """

    store: Store
    record: KnowledgeRecord
    embedder: Embedder
    index: Index
    tools: ChunkTools
    ask: Engine | None = None
    own_engine: bool = True
    read: Callable[[str, Mapping[str, Mapping[str, Any]]], Document] | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _ids: tuple[int, frozenset[str]] = (-2, frozenset())
    _retired: list[KnowledgeBase] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name."""
        return self.record.name

    def __enter__(self) -> KnowledgeBase:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the index and the embedder. Safe to call twice."""
        for each in self._retired:
            each.close()
        self.index.close()
        self.embedder.close()
        if self.tools.writers is not None:
            self.tools.writers.close()
        if self.own_engine:
            self.embedder.engine.close()

    def add(
        self,
        sources: Sequence[str | Path],
        *,
        labels: Sequence[str] | None = None,
        meta: Mapping[str, Any] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        progress: Progress = no_progress,
    ) -> AddReport:
        """Files, folders (all files below) and URLs. ``labels`` are access labels (None: those that a document has stay, () takes them
        away), ``meta`` is added to what a document has, ``options`` are those of parsers by name (with any, files are read that have not changed).

        What has not changed since is left as it is, what has changed takes the place of the old, and what has gone from a folder that is
        added again leaves. One file that cannot be read is reported and costs the others nothing. Raises InputError for a source that
        is not there, StoreError for a full disk; what was added until then stays.
        """
        from luthier.core.key import check_labels
        from luthier.knowledge.ingest import add

        checked = None if labels is None else check_labels(labels)
        return add(self, sources, labels=checked, meta=dict(meta or {}), options=options or {}, progress=progress)

    def add_bytes(
        self,
        data: bytes,
        source: str,
        *,
        labels: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> DocumentRecord:
        """A document that is no file; ``source`` names it, with its suffix. One that cannot be read is kept as failed. Raises StoreError."""
        from luthier.core.key import check_labels
        from luthier.knowledge.ingest import add_bytes

        return add_bytes(self, data, source, check_labels(labels), dict(meta or {}), options or {})

    def begin_bytes(self, source: str, size_bytes: int, *, meta: Mapping[str, Any] | None = None) -> DocumentRecord:
        """Note that ``add_bytes`` of this source is to come; what the base has of it stays until then."""
        from luthier.knowledge.ingest import begin_bytes

        return begin_bytes(self, source, size_bytes, dict(meta or {}))

    def remove(self, documents: Sequence[str]) -> int:
        """Drop documents by id or source (patterns with ``*``); returns how many. Raises InputError when nothing fits."""
        return _remove(self.store, self.record, documents, self.index)

    def documents(self) -> list[DocumentRecord]:
        """All documents by source, those that failed among them."""
        return list_documents(self.store, self.name)

    def chunks(self, document: str) -> list[Hit]:
        """The chunks of a document (id or source), in order. Raises InputError for an unknown one."""
        found = next((each for each in self.documents() if document in (each.id, each.source)), None)
        if found is None:
            raise InputError(f"{self.name} has no document {document!r}", hint=f"luthier kb show {self.name}")
        return self.index.of_document(found.id)

    def search(
        self,
        question: str,
        k: int = 5,
        where: Filter | None = None,
        *,
        retrieval: Sequence[Mapping[str, Any]] | None = None,
        history: Sequence[str] = (),
        reranker: Engine | None = None,
        notes: list[dict[str, Any]] | None = None,
    ) -> list[Hit]:
        """The ``k`` chunks that answer ``question`` best. ``retrieval`` overrides the base's own steps, ``notes`` gathers what they did (``knowledge.search``)."""
        from luthier.knowledge.current import RebuiltError
        from luthier.knowledge.search import search

        asked = partial(search, self, question, k, where, retrieval=retrieval, history=history, reranker=reranker)
        found: list[Hit] = []
        for last in (False, False, True):
            try:
                found = asked(notes=notes)
            except RebuiltError:  # in the middle of the search: its vector may be another model's
                if last:
                    raise
                continue
            self.refresh()
            kept = [hit for hit in found if hit.document in self.known()]
            if last or len(kept) == len(found):  # else a document changed between two of the steps
                return kept
        return found

    @property
    def current(self) -> CurrentIndex:
        """The index without what a process that died, or one that is adding now, has left or not yet finished in it."""
        from luthier.knowledge.current import CurrentIndex

        return CurrentIndex(self)

    def known(self) -> frozenset[str]:
        """The ids of the documents that the base had at the last ``refresh``."""
        if self._ids[0] < 0:
            self.refresh()
        return self._ids[1]

    def refresh(self) -> bool:
        """Take over what was changed since, by whichever process; returns whether anything was. Raises NotFoundError when it was removed."""
        if base_version(self.store, self.name) == self._ids[0]:
            return False
        with self._lock:
            record = find_base(self.store, self.name)
            if record.generation != self.record.generation:
                self._reopen(record)
            self.record = record
            before, self._ids = self._ids[0], document_ids(self.store, self.name)
            return before != self._ids[0]

    def _reopen(self, record: KnowledgeRecord) -> None:
        """Go over to the index that a rebuild has made. Searches under way may still use the old one."""
        if record.embedder_digest == self.record.embedder_digest:
            made = _opened(self.store, record, self.embedder, own=False)
        else:
            made = open_base(self.name, store=self.store)
        self._retired.append(replace(self, _retired=[]))
        self.own_engine = self.own_engine if made.embedder is self.embedder else True
        self.index, self.embedder, self.tools = made.index, made.embedder, made.tools


@dataclass(frozen=True)
class Description:
    """What a base is and holds, for people: see ``describe_base``."""

    record: KnowledgeRecord
    documents: list[DocumentRecord]
    size_bytes: int
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            **asdict(self.record),
            "size_bytes": self.size_bytes,
            "folder": str(self.folder),
            "documents": [asdict(each) for each in self.documents],
        }


def create_base(
    name: str,
    *,
    embedder: str = DEFAULTS["embedder"],
    chunker: Mapping[str, Any] | str = DEFAULTS["chunker"],
    index: Mapping[str, Any] | str = DEFAULTS["index"],
    retrieval: Sequence[Mapping[str, Any]] = (),
    answer: Mapping[str, Any] | None = None,
    description: str = "",
    meta: Mapping[str, Any] | None = None,
    store: Store | None = None,
    engine: Engine | None = None,
) -> KnowledgeBase:
    """A new, empty base. ``embedder`` is a model that embeds; ``engine`` is it, when it is open already.

    Raises ConflictError for a name that is taken, InputError and NotFoundError for wrong entries and options.
    """
    from luthier.store.knowledge import check_new

    store = store or open_store()
    check_new(store, name)
    record = KnowledgeRecord(
        name=name,
        embedder=embedder,
        embedder_digest="",
        width=0,
        chunker=chunker_of(chunker),
        index=entry_of("indexes", index),
        retrieval=tuple(steps_of(retrieval)),
        answer=answer_of(answer),
        description=description,
        meta=dict(meta or {}),
    )
    with disk_errors(folder_of(store, name)):
        folder_of(store, name).mkdir(parents=True, exist_ok=True)
    found = open_embedder(embedder, store, engine)
    try:
        made = record_base(store, replace(record, embedder_digest=found.digest, width=found.width))
        link_embedder(store, made)
        return _opened(store, made, found, own=engine is None)
    except BaseException:
        found.close()
        if engine is None:
            found.engine.close()
        raise


def open_base(name: str, *, store: Store | None = None, engine: Engine | None = None) -> KnowledgeBase:
    """A base by its name. Raises NotFoundError, and MismatchError when the embedding model is not the one it was made with."""
    store = store or open_store()
    record = find_base(store, name)
    try:
        found = open_embedder(record.embedder, store, engine)
    except NotFoundError as error:
        raise NotFoundError(
            f"knowledge base {name} was embedded by {record.embedder}, which is not here any more",
            hint=f"luthier pull {record.embedder}, or luthier kb rebuild {name} --embedder ANOTHER",
        ) from error
    try:
        if found.digest != record.embedder_digest:
            raise MismatchError(
                f"knowledge base {name} was embedded by {record.embedder} {record.embedder_digest[:12]}; that name is now "
                f"{found.digest[:12]}, whose vectors mean something else",
                hint=f"luthier kb rebuild {name}",
            )
        return _opened(store, record, found, own=engine is None)
    except BaseException:
        found.close()
        if engine is None:
            found.engine.close()
        raise


def remove_base(name: str, *, store: Store | None = None) -> None:
    """Delete a base and all that it holds. Raises NotFoundError."""
    store = store or open_store()
    with writing(store, name):
        record = clear_leftover(store, find_base(store, name))
        delete_base(store, name)  # first: an index without a base is nothing, a base without its index is broken
        drop_index(store, record)
        shutil.rmtree(folder_of(store, name), ignore_errors=True)


def remove_documents(name: str, documents: Sequence[str], *, store: Store | None = None) -> int:
    """``KnowledgeBase.remove`` without its embedder. Raises NotFoundError, and InputError when nothing fits."""
    store = store or open_store()
    record = find_base(store, name)
    index = open_index(store, record)
    try:
        return _remove(store, record, documents, index)
    finally:
        index.close()


def describe_base(name: str, *, store: Store | None = None) -> Description:
    """A base's settings, documents and size, without its embedder. Raises NotFoundError."""
    store = store or open_store()
    record, folder = find_base(store, name), folder_of(store, name)
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) if folder.is_dir() else 0
    return Description(record, list_documents(store, name), size, folder)


def rebuild_base(
    name: str,
    *,
    embedder: str | None = None,
    chunker: Mapping[str, Any] | str | None = None,
    index: Mapping[str, Any] | str | None = None,
    overrides: Iterable[str] = (),
    store: Store | None = None,
    progress: Progress = no_progress,
    engine: Engine | None = None,
) -> AddReport:
    """Read, cut and embed all documents of a base anew, for another embedder, chunker or index, or for what their names mean now.

    The old index answers until the new one is complete. A document whose file is gone keeps its chunks as they were cut. ``overrides`` are
    dotted texts (``chunker.tokens=200``). Raises NotFoundError, InputError for wrong settings.
    """
    from luthier.knowledge.rebuild import rebuild

    given = {"embedder": embedder, "chunker": chunker, "index": index}
    chosen = {key: value for key, value in given.items() if value is not None}
    return rebuild(name, chosen, list(overrides), store or open_store(), progress, engine)


def document_id(base: str, source: str, digest: str, before: str = "") -> str:
    """The id of a document: the same source with other content is another one, and the same content in the place of ``before`` too."""
    parts = [base, source, digest, *([before] if before else [])]
    return "doc_" + hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def index_folder(store: Store, record: KnowledgeRecord) -> Path:
    """Where the index lies. Each rebuild makes a new one beside the old."""
    return folder_of(store, record.name) / (f"index-{record.generation}" if record.generation else "index")


def open_index(store: Store, record: KnowledgeRecord) -> Index:
    """The index of a base."""
    options = dict(record.index)
    entry = catalog.load("indexes", str(options.pop("name")))
    opened: Index = entry(index_folder(store, record), record.width, entry.configure(options))
    return opened


def drop_index(store: Store, record: KnowledgeRecord) -> None:
    """Delete the index of a base, whatever keeps it; a damaged one is deleted as far as it can be."""
    with suppress(LuthierError):  # one that cannot be opened: its folder goes all the same
        open_index(store, record).drop()
    shutil.rmtree(index_folder(store, record), ignore_errors=True)


def clear_leftover(store: Store, record: KnowledgeRecord) -> KnowledgeRecord:
    """Delete the index that a rebuild which was ended has left: a new one that is not complete, or the old one."""
    left = record.meta.get(LEFTOVER)
    if left is None:
        return record
    drop_index(
        store, replace(record, index=left["index"], width=left["width"], meta={"generation": left["generation"]})
    )
    return update_base(store, record.name, meta={key: each for key, each in record.meta.items() if key != LEFTOVER})


def leftover(record: KnowledgeRecord) -> dict[str, Any]:
    """What ``clear_leftover`` needs to know of an index, to be kept in its base's ``meta``."""
    return {LEFTOVER: {"generation": record.generation, "index": dict(record.index), "width": record.width}}


def open_embedder(name: str, store: Store, engine: Engine | None = None) -> Embedder:
    """The embedding model of this name, or ``engine`` as it, with the cache of vectors."""
    if engine is not None:
        return Embedder(engine, vector_cache(store), prompts=read_prompts(_tokenizer_folder(store, name)))
    from luthier.strategies._load import load

    loaded = load(name, store=store)
    try:
        return Embedder(loaded, vector_cache(store), prompts=read_prompts(_tokenizer_folder(store, name)))
    except BaseException:
        loaded.close()
        raise


def vector_cache(store: Store) -> Path:
    """The file in which vectors of texts are kept, of all bases. No base can have its name."""
    return store.home.root / "knowledge" / ".vectors.db"


def written_cache(store: Store) -> Path:
    """The file in which is kept what models write about documents, of all bases."""
    return store.home.root / "knowledge" / ".written.db"


def link_embedder(store: Store, record: KnowledgeRecord) -> None:
    """Write into the lineage which model embedded a base."""
    from luthier.store.lineage import Node, record_edge

    record_edge(store, Node("model", record.embedder), "embedded", Node("knowledge", record.name))


def _remove(store: Store, record: KnowledgeRecord, documents: Sequence[str], index: Index) -> int:
    with writing(store, record.name):
        known = list_documents(store, record.name)
        gone = [
            each.id for each in known if any(wanted == each.id or fits(each.source, wanted) for wanted in documents)
        ]
        if not gone:
            raise InputError(
                f"no document of {record.name} is {', '.join(documents)}", hint=f"luthier kb show {record.name}"
            )
        drop_documents(store, record.name, gone)
        index.remove(gone)
    return len(gone)


def _opened(store: Store, record: KnowledgeRecord, embedder: Embedder, *, own: bool) -> KnowledgeBase:
    writers = Writers(store, str(record.answer.get("model") or ""))
    tools = ChunkTools(
        token_spans(store, record.embedder), embedder.embed, writers=writers, written=written_cache(store)
    )
    return KnowledgeBase(store, record, embedder, open_index(store, record), tools, own_engine=own)


def token_spans(store: Store, embedder: str) -> Callable[[str], Sequence[Span]]:
    """The embedding model's own tokens; words where its tokenizer is not on this machine."""
    folder = _tokenizer_folder(store, embedder)
    return token_offsets(folder) if folder is not None and (folder / "tokenizer.json").is_file() else word_offsets


def _tokenizer_folder(store: Store, embedder: str) -> Path | None:
    """The folder of an embedding model; None for one that is not on this machine."""
    from luthier.store.models import find
    from luthier.strategies._labels import tokenizer_folder

    try:
        return tokenizer_folder(store, find(store, embedder))
    except NotFoundError:
        return None
