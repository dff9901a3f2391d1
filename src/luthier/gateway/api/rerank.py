"""POST /v1/rerank: documents in the order of their relevance to a query, as the APIs of Jina, Cohere and vLLM have it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI
from pydantic import Field, PlainValidator, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.digest import digest_json
from luthier.core.engine import EMBED, RERANK, Reranker, Vectors
from luthier.core.errors import UnsupportedError
from luthier.gateway.access.quota import tokens_of
from luthier.gateway.answer import json_response, operate, trace_headers
from luthier.gateway.api import openapi
from luthier.gateway.api.embeddings import count_tokens, embed_parts
from luthier.gateway.api.wire import Body, bad, expect, read, refuse_type, require_known
from luthier.gateway.exchange import Exchange
from luthier.gateway.service import Service
from luthier.gateway.targets.routes import ask_engine
from luthier.gateway.targets.served import Served

MOST_DOCUMENTS = 1024
AT_ONCE = 64
"""Documents between two looks at whether the client is still there."""


def _documents(value: Any) -> list[str]:
    expect(value, list, "a list of texts, or of objects with a text", "")
    if not 1 <= len(value) <= MOST_DOCUMENTS:
        raise bad(f"must hold 1 to {MOST_DOCUMENTS} documents; got {len(value):,}")
    texts = []
    for number, each in enumerate(value):
        text = each
        if isinstance(each, dict):
            require_known(each, ("text",), f"[{number}]")
            text = each.get("text")
        if not isinstance(text, str):
            refuse_type(text, 'text, or an object like {"text": "..."}', f"[{number}]")
        texts.append(text)
    return texts


def _query(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        refuse_type(value, "text that is not empty", "")
    return value


_DOCUMENT = {"anyOf": [openapi.TEXT, openapi.record({"text": openapi.TEXT}) | {"additionalProperties": False}]}


class RerankRequest(Body):
    """Documents to put in order. ``top_n``: only so many of them are answered, the most relevant first."""

    model: str = Field(max_length=512)
    query: Annotated[str, PlainValidator(_query), WithJsonSchema({"type": "string", "pattern": r"\S"})]
    documents: Annotated[
        list[str],
        PlainValidator(_documents),
        WithJsonSchema({"type": "array", "minItems": 1, "maxItems": MOST_DOCUMENTS, "items": _DOCUMENT}),
    ]
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = True
    user: str | None = Field(default=None, max_length=512)


def register(app: FastAPI, service: Service) -> None:
    """The routes; ``/v2/rerank`` is where Cohere's client looks."""
    for path in ("/v1/rerank", "/v2/rerank"):

        @app.post(
            path,
            name=path,
            operation_id=f"rerank{path[:3].replace('/', '_')}",
            openapi_extra=openapi.takes(RerankRequest),
            responses=openapi.gives(openapi.RERANKED),
        )
        async def ask(request: Request) -> Response:
            """Put documents in the order of their relevance to a query."""
            return await rerank(service, request, read(await request.body(), RerankRequest))


async def rerank(service: Service, request: Request, body: RerankRequest) -> Response:
    """Score documents: by the model's reading them with the query, or for an embedding model by the cosine of the vectors.

    Raises LuthierError for what is refused: by keys and limits, the engine, or a full server.
    """
    # bulk input is not kept, only enough to recognise it
    parameters = {"documents": len(body.documents), "input_digest": digest_json([body.query, *body.documents])}
    parameters |= {"top_n": body.top_n, "user": body.user}
    exchange = Exchange(
        "rerank", body.model, request.scope["luthier.caller"], parameters=parameters, session=body.user or ""
    )
    exchange.expected_tokens = sum(map(tokens_of, body.documents))

    async def work() -> list[float]:
        scored = partial(_scored, body=body)
        parts = await ask_engine(service, exchange, "", scored, [body.query, *body.documents])
        exchange.prompt_tokens += sum(tokens for _, tokens in parts)
        return [score for scores, _ in parts for score in scores]

    scores = await operate(service, request, exchange, work)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if body.return_documents:
        results = [each | {"document": {"text": body.documents[each["index"]]}} for each in results]
    usage = {"prompt_tokens": exchange.prompt_tokens, "total_tokens": exchange.prompt_tokens}
    content = {"id": exchange.id, "object": "list", "model": body.model, "results": results, "usage": usage}
    return json_response(content, headers=trace_headers(exchange.id) | exchange.headers)


def _scored(served: Served, stopped: threading.Event, body: RerankRequest) -> Iterator[tuple[list[float], int]]:
    """Scores of the documents and tokens that were read for them, some at a time. Raises UnsupportedError."""
    capabilities = served.engine.info.capabilities
    if RERANK in capabilities:
        return _read_together(served, body, stopped)
    if EMBED in capabilities:
        return _compared(served, body, stopped)
    can = ", ".join(sorted(capabilities)) or "nothing"
    raise UnsupportedError(
        f"{body.model} on engine {served.engine.info.engine} can neither rerank nor embed; it can: {can}"
    )


def _compared(served: Served, body: RerankRequest, stopped: threading.Event) -> Iterator[tuple[list[float], int]]:
    """The cosines of the documents with the query."""
    query: Vectors | None = None
    for vectors, tokens in embed_parts(served, stopped, [body.query, *body.documents]):
        others = vectors
        if query is None:
            query, others = vectors[0], vectors[1:]
        cosines: list[float] = np.clip(others @ query, -1.0, 1.0).astype(float).tolist()
        yield cosines, tokens


def _read_together(served: Served, body: RerankRequest, stopped: threading.Event) -> Iterator[tuple[list[float], int]]:
    engine = served.engine
    assert isinstance(engine, Reranker)  # what the capability says
    for start in range(0, len(body.documents), AT_ONCE):
        if stopped.is_set():
            return
        some = body.documents[start : start + AT_ONCE]
        query_tokens = count_tokens(served, [body.query])
        yield engine.rerank(body.query, some), count_tokens(served, some) + query_tokens * len(some)
