"""The HTTP application: routes, and errors as the OpenAI wire format writes them."""

from __future__ import annotations

import logging
import math
import time

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from luthier import __version__
from luthier.core.errors import EngineError, LuthierError, StoreError
from luthier.gateway.access import admin as key_admin
from luthier.gateway.access.limits import OPEN_PATHS, Door
from luthier.gateway.answer import answer, json_response, trace_headers
from luthier.gateway.api import feedback, files, models, openapi, rerank, responses
from luthier.gateway.api.chat import ChatRequest, read_chat
from luthier.gateway.api.completions import CompletionRequest, read_completion
from luthier.gateway.api.embeddings import EmbeddingRequest, embed
from luthier.gateway.api.openapi import gives, takes
from luthier.gateway.api.wire import error_body, read
from luthier.gateway.batch import batches
from luthier.gateway.cache import admin as cache_admin
from luthier.gateway.calls import ClientGoneError
from luthier.gateway.guard import check as guard_check
from luthier.gateway.knowledge import stores
from luthier.gateway.service import Service
from luthier.gateway.watch import metrics, trace_api

logger = logging.getLogger("luthier.gateway")


def build_app(service: Service, host: str = "127.0.0.1") -> FastAPI:
    """The application over ``service``; ``host`` is the address that it will be bound to.

    ``/openapi.json`` describes it. There is no page that would load scripts from elsewhere, and no cross-origin access.
    """
    app = FastAPI(title="Luthier", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    openapi.describe(app)
    _errors(app)
    _answers(app, service)
    responses.register(app, service)
    rerank.register(app, service)
    guard_check.register(app, service)
    feedback.register(app, service)
    trace_api.register(app, service)
    models.register(app, service)
    _state(app, service)
    key_admin.register(app, service)
    cache_admin.register(app, service)
    files.register(app, service)
    batches.register(app, service)
    stores.register(app, service)
    metrics.register(app, service)
    open_paths = OPEN_PATHS | ({metrics.PATH} if service.watch.config.open_metrics else set())
    app.add_middleware(Door, keys=service.keys, host=host, open_paths=open_paths)
    return app


def _answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", openapi_extra=takes(ChatRequest), responses=gives(openapi.CHAT, streams=True))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await answer(service, request, read_chat(read(await request.body(), ChatRequest)))

    @app.post(
        "/v1/completions", openapi_extra=takes(CompletionRequest), responses=gives(openapi.COMPLETION, streams=True)
    )
    async def completions(request: Request) -> Response:
        """Continue raw text."""
        return await answer(service, request, read_completion(read(await request.body(), CompletionRequest)))

    @app.post("/v1/embeddings", openapi_extra=takes(EmbeddingRequest), responses=gives(openapi.EMBEDDINGS))
    async def embeddings(request: Request) -> Response:
        """Embed texts."""
        return await embed(service, request, read(await request.body(), EmbeddingRequest))


def _state(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=gives(openapi.HEALTH))
    async def health(request: Request) -> Response:
        """Whether the server answers; with a key (or when none is needed) also how it is doing."""
        state = service.traces.state()
        status = "degraded" if state["error"] else "ok"
        if not request.scope["luthier.trusted"]:
            return json_response({"status": status})
        gate = service.gate
        return json_response({
            "status": status,
            "models": list(service.models),
            "version": __version__,
            "uptime_s": round(time.monotonic() - service.started, 3),
            "requests": {"running": gate.running, "waiting": gate.waiting},
            "traces": state,
            **({"cache": service.cache.state()} if service.cache is not None else {}),
            **(service.details() if request.scope["luthier.caller"].may("admin") else {}),
        })  # fmt: skip

    @app.get("/health/ready", responses=gives(openapi.READY))
    async def ready() -> Response:
        """Whether requests can be answered now: 200, or 503 while none of the models can be asked, or the server is stopping."""
        good = service.ready()
        return json_response({"status": "ready" if good else "not_ready"}, 200 if good else 503)


def _errors(app: FastAPI) -> None:
    @app.exception_handler(LuthierError)
    async def known(request: Request, error: LuthierError) -> Response:
        param = getattr(error, "param", None)
        code = getattr(error, "code", None)
        headers = dict(getattr(error, "headers", {}))
        if isinstance(error, EngineError) and error.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        message = error.message
        if isinstance(error, StoreError):  # says paths of this machine: for the operator, not for a client
            logger.error("%s", error)
            message = "the server could not use its store; the server's log says why"
        trace_id = getattr(request.state, "trace_id", None)
        if trace_id is not None:
            headers |= trace_headers(trace_id)
        return json_response(error_body(message, error.http_status, param=param, code=code), error.http_status, headers)

    @app.exception_handler(RequestValidationError)
    async def misread(request: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        name = str(problem["loc"][-1])
        said = f"{name}: {problem['msg'][:1].lower()}{problem['msg'][1:]}; got {problem.get('input')!r}"
        return json_response(error_body(said, 400, param=name, code="invalid_value"), 400)

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        return Response(status_code=499)  # for the log of a proxy: nobody reads it

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            paths = ", ".join(app.openapi()["paths"])
            message = f"there is nothing at {request.url.path}; here are: {paths}"
        return json_response(error_body(message, error.status_code), error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return json_response(error_body("the server failed on this request; its log says how", 500), 500)
