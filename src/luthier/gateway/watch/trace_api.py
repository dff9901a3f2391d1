"""GET /v1/traces and /v1/traces/ID: what was asked and answered, by what, and what was said of it. A tenant sees its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.errors import InputError
from luthier.core.trace import Feedback, Trace
from luthier.gateway.access.caller import Caller
from luthier.gateway.answer import json_response
from luthier.gateway.api import openapi
from luthier.gateway.api.wire import Body, RequestError, explain
from luthier.gateway.service import Service
from luthier.gateway.watch.lookup import after_flush
from luthier.store.feedback import feedback_on
from luthier.store.trace_query import FeedbackFilter, TraceFilter, query_traces
from luthier.store.traces import find_trace

EVERYBODY = "*"
"""The ``tenant`` of an operator who asks for all tenants' traces."""


class TraceQuery(Body):
    """The query of GET /v1/traces: the fields of ``store.trace_query.TraceFilter``, and which page.

    ``tenant`` is for operators (scope admin): another tenant's name, or ``*`` for all.
    """

    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)
    model: str | None = None
    route: str | None = None
    session: str | None = None
    key: str | None = None
    user: str | None = None
    operation: str | None = None
    since: str | None = None
    until: str | None = None
    errors: bool = False
    min_latency_s: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    text: str | None = Field(default=None, min_length=1, max_length=1000)
    feedback: FeedbackFilter | None = None
    finish_reason: str | None = None
    guardrail: str | None = None
    cache: Literal["any", "exact", "semantic"] | None = None
    tenant: str | None = None
    limit: int = Field(default=20, ge=1, le=1000)
    after: str | None = None

    def filter(self, caller: Caller) -> TraceFilter:
        """What may be looked for. Raises RequestError for a time that is none, ForbiddenError for another tenant's without the scope."""
        tenant: str | None = caller.tenant
        if self.tenant is not None and self.tenant != caller.tenant:
            caller.require("admin")
            tenant = None if self.tenant == EVERYBODY else self.tenant
        try:
            return TraceFilter(tenant=tenant, **self.model_dump(exclude={"tenant", "limit", "after"}))
        except InputError as error:
            raise RequestError(error.message, param=error.message.partition(" ")[0], code="invalid_value") from error


def read_query(given: QueryParams) -> TraceQuery:
    """The query as asked. Raises RequestError that names the parameter."""
    counts = Counter(name for name, _ in given.multi_items())
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise RequestError(
            f"{twice[0]} is given {counts[twice[0]]} times; say it once", param=twice[0], code="invalid_value"
        )
    try:
        return TraceQuery.model_validate(dict(given))
    except ValidationError as error:
        raise explain(error, TraceQuery) from error


def trace_body(trace: Trace) -> dict[str, Any]:
    """A trace as the API writes it."""
    return {"object": "trace", **asdict(trace)}


def register(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.get("/v1/traces", openapi_extra={"parameters": _parameters()}, responses=openapi.gives(openapi.TRACES))
    async def traces(request: Request) -> Response:
        """The newest traces that the filters fit, newest first; ``after`` goes on where a page ended."""
        caller = request.scope["luthier.caller"]
        caller.require("traces")
        asked = read_query(request.query_params)
        wanted = asked.filter(caller)
        look = partial(query_traces, service.store, wanted, limit=asked.limit + 1, after=asked.after)
        found = await asyncio.to_thread(look)
        page = found[: asked.limit]
        return json_response({
            "object": "list",
            "data": [trace_body(trace) for trace in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(found) > asked.limit,
        })  # fmt: skip

    @app.get("/v1/traces/{trace_id}", responses=openapi.gives(openapi.TRACE))
    async def trace(request: Request, trace_id: str) -> Response:
        """What was asked and answered, by what, and what was said of it. Another tenant's trace is not known here."""
        caller = request.scope["luthier.caller"]
        caller.require("traces")

        def look() -> tuple[Trace, list[Feedback]]:
            found = find_trace(service.store, trace_id, tenant=caller.tenant)
            return found, [said for said in feedback_on(service.store, trace_id) if said.tenant == found.tenant]

        found, said = await asyncio.to_thread(after_flush, service, trace_id, look)
        return json_response({**trace_body(found), "feedback": [asdict(each) for each in said]})


def _parameters() -> list[dict[str, Any]]:
    properties = TraceQuery.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]
