"""/v1/vector_stores: knowledge bases in the OpenAI wire format. Bases of the operator are read; with ``knowledge: {create: true}`` keys with the scope
``admin`` make bases of their tenant's own and fill them with files that they uploaded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.digest import digest_json
from luthier.core.document import Hit
from luthier.gateway.access.caller import Caller
from luthier.gateway.answer import json_response, operate, trace_headers
from luthier.gateway.api.files import page
from luthier.gateway.api.openapi import COUNT, MAYBE_TEXT, NUMBER, TEXT, gives, listing, maybe, record, takes
from luthier.gateway.api.wire import Body, RequestError, read
from luthier.gateway.exchange import Exchange
from luthier.gateway.knowledge.access import labels_of
from luthier.gateway.knowledge.bases import UPLOAD, Bases
from luthier.gateway.knowledge.conditions import Condition, filter_of, whole
from luthier.gateway.service import Service
from luthier.knowledge.rag import PREFIX
from luthier.store.knowledge import DocumentRecord, KnowledgeRecord, list_documents

Attributes = dict[str, str | int | float | bool]
_STALE = timedelta(hours=1)
"""A document that nobody has finished for so long, and this process is not adding, was given up by a server that ended."""

_COUNTS = record(dict.fromkeys(("in_progress", "completed", "failed", "cancelled", "total"), COUNT))
STORE = record({
    "id": TEXT, "object": {"const": "vector_store"}, "name": TEXT, "description": TEXT, "created_at": COUNT, "usage_bytes": COUNT,
    "status": {"enum": ["in_progress", "completed"]}, "file_counts": _COUNTS, "metadata": {"type": "object"},
})  # fmt: skip
FILE = record({
    "id": TEXT, "object": {"const": "vector_store.file"}, "vector_store_id": TEXT, "created_at": COUNT, "usage_bytes": COUNT,
    "status": {"enum": ["in_progress", "completed", "failed"]}, "filename": TEXT, "attributes": {"type": "object"},
    "last_error": maybe(record({"code": TEXT, "message": TEXT})),
})  # fmt: skip
_LIST = {"object": {"const": "list"}, "first_id": MAYBE_TEXT, "last_id": MAYBE_TEXT, "has_more": {"type": "boolean"}}
STORES = record({**_LIST, "data": listing(STORE)})
FILES = record({**_LIST, "data": listing(FILE)})
FOUND = record({
    "object": {"const": "vector_store.search_results.page"}, "search_query": listing(TEXT), "has_more": {"const": False},
    "next_page": {"type": "null"},
    "data": listing(record({
        "file_id": TEXT, "filename": TEXT, "score": NUMBER, "attributes": {"type": "object"},
        "content": listing(record({"type": {"const": "text"}, "text": TEXT})),
    })),
})  # fmt: skip
GONE = record({"id": TEXT, "object": TEXT, "deleted": {"const": True}})


class Ranking(Body):
    """``ranker`` none leaves the base's reranking away; hits with less than ``score_threshold`` are left out (scores are those of its search)."""

    ranker: Literal["none", "auto", "default-2024-11-15"] = "auto"
    score_threshold: float = Field(default=0.0, ge=0.0, le=1.0)


class SearchBody(Body):
    """POST /v1/vector_stores/{id}/search."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rewrite_query": (False,)}
    query: str | list[str] = Field(min_length=1, max_length=20_000)
    max_num_results: int = Field(default=10, ge=1, le=50)
    filters: Condition | None = None
    ranking_options: Ranking = Ranking()


class CreateBody(Body):
    """POST /v1/vector_stores."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "expires_after": (),
        "file_ids": ([],),
        "chunking_strategy": ({"type": "auto"},),
    }
    name: str = Field(default="", max_length=256)
    description: str = Field(default="", max_length=2000)
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)


