"""/v1/cache: what a running server's cache holds, and clearing it; for callers with the scope ``admin``."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from luthier.gateway.answer import json_response
from luthier.gateway.api import openapi
from luthier.gateway.api.openapi import COUNT, TEXT, gives, listing, record
from luthier.gateway.api.wire import RequestError
from luthier.gateway.cache.layer import Cache
from luthier.gateway.service import Service
from luthier.store.audit import audit

STATS = record({
    "object": {"const": "cache"}, "entries": COUNT, "size_bytes": COUNT, "hit_rate": openapi.NUMBER,
    "by_model": listing(record({"tenant": TEXT, "model": TEXT, "entries": COUNT, "size_bytes": COUNT})),
})  # fmt: skip
CLEARED = record({"object": {"const": "cache"}, "cleared": COUNT})


def register(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""

    @app.get("/v1/cache", responses=gives(STATS))
    async def stats(request: Request) -> Response:
        """What is kept, by tenant and model, and how often it was used."""
        cache = _cache(service, request)
        kept = await asyncio.to_thread(cache.store.stats)
        return json_response({"object": "cache", **cache.state(), **kept})

    @app.delete("/v1/cache", responses=gives(CLEARED))
    async def clear(request: Request, tenant: str | None = None, model: str | None = None) -> Response:
        """Forget all answers, or those of a tenant or a model."""
        cache, caller = _cache(service, request), request.scope["luthier.caller"]
        address = request.client.host if request.client else ""

        def work() -> int:
            gone = cache.clear(tenant, model)
            detail = {"tenant": tenant, "model": model, "entries": gone}
            audit(service.store, caller.key_id or "local", "cache.clear", "cache", detail, address=address)
            return gone

        return json_response({"object": "cache", "cleared": await asyncio.to_thread(work)})


def _cache(service: Service, request: Request) -> Cache:
    request.scope["luthier.caller"].require("admin")
    if service.cache is None:
        raise RequestError(
            "this server has no cache; its configuration has no section cache", status=404, code="no_cache"
        )
    return service.cache
