"""What one client may cost the others: admission, body sizes, host names, keys."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.gateway.access.caller import Caller
from luthier.gateway.access.keys import UNASKED, Keys, is_loopback
from luthier.gateway.api.wire import RequestError, error_bytes
from luthier.gateway.exchange import CACHE_CONTROL, TRACEPARENT

BODY_LIMIT = 4 * 2**20
IMAGES_LIMIT = 20 * 2**20
"""Bytes of a body on ``WITH_IMAGES``, where pictures come inside of it."""
WITH_IMAGES = frozenset({"/v1/chat/completions", "/v1/responses"})
HELD_LIMIT = 256 * 2**20
"""Bytes of all bodies together, from their first byte to the end of their request."""
_DISCARD_LIMIT = 64 * 2**20  # an oversized body is read on to here, so that the client gets to read the refusal
_CLOSE = {"Connection": "close"}  # else what is left of the body would be read on and on
BODY_TIMEOUT_S = 60.0
UPLOADS = frozenset({"/v1/files"})
"""Paths whose POST is a multipart upload: its endpoint reads, counts and bounds it."""
OPEN_PATHS = frozenset({"/health", "/health/ready"})


class Door:
    """ASGI middleware: host name, key, body. What passes has its whole body in memory and is JSON when it has one.

    Without keys the ``Host`` header must name this machine: a web page that had its own name resolve to 127.0.0.1 would
    otherwise reach the server. Bodies must say ``application/json``, which makes a browser ask first, and no answer allows it.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Keys, host: str, limit: int = BODY_LIMIT, open_paths: frozenset[str] = OPEN_PATHS
    ) -> None:
        self.app = app
        self.open_paths = open_paths
        self.keys = keys
        self.limit = limit
        self.held = 0
        self.hosts = {host.lower(), "localhost"} if is_loopback(host) and not keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if "traceparent" in headers:
            TRACEPARENT.set(headers["traceparent"])
        if "cache-control" in headers:
            CACHE_CONTROL.set(headers["cache-control"])
        if scope["method"] == "POST" and scope["path"] in UPLOADS:
            await self._upload(scope, headers, receive, send)
            return
        body: list[bytes] = []  # counted in ``held`` until the request is over
        try:
            if await self._enters(scope, headers, body, receive, send):
                body[:] = [b"".join(body)]
                await self.app(scope, _replay(body[0], receive), send)
        finally:
            self.held -= sum(map(len, body))

    async def _upload(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """Pass on a multipart body as it comes. A browser sends such a form without asking first, but says from where: no page may."""
        try:
            self._check(scope, headers)
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "multipart/form-data":
                said = kind or "none"
                raise RequestError(
                    f"Content-Type must be multipart/form-data; got {said}", status=415, code="content_type"
                )
            if "origin" in headers:
                raise RequestError("files are not taken from web pages", status=403, code="origin_not_allowed")
        except RequestError as error:
            await refuse(send, error)
            return
        await self.app(scope, receive, send)

    async def _enters(
        self, scope: Scope, headers: Mapping[str, str], body: list[bytes], receive: Receive, send: Send
    ) -> bool:
        """Whether a request may pass: its ``body`` is then complete. One that may not is answered here."""
        try:
            self._check(scope, headers)
            if scope["method"] not in ("POST", "PUT", "PATCH"):
                return True
            limit = max(self.limit, IMAGES_LIMIT) if scope["path"] in WITH_IMAGES else self.limit
            return await self._body(body, limit, headers, receive)
        except RequestError as error:
            await refuse(send, error)
            return False

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if self.hosts is not None:
            name = _host_name(headers.get("host", ""))
            if name not in self.hosts and not is_loopback(name):
                raise RequestError(
                    f"the Host header must name this machine (localhost, 127.0.0.1) while no key is set; got {name!r}",
                    status=403,
                    code="host_not_allowed",
                )
        caller = Caller()
        if self.keys:
            try:
                caller = self.keys.caller(headers.get("authorization"))
            except RequestError:
                if scope["path"] not in self.open_paths:
                    raise
                caller = UNASKED
        scope["luthier.caller"] = caller
        scope["luthier.trusted"] = caller.may("admin")

    async def _body(self, body: list[bytes], limit: int, headers: Mapping[str, str], receive: Receive) -> bool:
        """Fill ``body``. False when the client left."""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            kind = headers.get("content-type") or "none"
            raise RequestError(f"Content-Type must be application/json; got {kind}", status=415, code="content_type")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise RequestError(
                f"Content-Encoding must be left out: bodies are not unpacked here; got {headers['content-encoding']}",
                status=415,
                code="content_encoding",
            )
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._read(body, limit, receive)
        except TimeoutError as error:
            raise RequestError(
                f"the body did not arrive within {BODY_TIMEOUT_S:g} s", status=408, code="body_timeout", headers=_CLOSE
            ) from error

    async def _read(self, body: list[bytes], limit: int, receive: Receive) -> bool:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= limit and chunk:
                self.held += len(chunk)
                body.append(chunk)
            more = message.get("more_body", False)
            if self.held > HELD_LIMIT:
                raise RequestError(
                    "the server holds as many bytes of requests as it can; try again in a moment",
                    status=503,
                    code="busy",
                    headers={"Retry-After": "1", **_CLOSE},
                )
            if size > limit and (not more or size > _DISCARD_LIMIT):
                raise RequestError(
                    f"the body must be at most {limit:,} bytes; got {'more than ' if more else ''}{size:,}",
                    status=413,
                    code="body_too_large",
                    headers=_CLOSE if more else None,
                )
            if not more:
                return True


async def refuse(send: Send, error: RequestError) -> None:
    """Answer with an error, below the level of the application."""
    content = error_bytes(error)
    headers = {"content-type": "application/json", "content-length": str(len(content)), **error.headers}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.http_status, "headers": raw})
    await send({"type": "http.response.body", "body": content})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives ``body`` once and then what really comes: in the end, that the client left."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        message: dict[str, Any] = dict(await receive())
        return message

    return replayed


def _host_name(header: str) -> str:
    """``127.0.0.1`` from ``127.0.0.1:8000``, ``::1`` from ``[::1]:8000``."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
