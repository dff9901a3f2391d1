"""What one client may cost the others: admission, body sizes, host names, keys."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.gateway.caller import Caller
from luthier.gateway.exchange import TRACEPARENT
from luthier.gateway.keys import UNASKED, Keys, is_loopback
from luthier.gateway.wire import RequestError, error_bytes

BODY_LIMIT = 4 * 2**20
_DISCARD_LIMIT = 16 * BODY_LIMIT  # an oversized body is read on to here, so that the client gets to read the refusal
BODY_TIMEOUT_S = 60.0
OPEN_PATHS = frozenset({"/health"})


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
        self.hosts = {host.lower(), "localhost"} if is_loopback(host) and not keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if "traceparent" in headers:
            TRACEPARENT.set(headers["traceparent"])
        try:
            self._check(scope, headers)
            body = await self._body(headers, receive) if scope["method"] in ("POST", "PUT", "PATCH") else b""
        except RequestError as error:
            await refuse(send, error)
            return
        if body is None:  # the client left while it was sending
            return
        await self.app(scope, _replay(body, receive), send)

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

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes | None:
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            kind = headers.get("content-type") or "none"
            raise RequestError(f"Content-Type must be application/json; got {kind}", status=415, code="content_type")
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._read(receive)
        except TimeoutError as error:
            raise RequestError(
                f"the body did not arrive within {BODY_TIMEOUT_S:g} s", status=408, code="body_timeout"
            ) from error

    async def _read(self, receive: Receive) -> bytes | None:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= self.limit:
                chunks.append(chunk)
            more = message.get("more_body", False)
            if size > self.limit and (not more or size > _DISCARD_LIMIT):
                raise RequestError(
                    f"the body must be at most {self.limit:,} bytes; got {'more than ' if more else ''}{size:,}",
                    status=413,
                    code="body_too_large",
                )
            if not more:
                return b"".join(chunks)


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