class AttachBody(Body):
    """POST /v1/vector_stores/{id}/files."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"chunking_strategy": ({"type": "auto"},)}
    file_id: str = Field(min_length=1, max_length=128)
    attributes: Attributes = Field(default_factory=dict, max_length=16)


def register(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    _reading(app, service.bases)
    _searching(app, service)
    _writing(app, service.bases)
    _files(app, service.bases)


def _reading(app: FastAPI, bases: Bases) -> None:
    @app.get("/v1/vector_stores", responses=gives(STORES))
    async def listed(
        request: Request, after: str | None = None, before: str | None = None, limit: int = 20, order: str = "desc"
    ) -> Response:
        """The knowledge bases that the caller may search."""
        caller = _reader(request)

        def work() -> list[dict[str, Any]]:
            found = sorted(bases.seen_by(caller), key=lambda each: (each.created_at, each.name))
            return [_store(bases, each, caller) for each in found]

        return json_response(_paged(await asyncio.to_thread(work), after, before, limit, order))

    @app.get("/v1/vector_stores/{vector_store_id}", responses=gives(STORE))
    async def one(request: Request, vector_store_id: str) -> Response:
        """One knowledge base."""
        caller = _reader(request)
        return json_response(
            await asyncio.to_thread(lambda: _store(bases, bases.find(vector_store_id, caller), caller))
        )


def _searching(app: FastAPI, service: Service) -> None:
    @app.post("/v1/vector_stores/{vector_store_id}/search", openapi_extra=takes(SearchBody), responses=gives(FOUND))
    async def search(request: Request, vector_store_id: str) -> Response:
        """The passages that answer a query best, of the documents that the caller may see."""
        body = read(await request.body(), SearchBody)
        caller = _reader(request)
        found = await asyncio.to_thread(service.bases.find, vector_store_id, caller)
        queries = [body.query] if isinstance(body.query, str) else body.query
        if len(queries) > 8 or not all(each.strip() for each in queries):
            raise RequestError("query must be 1 to 8 texts that are not empty", param="query", code="invalid_value")
        where = filter_of(body.filters)
        parameters = {"max_num_results": body.max_num_results, "input_digest": digest_json(queries)}
        exchange = Exchange("search", f"{PREFIX}{found.name}", caller, parameters=parameters)

        async def work() -> list[Hit]:
            rerank = body.ranking_options.ranker != "none"
            return await asyncio.to_thread(
                lambda: service.bases.search(found.name, caller, queries, body.max_num_results, where, rerank=rerank)
            )

        hits = await operate(service, request, exchange, work)
        least = body.ranking_options.score_threshold
        content = {
            "object": "vector_store.search_results.page",
            "search_query": queries,
            "data": [_hit(hit) for hit in hits if hit.score >= least or not least],
            "has_more": False,
            "next_page": None,
        }
        return json_response(content, headers=trace_headers(exchange.id) | exchange.headers)


def _writing(app: FastAPI, bases: Bases) -> None:
    @app.post("/v1/vector_stores", openapi_extra=takes(CreateBody), responses=gives(STORE))
    async def create(request: Request) -> Response:
        """Make a knowledge base of the tenant's own."""
        caller = _writer(request)
        body = read(await request.body(), CreateBody)

        def work() -> dict[str, Any]:
            made = bases.create(caller, title=body.name, description=body.description, metadata=body.metadata)
            return _store(bases, made, caller)

        return json_response(await asyncio.to_thread(work))

    @app.delete("/v1/vector_stores/{vector_store_id}", responses=gives(GONE))
    async def delete(request: Request, vector_store_id: str) -> Response:
        """Delete a knowledge base of the tenant's own; the uploaded files stay."""
        caller = _writer(request)
        await asyncio.to_thread(lambda: bases.remove(bases.find(vector_store_id, caller, own=True).name))
        return json_response({"id": vector_store_id, "object": "vector_store.deleted", "deleted": True})


def _files(app: FastAPI, bases: Bases) -> None:
    path = "/v1/vector_stores/{vector_store_id}/files"

    @app.post(path, openapi_extra=takes(AttachBody), responses=gives(FILE))
    async def attach(request: Request, vector_store_id: str) -> Response:
        """Add an uploaded file (purpose ``assistants``); it is read in the background."""
        caller = _writer(request)
        body = read(await request.body(), AttachBody)

        def work() -> dict[str, Any]:
            found = bases.find(vector_store_id, caller, own=True)
            attributes = {key: whole(value) for key, value in body.attributes.items()}
            return _file(bases, bases.attach(found.name, body.file_id, caller, attributes))

        return json_response(await asyncio.to_thread(work))

    @app.get(path, responses=gives(FILES))
    async def listed(
        request: Request,
        vector_store_id: str,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
        order: str = "desc",
        filter: Literal["in_progress", "completed", "failed", "cancelled"] | None = None,  # noqa: A002 - its name on the wire
    ) -> Response:
        """The documents that the caller may see."""
        caller = _reader(request)

        def work() -> list[dict[str, Any]]:
            found = bases.find(vector_store_id, caller)
            files = [_file(bases, each) for each in _documents(bases, found, caller)]
            return [each for each in files if filter in (None, each["status"])]

        return json_response(_paged(await asyncio.to_thread(work), after, before, limit, order))

    @app.get(path + "/{file_id}", responses=gives(FILE))
    async def one(request: Request, vector_store_id: str, file_id: str) -> Response:
        """One document: whether it has been read, or why not."""
        caller = _reader(request)

        def work() -> dict[str, Any]:
            return _file(bases, _document(bases, bases.find(vector_store_id, caller), file_id, caller))

        return json_response(await asyncio.to_thread(work))

    @app.delete(path + "/{file_id}", responses=gives(GONE))
    async def delete(request: Request, vector_store_id: str, file_id: str) -> Response:
        """Take a document out of a base of the tenant's own; the uploaded file stays."""
        caller = _writer(request)

        def work() -> None:
            found = bases.find(vector_store_id, caller, own=True)
            document = _document(bases, found, file_id, caller)
            bases.open(found.name)[0].remove([document.id])

        await asyncio.to_thread(work)
        return json_response({"id": file_id, "object": "vector_store.file.deleted", "deleted": True})


