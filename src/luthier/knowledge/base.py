"""A knowledge base: documents in, the chunks that answer a question out."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core import catalog
from luthier.core.document import Hit
from luthier.core.errors import InputError, MismatchError
from luthier.core.run import Progress, no_progress
from luthier.knowledge.chunk import DEFAULT as DEFAULT_CHUNKER
from luthier.knowledge.chunkers._spans import ChunkTools, word_offsets
from luthier.knowledge.embed import Embedder, token_offsets
from luthier.knowledge.index import Filter, Index
from luthier.store.database import Store, open_store
from luthier.store.knowledge import (
    DocumentRecord,
    KnowledgeRecord,
    delete_base,
    document_ids,
    drop_documents,
    find_base,
    folder_of,
    list_documents,
    record_base,
    writing,
)

if TYPE_CHECKING:
    from luthier.core.engine import Engine
    from luthier.knowledge.ingest import AddReport

DEFAULT_EMBEDDER = "minilm-l6"
DEFAULT_INDEX = "lancedb"


@dataclass
class KnowledgeBase:
    """An open base. Safe from several threads; ``close`` it, or use it in a ``with`` block.

    Changes wait for one another, also across processes. ``ask`` is a model that writes, for the chunkers and searches that need one.
    """

    store: Store
    record: KnowledgeRecord
    embedder: Embedder
    index: Index
    tools: ChunkTools
    ask: Engine | None = None
    own_engine: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: tuple[int, frozenset[str]] = (-1, frozenset())

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
        self.index.close()
        self.embedder.close()
        if self.own_engine:
            self.embedder.engine.close()

    def add(
        self,
        sources: Sequence[str | Path],
        *,
        labels: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        progress: Progress = no_progress,
    ) -> AddReport:
        """Files, folders (all files below) and URLs; ``labels`` are access labels, ``options`` those of parsers by name.

        What has not changed since is left as it is, what has changed takes the place of the old, and what has gone from a folder that is
        added again leaves. One file that cannot be read is reported and costs the others nothing. Raises InputError for a source that
        is not there, StoreError for a full disk; what was added until then stays.
        """
        from luthier.knowledge.ingest import add

        return add(self, sources, labels=tuple(labels), meta=dict(meta or {}), options=options, progress=progress)

    def remove(self, documents: Sequence[str]) -> int:
        """Drop documents by id or source (shell patterns); returns how many. Raises InputError when nothing fits."""
        from fnmatch import fnmatchcase

        with writing(self.store, self.name):
            known = self.documents()
            gone = [each.id for each in known if any(w == each.id or fnmatchcase(each.source, w) for w in documents)]
            if not gone:
                raise InputError(
                    f"no document of {self.name} is {', '.join(documents)}", hint=f"luthier kb show {self.name}"
                )
            drop_documents(self.store, self.name, gone)
            self.index.remove(gone)
        return len(gone)

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
    ) -> list[Hit]:
        """The ``k`` chunks that answer ``question`` best. ``retrieval`` overrides the base's own steps (``knowledge.search``)."""
        from luthier.knowledge.search import search

        return search(self, question, k, where, retrieval=retrieval, history=history, reranker=reranker)

    def current(self, hits: Sequence[Hit]) -> list[Hit]:
        """Hits of documents that the base has now: a process that died while it added may have left others in the index."""
        from luthier.store.knowledge import base_version

        with self._lock:
            if base_version(self.store, self.name) != self._known[0]:
                self._known = document_ids(self.store, self.name)
            ids = self._known[1]
        return [hit for hit in hits if hit.document in ids]


