"""A load generator for HTTP servers that speak the OpenAI format, in a process of its own: little work a request, so that it measures the server.

Reads one JSON object from stdin: ``url``, ``bodies`` (request bodies, used in turn), ``requests`` (how many), and either ``concurrency``
(a closed loop: so many at once, each followed by the next) or ``rate`` (an open loop: requests begin so often a second, whether the earlier
ones are answered or not; a late answer cannot make the load lighter). Writes one JSON object: seconds, statuses, latencies and first bytes in
seconds (an open loop counts from the time at which a request was due), and the sum of ``completion_tokens``.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')


@dataclass
class Result:
    """What came of the requests."""

    latency_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    tokens: int = 0

    def note(self, status: str) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1


class Connection:
    """One kept-alive connection; opened when it is first used, and again when the server closed it."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes, begun: float, result: Result) -> None:
        try:
            kept = self.writer is not None and not self.writer.is_closing()
            try:
                head = await self._head(request)
            except (OSError, asyncio.IncompleteReadError):
                if not kept:
                    raise
                self._drop()  # the server closed it just then
                head = await self._head(request)
            assert self.reader is not None
            first, body = await self._body(head, self.reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            result.note(type(error).__name__)
            self._drop()
            return
        result.latency_s.append(time.perf_counter() - begun)
        result.first_s.append(first - begun)
        result.note(head[9:12].decode())
        found = TOKENS.findall(body)
        result.tokens += int(found[-1]) if found else 0
        if b"onnection: close" in head:
            self._drop()

    async def _head(self, request: bytes) -> bytes:
        """Send the request; the head of the answer."""
        if self.writer is None or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection(*self.address, limit=2**22)
        assert self.reader is not None
        self.writer.write(request)
        return await self.reader.readuntil(b"\r\n\r\n")

    def _drop(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer = None

    async def _body(self, head: bytes, reader: asyncio.StreamReader) -> tuple[float, bytes]:
        """When the first byte of the body came, and the whole body."""
        lower = head.lower()
        if b"transfer-encoding: chunked" not in lower:
            length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            return time.perf_counter(), body
        parts, first = [], 0.0
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            data = await reader.readexactly(size + 2)
            first = first or time.perf_counter()
            if not size:
                return first, b"".join(parts)
            parts.append(data[:-2])


async def closed_loop(work: dict[str, Any], requests: list[bytes], result: Result) -> None:
    left = iter(range(work["requests"]))

    async def one() -> None:
        connection = Connection(*work["address"])
        for number in left:
            await connection.ask(requests[number % len(requests)], time.perf_counter(), result)

    await asyncio.gather(*(one() for _ in range(work["concurrency"])))


async def open_loop(work: dict[str, Any], requests: list[bytes], result: Result) -> None:
    idle: list[Connection] = []
    start = time.perf_counter()
    tasks = set()

    async def one(number: int, due: float) -> None:
        connection = idle.pop() if idle else Connection(*work["address"])
        await connection.ask(requests[number % len(requests)], due, result)
        idle.append(connection)

    for number in range(work["requests"]):
        due = start + number / work["rate"]
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(one(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


def main() -> None:
    work = json.load(sys.stdin)
    parts = urlsplit(work["url"])
    work["address"] = (parts.hostname, parts.port)
    extra = "".join(f"{name}: {value}\r\n" for name, value in work.get("headers", {}).items())
    requests = []
    for each in work["bodies"]:
        body = json.dumps(each).encode()
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n{extra}"
        requests.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    result = Result()
    start = time.perf_counter()
    run = closed_loop if "concurrency" in work else open_loop
    try:
        import uvloop

        runner = uvloop.run
    except ImportError:
        runner = asyncio.run
    runner(run(work, requests, result))
    json.dump({"seconds": time.perf_counter() - start, **result.__dict__}, sys.stdout)


if __name__ == "__main__":
    main()