def _reader(request: Request) -> Caller:
    caller: Caller = request.scope["luthier.caller"]
    caller.require("inference")
    return caller


def _writer(request: Request) -> Caller:
    caller: Caller = request.scope["luthier.caller"]
    caller.require("admin")
    return caller


def _documents(bases: Bases, record: KnowledgeRecord, caller: Caller) -> list[DocumentRecord]:
    """Those that the caller may see, in the order in which they were added."""
    labels = set(labels_of(caller))
    found = [each for each in list_documents(bases.store, record.name) if not each.labels or labels & set(each.labels)]
    return sorted(found, key=lambda each: (each.added_at, each.id))


def _document(bases: Bases, record: KnowledgeRecord, file_id: str, caller: Caller) -> DocumentRecord:
    for each in _documents(bases, record, caller):
        if file_id == _file_id(each.id, each.source):
            return each
    raise RequestError(
        f"vector store {record.name} has no file {file_id[:80]!r}", status=404, param="file_id", code="not_found"
    )


def _store(bases: Bases, record: KnowledgeRecord, caller: Caller) -> dict[str, Any]:
    documents = _documents(bases, record, caller)
    states = [_file(bases, each)["status"] for each in documents]
    counts = {each: states.count(each) for each in ("in_progress", "completed", "failed", "cancelled")}
    return {
        "id": record.name,
        "object": "vector_store",
        "name": str(record.meta.get("title") or record.name),
        "description": record.description,
        "created_at": _seconds(record.created_at),
        "usage_bytes": sum(each.size_bytes for each in documents),
        "status": "in_progress" if counts["in_progress"] else "completed",
        "file_counts": {**counts, "total": len(states)},
        "metadata": dict(record.meta.get("metadata") or {}),
    }


def _file(bases: Bases, document: DocumentRecord) -> dict[str, Any]:
    status = {"ready": "completed"}.get(document.status, document.status)
    error = document.error
    if status == "in_progress" and (document.base, document.source) not in bases.adding:
        begun = datetime.fromisoformat(document.added_at)
        if datetime.now(UTC) - begun > _STALE:
            status, error = "failed", "the server ended while it was read; attach it again"
    return {
        "id": _file_id(document.id, document.source),
        "object": "vector_store.file",
        "vector_store_id": document.base,
        "created_at": _seconds(document.added_at),
        "usage_bytes": document.size_bytes,
        "status": status,
        "filename": _name(document.source),
        "attributes": _plain(document.meta),
        "last_error": {"code": "invalid_file", "message": error} if status == "failed" else None,
    }


def _hit(hit: Hit) -> dict[str, Any]:
    place = {"place": hit.cited} | ({"page": hit.chunk.pages[0]} if hit.chunk.pages else {})
    return {
        "file_id": _file_id(hit.document, hit.source),
        "filename": _name(hit.source),
        "score": hit.score,
        "attributes": _plain({**hit.meta, **place}),
        "content": [{"type": "text", "text": hit.chunk.text}],
    }


def _plain(meta: Any) -> dict[str, Any]:
    return {key: value for key, value in meta.items() if isinstance(value, str | int | float | bool)}


def _file_id(document: str, source: str) -> str:
    """An uploaded file's own id; a document's of the operator's."""
    return source.split("/")[1] if source.startswith(UPLOAD) else document


def _name(source: str) -> str:
    """The name of a file without its folder, which is nobody's business; of a page its address."""
    return source if "://" in source else PurePosixPath(source).name


def _seconds(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp())


def _paged(
    rows: Sequence[dict[str, Any]], after: str | None, before: str | None, limit: int, order: str
) -> dict[str, Any]:
    """A page of ``rows``, which are oldest first."""
    if not 1 <= limit <= 100 or order not in ("asc", "desc"):
        raise RequestError(
            f"limit must be 1 to 100 and order asc or desc; got {limit} and {order[:20]!r}", param="limit"
        )
    shown = list(rows) if order == "asc" else list(rows)[::-1]
    ids = [each["id"] for each in shown]
    if after is not None:
        shown = shown[ids.index(after) + 1 :] if after in ids else []
    elif before is not None:
        shown = shown[max(0, ids.index(before) - limit) : ids.index(before)] if before in ids else []
    return page(shown, limit)
