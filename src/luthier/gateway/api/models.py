"""/v1/models: what is served, and, for callers with the scope ``admin``, how it comes and goes; vLLM's names for the same; /v1/routes.

Over HTTP only models of the store are loaded (and fake ones): a name that leads to another server would have this one call whatever address it is
given, with its own keys. Those are named in the configuration file.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from luthier.core.errors import ConflictError
from luthier.gateway.answer import json_response
from luthier.gateway.api import openapi
from luthier.gateway.api.openapi import gives, takes
from luthier.gateway.api.wire import Body, RequestError, read
from luthier.gateway.service import Service
from luthier.gateway.targets.registry import ModelConfig, Target
from luthier.store.audit import audit

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/@-]{0,127}")
ENGINES = ("auto", "torch", "llamacpp", "fake")


class LoadModel(Body):
    """POST /v1/models. ``model`` of the store is served as ``name`` (left out: as itself); ``swap`` loads one that is served already anew, and lets
    it take over without a pause."""

    model: str = Field(max_length=512)
    name: str = Field(default="", max_length=128)
    engine: str = "auto"
    options: dict[str, Any] | None = None
    swap: bool = False


class LoadAdapter(Body):
    """POST /v1/load_lora_adapter, as vLLM has it; ``lora_path`` is the name of a stored adapter (left out: ``lora_name``)."""

    lora_name: str = Field(max_length=128)
    lora_path: str = Field(default="", max_length=512)
    load_inplace: bool = False


class UnloadAdapter(Body):
    """POST /v1/unload_lora_adapter, as vLLM has it."""

    lora_name: str = Field(max_length=128)
    lora_int_id: int | None = None


def register(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    _models(app, service)
    _adapters(app, service)
    _routes(app, service)


def _models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=gives(openapi.MODELS))
    async def models(request: Request) -> Response:
        """The models and routes that the caller may ask."""
        caller = request.scope["luthier.caller"]
        listed = [service.describe(name) for name in service.names() if caller.sees(name)]
        return json_response({"object": "list", "data": listed})

    @app.get("/v1/models/{name:path}", responses=gives(openapi.MODEL))
    async def model(request: Request, name: str) -> Response:
        """One served model or route."""
        caller = request.scope["luthier.caller"]
        known = [each for each in service.names() if caller.sees(each)]
        if name not in known:
            service.refuse_model(name, known)
        return json_response(service.describe(name))

    @app.post("/v1/models", openapi_extra=takes(LoadModel), responses=gives(openapi.MODEL))
    async def load(request: Request) -> Response:
        """Load a stored model and serve it."""
        who = _admin(request)
        target = await _load(service, who, read(await request.body(), LoadModel))
        return json_response(target.served.as_dict())

    @app.delete("/v1/models/{name:path}", responses=gives(openapi.DELETED))
    async def unload(request: Request, name: str) -> Response:
        """Serve a model no more. Requests that it answers end in peace; new ones get a 404."""
        await _unload(service, _admin(request), name)
        return json_response({"id": name, "object": "model", "deleted": True})


def _adapters(app: FastAPI, service: Service) -> None:
    @app.post("/v1/load_lora_adapter", openapi_extra=takes(LoadAdapter), responses=openapi.says())
    async def load(request: Request) -> Response:
        """Load a stored adapter and serve it."""
        who, body = _admin(request), read(await request.body(), LoadAdapter)
        stored = body.lora_path or body.lora_name
        if "/" in stored or "\\" in stored:
            raise RequestError(
                f"lora_path must be the name of an adapter in the store, not a path; got {stored!r}", param="lora_path"
            )
        await _load(service, who, LoadModel(model=stored, name=body.lora_name, swap=body.load_inplace))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", openapi_extra=takes(UnloadAdapter), responses=openapi.says())
    async def unload(request: Request) -> Response:
        """Serve an adapter no more."""
        who, body = _admin(request), read(await request.body(), UnloadAdapter)
        await _unload(service, who, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/routes", responses=gives(openapi.ROWS))
    async def routes(request: Request) -> Response:
        """The routes, what they lead to, and how their targets are."""
        _admin(request)
        return json_response({"object": "list", "data": describe(service)})

    @app.post("/v1/routes/{name}/reset", responses=gives(openapi.ROUTE))
    async def reset(request: Request, name: str) -> Response:
        """Let a route begin anew: a canary that was rolled back is tried again."""
        actor, _ = _admin(request)
        await service.router.reset(name, actor)
        return json_response({"id": name, "object": "route", **service.router.routes[name].as_dict()})


def describe(service: Service) -> list[dict[str, Any]]:
    """Every route with its strategy and state, and the state of each model that it may come to."""
    out = []
    for name, route in service.router.routes.items():
        reached = {target.name: target.as_dict() for target in service.router.reachable(name)}
        out.append({"id": name, "object": "route", **route.as_dict(), "models": reached})
    return out


async def _load(service: Service, who: tuple[str, str], asked: LoadModel) -> Target:
    name = asked.name or asked.model
    if not NAME.fullmatch(name):
        raise RequestError(
            f"name must be 1 to 128 letters, digits and any of . _ : + / @ -, beginning with a letter or digit; got {name!r}",
            param="name",
        )
    if asked.engine not in ENGINES or asked.model.split(":", 1)[0] in ("openai", "db"):
        raise RequestError(
            f"over HTTP models of the store are loaded, with engine {', '.join(ENGINES)}; name {asked.model!r} with engine "
            f"{asked.engine} in the configuration file instead",
            param="engine" if asked.engine not in ENGINES else "model",
        )
    if name in service.router.routes or name in service.models.aliases():
        raise ConflictError(f"{name!r} is a route or an alias here; give the model another name")
    known = service.models.target(name, hidden=True)
    config = ModelConfig(model=asked.model, engine=asked.engine, options=asked.options)
    if known is not None and asked.swap:  # its settings stay, only what answers is another
        config = known.config.model_copy(
            update=config.model_dump(include={"model", "engine", "options"}) | {"replicas": known.config.replicas}
        )
    target = await service.models.load(name, config, swap=asked.swap)
    await _note(
        service, who, "model.load", name, {"model": asked.model, "digest": target.served.engine.info.model_digest}
    )
    return target


async def _unload(service: Service, who: tuple[str, str], name: str) -> None:
    used = [route for route in service.router.routes if name in service.router.routes[route].config.names()]
    if used:
        raise ConflictError(f"{name!r} is a target of the route {used[0]!r}; change the route first")
    service.models.remove(name)
    await _note(service, who, "model.unload", name, {})


async def _note(service: Service, who: tuple[str, str], action: str, name: str, detail: dict[str, Any]) -> None:
    actor, address = who
    await asyncio.to_thread(audit, service.store, actor, action, name, detail, address=address)


def _admin(request: Request) -> tuple[str, str]:
    """(who asks, from where). Raises ForbiddenError without the scope ``admin``; on a server without keys everybody here has it."""
    caller = request.scope["luthier.caller"]
    caller.require("admin")
    return caller.key_id or "local", request.client.host if request.client else ""
