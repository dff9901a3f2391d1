"""The HTTP application: routes, and errors as the OpenAI wire format writes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier import __version__
from luthier.core.errors import LuthierError, NotFoundError, StoreError
from luthier.gateway.answer import answer, trace_headers
from luthier.gateway.chat import read_chat
from luthier.gateway.completions import read_completion
from luthier.gateway.embeddings import embed
from luthier.gateway.feedback import feedback_body, give_feedback
from luthier.gateway.limits import Door
from luthier.gateway.service import Service
from luthier.gateway.wire import (
    Body,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    FeedbackRequest,
    RequestError,
    error_body,
    explain,
)
from luthier.store.traces import find_trace

Read = TypeVar("Read", bound=Body)

logger = logging.getLogger("luthier.gateway")


def build_app(service: Service, host: str = "127.0.0.1") -> FastAPI:
    """The application over ``service``; ``host`` is the address that it will be bound to.

    ``/openapi.json`` describes it. There is no page that would load scripts from elsewhere, and no cross-origin access.
    """
    app = FastAPI(title="Luthier", version=__version__, docs_url=None, redoc_url=None)
    _errors(app)
    _answers(app, service)
    _state(app, service)
    app.add_middleware(Door, keys=service.keys, host=host)
    return app


async def read_body(request: Request, kind: type[Read]) -> Read:
    """The request's body as ``kind``. Raises RequestError that names the field."""
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise explain(error, kind) from error


def _answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", openapi_extra=_schema(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await answer(service, request, read_chat(await read_body(request, ChatRequest)))

    @app.post("/v1/completions", openapi_extra=_schema(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue raw text."""
        return await answer(service, request, read_completion(await read_body(request, CompletionRequest)))

    @app.post("/v1/embeddings", openapi_extra=_schema(EmbeddingRequest))
    async def embeddings(request: Request) -> Response:
        """Embed texts."""
        return await embed(service, request, await read_body(request, EmbeddingRequest))

    @app.post("/v1/feedback", openapi_extra=_schema(FeedbackRequest))
    async def feedback(request: Request) -> Response:
        """Say something of an answer."""
        body = await read_body(request, FeedbackRequest)
        given = await asyncio.to_thread(_after_flush, service, body.trace_id, lambda: _record(service, body))
        return JSONResponse(feedback_body(given))


def _state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        """The served models."""
        return JSONResponse({"object": "list", "data": [served.as_dict() for served in service.models.values()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """One served model."""
        return JSONResponse(service.model(name).as_dict())

    @app.get("/v1/traces/{trace_id}")
    async def trace(trace_id: str) -> Response:
        """What was asked and answered, by what."""
        found = await asyncio.to_thread(_after_flush, service, trace_id, lambda: find_trace(service.store, trace_id))
        return JSONResponse({"object": "trace", **asdict(found)})

    @app.get("/health")
    async def health(request: Request) -> Response:
        """Whether the server answers; with a key (or when none is needed) also how it is doing."""
        state = service.traces.state()
        status = "degraded" if state["error"] else "ok"
        if not request.scope["luthier.trusted"]:
            return JSONResponse({"status": status})
        gate = service.gate
        return JSONResponse({
            "status": status,
            "models": list(service.models),
            "version": __version__,
            "uptime_s": round(time.monotonic() - service.started, 3),
            "requests": {"running": gate.running, "waiting": gate.waiting},
            "traces": state,
        })  # fmt: skip


Found = TypeVar("Found")


def _after_flush(service: Service, trace_id: str, look: Callable[[], Found]) -> Found:
    """``look`` for a trace; one that was answered a moment ago is written first."""
    try:
        return look()
    except NotFoundError:
        if service.traces.flush():
            return look()
        raise RequestError(
            f"traces are not being written at the moment, so {trace_id!r} cannot be found; "
            "the server's log says why. Try again later",
            status=503,
            param="trace_id",
            code="traces_waiting",
            headers={"Retry-After": "5"},
        ) from None


def _record(service: Service, body: FeedbackRequest) -> Any:
    served = service.models.get(find_trace(service.store, body.trace_id).model)
    return give_feedback(
        service.store,
        body.trace_id,
        rating=body.rating,
        label=body.label,
        corrected=body.corrected,
        comment=body.comment,
        labels=served.labels if served is not None else None,
    )


def _schema(body: type[Body]) -> dict[str, Any]:
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _errors(app: FastAPI) -> None:
    @app.exception_handler(LuthierError)
    async def known(request: Request, error: LuthierError) -> Response:
        param = getattr(error, "param", None)
        code = getattr(error, "code", None)
        headers = dict(getattr(error, "headers", {}))
        message = error.message
        if isinstance(error, StoreError):  # says paths of this machine: for the operator, not for a client
            logger.error("%s", error)
            message = "the server could not use its store; the server's log says why"
        trace_id = getattr(request.state, "trace_id", None)
        if trace_id is not None:
            headers |= trace_headers(trace_id)
        return JSONResponse(error_body(message, error.http_status, param=param, code=code), error.http_status, headers)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            paths = ", ".join(app.openapi()["paths"])
            message = f"there is nothing at {request.url.path}; here are: {paths}"
        return JSONResponse(error_body(message, error.status_code), error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return JSONResponse(error_body("the server failed on this request; its log says how", 500), 500)
