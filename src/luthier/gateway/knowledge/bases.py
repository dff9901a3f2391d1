"""The knowledge bases of a server: which are there for a caller, opened once, and documents that are added to them in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.document import Hit
from luthier.core.errors import LuthierError, NotFoundError
from luthier.gateway.access.caller import Caller, ForbiddenError
from luthier.gateway.api.wire import RequestError
from luthier.gateway.knowledge.access import may_ask, visible
from luthier.knowledge.base import KnowledgeBase, create_base, open_base, remove_base
from luthier.knowledge.index import Filter
from luthier.knowledge.rag import PREFIX
from luthier.knowledge.retrievers._fusion import by_rank
from luthier.store.database import Store
from luthier.store.files import file_path, find_file
from luthier.store.home import new_id
from luthier.store.knowledge import DocumentRecord, KnowledgeRecord, find_base, list_bases

if TYPE_CHECKING:
    from luthier.core.engine import Engine
    from luthier.gateway.service import Service

UPLOAD = "upload/"

logger = logging.getLogger("luthier.gateway")


class Bases:
    """Open bases by name. Safe from several threads."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._open: dict[str, tuple[KnowledgeBase, Engine | None]] = {}
        self._lock = threading.Lock()
        self.adding: set[tuple[str, str]] = set()
        """(base, source) of the documents that this process is adding now."""

    @property
    def store(self) -> Store:
        """Where they are kept."""
        return self._service.store

    def seen_by(self, caller: Caller) -> list[KnowledgeRecord]:
        """The bases that are there for a caller, by name."""
        return [each for each in list_bases(self.store) if self._served(each) and may_ask(caller, each)]

    def find(self, name: str, caller: Caller, *, own: bool = False) -> KnowledgeRecord:
        """A base that is there for a caller; ``own``: to be changed. Raises RequestError 404, ForbiddenError for one of the operator's."""
        try:
            found = find_base(self.store, name) if name.isprintable() else None
        except NotFoundError:
            found = None
        if found is None or not self._served(found) or not may_ask(caller, found):
            raise RequestError(
                f"vector store {name[:80]!r} is not known", status=404, param="vector_store_id", code="not_found"
            )
        if own and found.meta.get("tenant") != caller.tenant:
            raise ForbiddenError(
                f"vector store {name} is the operator's: `luthier kb add {name}` on its machine changes it"
            )
        return found

    def _served(self, record: KnowledgeRecord) -> bool:
        if record.meta.get("tenant") is not None:
            return self._service.config.knowledge.create
        return f"{PREFIX}{record.name}" in self._service.models

    def create(self, caller: Caller, *, title: str, description: str, metadata: dict[str, str]) -> KnowledgeRecord:
        """A new base of a tenant's own. Raises RequestError where none may be made."""
        config = self._service.config.knowledge
        if not config.create:
            raise RequestError(
                "this server makes no vector stores: its configuration needs knowledge: {create: true}",
                status=403,
                code="not_allowed",
            )
        meta = {"tenant": caller.tenant, "title": title, "metadata": metadata}
        made = create_base(new_id("vs"), embedder=config.embedder, description=description, meta=meta, store=self.store)
        with self._lock:
            self._open[made.name] = (made, None)
        return made.record

    def remove(self, name: str) -> None:
        """Delete a base."""
        with self._lock:
            opened = self._open.pop(name, None)
        _close(opened)
        remove_base(name, store=self.store)

    def open(self, name: str) -> tuple[KnowledgeBase, Engine | None]:
        """An open base and its reranker. Raises MismatchError, NotFoundError, StoreError."""
        with self._lock:
            if name not in self._open:
                from luthier.strategies._load import load

                reranker = str(find_base(self.store, name).answer.get("reranker") or "")
                base = open_base(name, store=self.store)
                try:
                    self._open[name] = (base, load(reranker, store=self.store) if reranker else None)
                except BaseException:
                    base.close()
                    raise
            return self._open[name]

    def search(
        self, name: str, caller: Caller, queries: Sequence[str], k: int, where: Filter | None, *, rerank: bool
    ) -> list[Hit]:
        """What a caller may see of what is found; of several queries the best of all by their ranks."""
        base, reranker = self.open(name)
        base.refresh()
        steps = [each for each in base.record.retrieval if rerank or each["name"] != "rerank"]
        allowed = visible(caller, where)
        found = [base.search(each, k, allowed, retrieval=steps, reranker=reranker) for each in queries]
        return found[0] if len(found) == 1 else by_rank(found, [1.0] * len(found), k)

    def attach(self, name: str, file_id: str, caller: Caller, attributes: dict[str, Any]) -> DocumentRecord:
        """Begin to add an uploaded file; returns it as it is now. Raises NotFoundError for another tenant's file."""
        file = find_file(self.store, file_id, caller.tenant)
        path = file_path(self.store, file)
        base, _ = self.open(name)
        source = f"{UPLOAD}{file.id}/{file.name}"
        key = (name, source)
        begun = base.begin_bytes(source, file.size_bytes, meta=attributes)
        with self._lock:
            if key in self.adding:
                return begun
            self.adding.add(key)
        self._service.workers.run(lambda: self._add(key, base, path.read_bytes, attributes))
        return begun

    def _add(
        self, key: tuple[str, str], base: KnowledgeBase, read: Callable[[], bytes], attributes: dict[str, Any]
    ) -> None:
        try:
            base.add_bytes(read(), key[1], meta=attributes)
        except LuthierError as error:
            logger.error("%s could not be added to %s: %s", key[1], key[0], error)
        finally:
            with self._lock:
                self.adding.discard(key)

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            opened, self._open = list(self._open.values()), {}
        for each in opened:
            _close(each)


def _close(opened: tuple[KnowledgeBase, Engine | None] | None) -> None:
    for each in opened or ():
        if each is not None:
            each.close()
