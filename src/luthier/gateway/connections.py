"""Connections that cost little: idle ones are bounded in number, request heads in size and time.

uvicorn's protocol waits forever for the first byte of a request and for the end of its head, and keeps as many connections as come; one
client could so use up the process's files or memory. Everything after the head is guarded by ``gateway.access.limits``.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from luthier.gateway.api.wire import RequestError, error_bytes

HEAD_TIMEOUT_S = 20.0
MOST_HEAD_BYTES = 64 * 2**10
SPARE_FILES = 256
"""Files that are kept for the store, engines and calls to other servers."""


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection.

    ``most`` connections are open at once: another one closes the one that has waited longest without a request. A head must be complete
    within ``HEAD_TIMEOUT_S`` seconds of the connection, or of its first byte, and have at most ``MOST_HEAD_BYTES``.
    """

    most = 10_000
    waiting: dict[Connection, None]  # of one server, the longest first; lives on its state

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting = self.server_state.__dict__.setdefault("waiting", {})
        self._head_bytes: int | None = None  # of the head that is being read; None between heads
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more; when there are too many, the longest idle one has to go."""
        super().connection_made(transport)
        self.waiting[self] = None
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)
        if len(self.connections) > self.most:
            longest = next(iter(self.waiting))
            del self.waiting[longest]
            longest.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self.waiting.pop(self, None)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head has become too large."""
        super().data_received(data)
        if self._head_bytes is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MOST_HEAD_BYTES:
            self._refuse(RequestError(
                f"the request's head must be at most {MOST_HEAD_BYTES:,} bytes", status=431, code="head_too_large"
            ))  # fmt: skip
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head ends."""
        self._head_bytes = None
        self._stop_timer()
        self.waiting.pop(self, None)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():  # else a pipelined one has begun
            self.waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets an error in the same form as all others."""
        self._refuse(RequestError("the request is not valid HTTP/1.1", code="invalid_http"))

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_bytes is None:
            self.transport.close()  # nothing came: nobody waits for an answer
        else:
            self._refuse(RequestError(
                f"the request's head was not complete within {HEAD_TIMEOUT_S:g} s", status=408, code="head_timeout"
            ))  # fmt: skip

    def _refuse(self, error: RequestError) -> None:
        if self.transport.is_closing():
            return
        body = error_bytes(error)
        head = (
            f"HTTP/1.1 {error.http_status} {error.code}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def raise_file_limit() -> int:
    """As many open files as this user may have; returns how many connections that leaves room for (at most ``Connection.most``)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = Connection.most + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return Connection.most if soft == resource.RLIM_INFINITY else max(64, min(Connection.most, soft - SPARE_FILES))
