"""/v1/batches: files of requests that are answered when there is time."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.batch import BatchRecord
from luthier.core.errors import NotFoundError
from luthier.gateway.access.caller import Caller
from luthier.gateway.answer import json_response
from luthier.gateway.api.files import page
from luthier.gateway.api.openapi import COUNT, MAYBE_TEXT, TEXT, gives, listing, maybe, record, takes
from luthier.gateway.api.wire import Body, RequestError
from luthier.gateway.api.wire import read as read_body
from luthier.gateway.service import Service
from luthier.store.batches import cancel_batch, count_open, create_batch, find_batch, list_batches
from luthier.store.files import find_file

_WINDOW = re.compile(r"([1-9]\d?)(h|d)")
_LONGEST = timedelta(days=14)
BATCH = record(
    {
        "id": TEXT, "object": {"const": "batch"}, "endpoint": TEXT, "input_file_id": TEXT, "completion_window": TEXT,
        "status": {"enum": ["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]},
        "created_at": COUNT, "output_file_id": MAYBE_TEXT, "error_file_id": MAYBE_TEXT,
        "request_counts": record({"total": COUNT, "completed": COUNT, "failed": COUNT}),
        "errors": maybe({"type": "object"}), "metadata": maybe({"type": "object"}),
    }
)  # fmt: skip
BATCHES = record({"object": {"const": "list"}, "data": listing(BATCH), "has_more": {"type": "boolean"}})
Short = Annotated[str, Field(max_length=512)]


class CreateBatch(Body):
    """A batch to be done. ``completion_window``: how long it may take, ``1h`` to ``14d``; lines that were not asked by then are reported as expired."""

    input_file_id: str = Field(max_length=64)
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    completion_window: str = Field(max_length=8)
    metadata: dict[Annotated[str, Field(max_length=64)], Short] | None = Field(default=None, max_length=16)


def register(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""

    @app.post("/v1/batches", openapi_extra=takes(CreateBatch), responses=gives(BATCH))
    async def create(request: Request) -> Response:
        """Begin a batch."""
        caller = _owner(request)
        asked = read_body(await request.body(), CreateBatch)
        made = await asyncio.to_thread(_create, service, caller, asked)
        _wake(service)
        return json_response(made.as_dict())

    @app.get("/v1/batches", responses=gives(BATCHES))
    async def listed(request: Request, after: str | None = None, limit: int = 20) -> Response:
        """The tenant's batches, newest first."""
        caller = _owner(request)
        if not 1 <= limit <= 100:
            raise RequestError(f"limit must be 1 to 100; got {limit}", param="limit", code="invalid_value")
        found = await asyncio.to_thread(
            lambda: list_batches(service.store, caller.tenant, after=after, limit=limit + 1)
        )
        return json_response(page([each.as_dict() for each in found], limit))

    @app.get("/v1/batches/{batch_id}", responses=gives(BATCH))
    async def one(request: Request, batch_id: str) -> Response:
        """How far a batch is."""
        caller = _owner(request)
        return json_response((await asyncio.to_thread(find_batch, service.store, batch_id, caller.tenant)).as_dict())

    @app.post("/v1/batches/{batch_id}/cancel", responses=gives(BATCH))
    async def cancel(request: Request, batch_id: str) -> Response:
        """Stop a batch; what is answered stays."""
        caller = _owner(request)
        found = await asyncio.to_thread(cancel_batch, service.store, batch_id, caller.tenant)
        _wake(service)
        return json_response(found.as_dict())


def _owner(request: Request) -> Caller:
    caller: Caller = request.scope["luthier.caller"]
    caller.require("batch")
    return caller


def _wake(service: Service) -> None:
    if service.batches is not None:
        service.batches.wake()


def _create(service: Service, caller: Caller, asked: CreateBatch) -> BatchRecord:
    caller.require("inference")
    window = read_window(asked.completion_window)
    try:
        file = find_file(service.store, asked.input_file_id, caller.tenant)
    except NotFoundError as error:
        raise RequestError(error.message, status=404, param="input_file_id", code="file_not_found") from error
    if file.purpose != "batch":
        raise RequestError(
            f"input_file_id must be a file of purpose batch; got {file.purpose}",
            param="input_file_id",
            code="invalid_value",
        )
    most = service.config.batch.max_open
    if count_open(service.store, caller.tenant) >= most:
        raise RequestError(
            f"{most} batches of yours are not done yet, which is as many as may wait; try again when one is",
            status=429,
            code="too_many_batches",
            headers={"Retry-After": "60"},
        )
    expires = (datetime.now(UTC) + window).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return create_batch(
        service.store,
        tenant=caller.tenant,
        key_id=caller.key_id,
        endpoint=asked.endpoint,
        input_file=file.id,
        window=asked.completion_window,
        expires_at=expires,
        about=asked.metadata,
    )


def read_window(text: str) -> timedelta:
    """How long ``24h`` or ``3d`` is. Raises RequestError."""
    found = _WINDOW.fullmatch(text)
    window = timedelta(**{"hours" if found[2] == "h" else "days": int(found[1])}) if found else timedelta(0)
    if not timedelta(0) < window <= _LONGEST:
        raise RequestError(
            f"completion_window must be like 24h or 3d, 14d at most; got {text!r}",
            param="completion_window",
            code="invalid_value",
        )
    return window


__all__ = ["BATCH", "CreateBatch", "read_window", "register"]
