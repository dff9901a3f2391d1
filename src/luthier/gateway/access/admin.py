"""/v1/keys, /v1/tenants, /v1/usage, /v1/audit: keys and limits over HTTP, for callers with the scope ``admin``.

Who has it runs the server, all tenants of it; it does not open what other tenants asked or were answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.errors import InputError
from luthier.gateway.access.caller import ForbiddenError
from luthier.gateway.answer import json_response
from luthier.gateway.api import openapi
from luthier.gateway.api.openapi import gives, takes
from luthier.gateway.api.wire import Body, read
from luthier.gateway.service import Service
from luthier.store.audit import list_audit
from luthier.store.database import Store
from luthier.store.keys import (
    DEFAULT_SCOPES,
    create_key,
    find_key,
    limit_key,
    limit_tenant,
    list_keys,
    list_tenants,
    revoke_key,
    rotate_key,
)
from luthier.store.usage import BY, list_usage

Done = TypeVar("Done")
Limit = int | float | None


class CreateKey(Body):
    """POST /v1/keys."""

    tenant: str
    name: str = ""
    scopes: list[str] = Field(default_factory=lambda: list(DEFAULT_SCOPES), max_length=16)
    models: list[str] = Field(default_factory=lambda: ["*"], max_length=256)
    labels: list[str] = Field(default_factory=list, max_length=256)
    limits: dict[str, Limit] = Field(default_factory=dict)
    expires: str | None = None


class ChangeLimits(Body):
    """POST /v1/keys/{id}/limits and /v1/tenants/{name}/limits; null lifts a limit."""

    limits: dict[str, Limit]


class RotateKey(Body):
    """POST /v1/keys/{id}/rotate; the old key works for ``grace`` (``24h``)."""

    grace: str | None = None


def register(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    _keys(app, service)
    _changes(app, service)
    _books(app, service)


def _keys(app: FastAPI, service: Service) -> None:
    @app.post("/v1/keys", openapi_extra=takes(CreateKey), responses=gives(openapi.KEY))
    async def create(request: Request) -> Response:
        """Make a key; the answer is the only place where it is ever shown."""
        actor, address = _admin(service, request)
        asked = read(await request.body(), CreateKey)
        made, secret = await _do(
            service, lambda store: create_key(store, **asked.model_dump(), actor=actor, address=address)
        )
        return json_response({**made.as_dict(), "key": secret})

    @app.get("/v1/keys", responses=gives(openapi.KEYS))
    async def listed(request: Request, tenant: str | None = None) -> Response:
        """All keys, or a tenant's."""
        _admin(service, request)
        keys = await _do(service, lambda store: list_keys(store, tenant))
        return json_response({"object": "list", "data": [key.as_dict() for key in keys]})

    @app.get("/v1/keys/{key_id}", responses=gives(openapi.KEY))
    async def show(request: Request, key_id: str) -> Response:
        """One key."""
        _admin(service, request)
        return json_response((await _do(service, lambda store: find_key(store, key_id))).as_dict())

    @app.delete("/v1/keys/{key_id}", responses=gives(openapi.KEY))
    async def revoke(request: Request, key_id: str) -> Response:
        """End a key for good."""
        actor, address = _admin(service, request)
        gone = await _do(service, lambda store: revoke_key(store, key_id, actor=actor, address=address))
        return json_response(gone.as_dict())


def _changes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/keys/{key_id}/rotate", openapi_extra=takes(RotateKey), responses=gives(openapi.KEY))
    async def rotate(request: Request, key_id: str) -> Response:
        """Give a key a new secret."""
        actor, address = _admin(service, request)
        asked = read(await request.body(), RotateKey)
        made, secret = await _do(
            service, lambda store: rotate_key(store, key_id, grace=asked.grace, actor=actor, address=address)
        )
        return json_response({**made.as_dict(), "key": secret})

    @app.post("/v1/keys/{key_id}/limits", openapi_extra=takes(ChangeLimits), responses=gives(openapi.KEY))
    async def limits(request: Request, key_id: str) -> Response:
        """Change limits of a key."""
        actor, address = _admin(service, request)
        asked = read(await request.body(), ChangeLimits).limits
        key = await _do(service, lambda store: limit_key(store, key_id, asked, actor=actor, address=address))
        return json_response(key.as_dict())

    @app.post("/v1/tenants/{tenant}/limits", openapi_extra=takes(ChangeLimits), responses=gives(openapi.TENANT))
    async def shared_limits(request: Request, tenant: str) -> Response:
        """Change the limits that a tenant's keys share."""
        actor, address = _admin(service, request)
        asked = read(await request.body(), ChangeLimits).limits
        held = await _do(service, lambda store: limit_tenant(store, tenant, asked, actor=actor, address=address))
        return json_response({"object": "tenant", "tenant": tenant, "limits": held.as_dict()})


def _books(app: FastAPI, service: Service) -> None:
    @app.get("/v1/tenants", responses=gives(openapi.TENANTS))
    async def tenants(request: Request) -> Response:
        """Every tenant and its limits."""
        _admin(service, request)
        known = await _do(service, list_tenants)
        listed = [{"object": "tenant", "tenant": name, "limits": limits.as_dict()} for name, limits in known.items()]
        return json_response({"object": "list", "data": listed})

    @app.get("/v1/usage", responses=gives(openapi.ROWS))
    async def used(
        request: Request, since: str = "", until: str = "9999", tenant: str | None = None, by: str = ",".join(BY)
    ) -> Response:
        """What was used, by any of day, tenant, key_id and model (commas between them)."""
        _admin(service, request)
        rows = await _do(
            service, lambda store: list_usage(store, since=since, until=until, tenant=tenant, by=by.split(","))
        )
        return json_response({"object": "list", "data": rows})

    @app.get("/v1/audit", responses=gives(openapi.ROWS))
    async def audited(request: Request, action: str | None = None, limit: int = 100) -> Response:
        """The newest rows of the audit log."""
        _admin(service, request)
        if not 1 <= limit <= 1000:
            raise InputError(f"limit must be 1 to 1000; got {limit}")
        rows = await _do(service, lambda store: list_audit(store, action=action, limit=limit))
        return json_response({"object": "list", "data": [asdict(row) for row in rows]})


def _admin(service: Service, request: Request) -> tuple[str, str]:
    """(who asks, from where). Raises ForbiddenError without the scope, and on a server where anybody near would have it."""
    caller = request.scope["luthier.caller"]
    if not service.keys:
        raise ForbiddenError(
            "this server asks nobody for a key, so it hands none out: use `luthier keys` on its machine, or serve with --keys"
        )
    caller.require("admin")
    return caller.key_id, request.client.host if request.client else ""


async def _do(service: Service, work: Callable[[Store], Done]) -> Done:
    """Work on the store in a thread; what it changed holds here at once."""

    def done() -> Done:
        result = work(service.store)
        service.keys.refresh()
        if service.quota is not None:
            service.quota.sync()
        return result

    return await asyncio.to_thread(done)