def create_base(
    name: str,
    *,
    embedder: str = DEFAULT_EMBEDDER,
    chunker: Mapping[str, Any] | str = DEFAULT_CHUNKER,
    index: Mapping[str, Any] | str = DEFAULT_INDEX,
    retrieval: Sequence[Mapping[str, Any]] = (),
    answer: Mapping[str, Any] | None = None,
    description: str = "",
    store: Store | None = None,
    engine: Engine | None = None,
) -> KnowledgeBase:
    """A new, empty base. ``embedder`` is a model that embeds; ``engine`` is it, when it is open already.

    Raises ConflictError for a name that is taken, InputError and NotFoundError for wrong entries and options.
    """
    from luthier.knowledge.search import check_retrieval

    store = store or open_store()
    chunking, indexing = _entry("chunkers", chunker), _entry("indexes", index)
    check_retrieval(retrieval)
    opened = engine or _embedding_engine(embedder, store)
    found = Embedder(opened, _cache(store))
    record = KnowledgeRecord(
        name=name,
        embedder=embedder,
        embedder_digest=found.digest,
        width=found.width,
        chunker=chunking,
        index=indexing,
        retrieval=tuple(retrieval),
        answer=dict(answer or {}),
        description=description,
    )
    return _opened(store, record_base(store, record), found, own=engine is None)


def open_base(name: str, *, store: Store | None = None, engine: Engine | None = None) -> KnowledgeBase:
    """A base by its name. Raises NotFoundError, and MismatchError when the embedding model is not the one it was made with."""
    store = store or open_store()
    record = find_base(store, name)
    found = Embedder(engine or _embedding_engine(record.embedder, store), _cache(store))
    if found.digest != record.embedder_digest:
        if engine is None:
            found.engine.close()
        raise MismatchError(
            f"knowledge base {name} was embedded by {record.embedder} {record.embedder_digest[:12]}; that name is now "
            f"{found.digest[:12]}, whose vectors mean something else",
            hint=f"luthier kb rebuild {name}",
        )
    return _opened(store, record, found, own=engine is None)


def remove_base(name: str, *, store: Store | None = None) -> None:
    """Delete a base and all that it holds. Raises NotFoundError."""
    store = store or open_store()
    find_base(store, name)
    with writing(store, name):
        delete_base(store, name)
        shutil.rmtree(folder_of(store, name), ignore_errors=True)


def rebuild_base(name: str, *, store: Store | None = None, progress: Progress = no_progress) -> AddReport:
    """Read, cut and embed all documents of a base anew, with the embedding model that its name means now.

    The old index answers until the new one is complete. Raises NotFoundError.
    """
    from luthier.knowledge.ingest import rebuild

    return rebuild(name, store or open_store(), progress)


def document_id(base: str, source: str, digest: str) -> str:
    """The id of a document: the same source with other content is another one."""
    return "doc_" + hashlib.sha256(f"{base}\0{source}\0{digest}".encode("utf-8", "surrogatepass")).hexdigest()[:24]


def open_index(store: Store, record: KnowledgeRecord, folder: Path | None = None) -> Index:
    """The index of a base, or one like it in another folder."""
    options = dict(record.index)
    entry = catalog.load("indexes", str(options.pop("name")))
    opened: Index = entry(folder or folder_of(store, record.name) / "index", record.width, entry.configure(options))
    return opened


def _opened(store: Store, record: KnowledgeRecord, embedder: Embedder, *, own: bool) -> KnowledgeBase:
    tools = ChunkTools(_offsets(store, record.embedder), embedder.embed)
    return KnowledgeBase(store, record, embedder, open_index(store, record), tools, own_engine=own)


def _embedding_engine(name: str, store: Store) -> Engine:
    from luthier.strategies._load import load

    return load(name, store=store)


def _offsets(store: Store, embedder: str) -> Any:
    """The embedding model's own tokens; words where its tokenizer is not on this machine."""
    from luthier.core.errors import NotFoundError
    from luthier.store.models import find
    from luthier.strategies._labels import tokenizer_folder

    try:
        folder = tokenizer_folder(store, find(store, embedder))
    except NotFoundError:
        return word_offsets
    return token_offsets(folder) if folder is not None and (folder / "tokenizer.json").is_file() else word_offsets


def _cache(store: Store) -> Path:
    return store.home.root / "knowledge" / "vectors.db"


def _entry(catalogue: str, given: Mapping[str, Any] | str) -> dict[str, Any]:
    options = {"name": given} if isinstance(given, str) else dict(given)
    if "name" not in options:
        raise InputError(f"{catalog.singular(catalogue)} needs a name, one of {', '.join(catalog.names(catalogue))}")
    entry = catalog.load(catalogue, str(options["name"]))
    entry.configure({key: value for key, value in options.items() if key != "name"})
    return options
