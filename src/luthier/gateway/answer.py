"""The way of a chat or completion request: admitted, sent through the layers, formatted, traced."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from luthier.core.digest import digest_json
from luthier.core.engine import Generation, Sampling
from luthier.core.errors import LuthierError, UnsupportedError
from luthier.core.message import Prompt, Tool
from luthier.gateway.access.caller import Caller
from luthier.gateway.api.asking import Asking
from luthier.gateway.api.wire import RequestError, error_body
from luthier.gateway.calls import ClientGoneError, Piece, merge_pieces, unless_gone
from luthier.gateway.exchange import GONE, Exchange
from luthier.gateway.layers import Question
from luthier.gateway.service import Service

SEND_TIMEOUT_S = 60.0

Made = TypeVar("Made")

logger = logging.getLogger("luthier.gateway")


class Format(Protocol):
    """How one endpoint writes the answers to one request. The events of a stream are bytes, ready to be sent."""

    def whole(self, exchange: Exchange, choices: list[Generation]) -> dict[str, Any]:
        """The body of a response that is not streamed."""

    def opening(self, exchange: Exchange, index: int) -> list[bytes]:
        """The events before the first piece of choice ``index``."""

    def piece(self, exchange: Exchange, piece: Piece) -> list[bytes]:
        """The events of a piece of an answer; the last piece of a choice carries its generation."""

    def ending(self, exchange: Exchange) -> list[bytes]:
        """The events after the last piece of all."""

    def failure(self, exchange: Exchange, error: LuthierError) -> list[bytes]:
        """The events of an answer that fails after its first piece; nothing follows."""


@dataclass(frozen=True)
class Asked:
    """A request as read from the wire. ``messages`` are what the trace keeps, one entry a prompt; ``session`` when the body does not say it."""

    operation: str
    body: Asking
    prompts: tuple[Prompt, ...]
    messages: tuple[tuple[Mapping[str, Any], ...], ...]
    format: Format
    session: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def begin(asked: Asked, caller: Caller) -> Question:
    """The request as an exchange, and the question that goes to the outermost layer."""
    body = asked.body
    sampling, unset = body.sampling()
    n: int = getattr(body, "n", 1)
    exchange = Exchange(
        operation=asked.operation,
        model=body.model,
        caller=caller,
        messages=asked.messages,
        n=n,
        session=body.session or asked.session,
        details=dict(asked.details),
    )
    exchange.parameters = {"n": n, "stream": body.stream, **_plain(sampling)}
    if body.user is not None:
        exchange.parameters["user"] = body.user
    if body.metadata:
        exchange.parameters["metadata"] = body.metadata
    for name in unset:
        del exchange.parameters[name]
    return Question(exchange, asked.prompts, sampling, n=n, stream=body.stream, unset=unset)


_OFF = Sampling()
_ALWAYS = ("max_new_tokens", "temperature", "top_p", "top_k")
_SOMETIMES = tuple(each.name for each in fields(Sampling) if each.name not in _ALWAYS)


def _plain(sampling: Sampling) -> dict[str, Any]:
    """The fields that say something, as JSON can keep them."""
    out: dict[str, Any] = {name: getattr(sampling, name) for name in _ALWAYS}
    for name in _SOMETIMES:
        value = getattr(sampling, name)
        if value != getattr(_OFF, name):
            out[name] = value
    if sampling.constraint is not None:
        out["constraint"] = asdict(sampling.constraint)
    if sampling.tools:
        out["tools"] = [_tool(tool) for tool in sampling.tools]
    return out


def _tool(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters, "strict": tool.strict}


async def answer(service: Service, request: Request, asked: Asked) -> Response:
    """Answer a request. Raises LuthierError for what is refused (by keys and limits, a layer, the engine), ClientGoneError when the client left."""
    question = begin(asked, request.scope["luthier.caller"])
    exchange = question.exchange
    request.state.trace_id = exchange.id
    try:
        await service.admit(exchange)
    except LuthierError as error:
        service.finish(exchange, error)
        raise
    if asked.body.stream:
        return await _streamed(service, request, asked, question)
    try:
        await unless_gone(request.receive, drive(service, question))
    except UnsupportedError as error:
        raise named(error, asked.body) from error
    choices = [exchange.made[index] for index in range(len(asked.prompts) * exchange.n)]
    return json_response(asked.format.whole(exchange, choices), headers=trace_headers(exchange.id) | exchange.headers)


async def _streamed(service: Service, request: Request, asked: Asked, question: Question) -> Response:
    outbox = Outbox()
    task = asyncio.ensure_future(drive(service, question, outbox))
    try:
        first = await unless_gone(request.receive, anext(outbox))
    except UnsupportedError as error:
        task.cancel()
        raise named(error, asked.body) from error
    except BaseException:
        task.cancel()
        raise
    return EventStream(_events(asked.format, question.exchange, first, outbox), task, question.exchange)


async def operate(service: Service, request: Request, exchange: Exchange, work: Callable[[], Awaitable[Made]]) -> Made:
    """What ``work`` makes, for requests that go to a model past the layers: admitted before, settled and traced after.

    Raises LuthierError for what is refused, ClientGoneError when nobody waits for it any more.
    """
    request.state.trace_id = exchange.id
    error: str | LuthierError = GONE
    try:
        await service.admit(exchange)
        made = await unless_gone(request.receive, work())
        error = ""
    except LuthierError as raised:
        error = raised
        raise
    finally:
        service.finish(exchange, error)
    return made


def named(error: UnsupportedError, body: Asking) -> LuthierError:
    """The refusal of what an engine cannot do, with the field of ``body`` that asks for it."""
    asked = [body.field_of(parameter) for parameter in error.parameters]
    if not asked:
        return error
    first = "" if asked[0] in error.parameters else f"{asked[0]}: "
    return RequestError(f"{first}{error.message}", param=asked[0], code="unsupported_value")


async def drive(service: Service, question: Question, outbox: Outbox | None = None) -> None:
    """Send a question through the layers to its end, whatever the reader's pace, and make its traces.

    With an ``outbox`` errors go there, too, and are not raised. Raises LuthierError, or CancelledError when it is cancelled.
    """
    exchange = question.exchange
    error: str | LuthierError = GONE
    try:
        async for piece in service.ask(question):
            exchange.note(piece)
            if outbox is not None:
                outbox.put(piece)
        error = ""
        if outbox is not None:
            outbox.end()
    except LuthierError as raised:
        error = raised
        if outbox is None:
            raise
        outbox.end(raised)
    except Exception:
        error = RequestError("the server failed on this request; its log says how", status=500, code="internal_error")
        if outbox is None:
            raise
        logger.exception("request %s failed in a way that it should not", exchange.id)
        outbox.end(error)
    finally:
        service.finish(exchange, error)


@dataclass
class Outbox:
    """Pieces between the layers, which never wait, and a reader, who may be slow: adjoining pieces then become one.

    What waits is bounded by the answers' token limits.
    """

    _made: list[Piece] = field(default_factory=list)
    _ready: list[Piece] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: bool = False
    _error: LuthierError | None = None

    def put(self, piece: Piece) -> None:
        """One more piece."""
        self._made.append(piece)
        self._wake.set()

    def end(self, error: LuthierError | None = None) -> None:
        """No more pieces come."""
        self._ended, self._error = True, error
        self._wake.set()

    def __aiter__(self) -> Outbox:
        return self

    async def __anext__(self) -> Piece:
        """The next piece. Raises the error that ended the answer."""
        while not self._ready:
            if self._made:
                self._ready, self._made = merge_pieces(self._made)[::-1], []
            elif self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            else:
                self._wake.clear()
                await self._wake.wait()
        return self._ready.pop()


def head_of(exchange: Exchange) -> dict[str, Any]:
    """The fields that every chunk and response begins with."""
    info = exchange.served.engine.info if exchange.served is not None else None
    mark = info and fingerprint(info.model_digest, info.base_digest, info.template_digest, info.prompt_digest)
    return {"id": exchange.id, "created": exchange.created, "model": exchange.model, "system_fingerprint": mark}


@lru_cache(maxsize=1024)
def fingerprint(*digests: str) -> str | None:
    """Equal exactly when the same weights, template and prompt answer; None when nothing is known of them."""
    return f"fp_{digest_json(digests)[:12]}" if any(digests) else None


def usage_of(exchange: Exchange) -> dict[str, Any]:
    """Token counts as the wire format writes them."""
    prompt, completion, cached = exchange.usage
    usage: dict[str, Any] = {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip
    return usage


def trace_headers(trace_id: str) -> dict[str, str]:
    """The headers that name a request's trace (``x-request-id`` is where the openai client looks)."""
    return {"X-Luthier-Trace-Id": trace_id, "X-Request-Id": trace_id}


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON body."""
    return Response(json_bytes(content), status, headers, media_type="application/json")


def json_bytes(content: Any) -> bytes:
    """JSON; text that is not valid Unicode (half of a surrogate pair) is written escaped."""
    try:
        return orjson.dumps(content)
    except TypeError:
        return json.dumps(content).encode("ascii")


async def _events(form: Format, exchange: Exchange, first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    """The events of a streamed answer, those of one piece together."""
    opened: set[int] = set()

    def events(piece: Piece) -> bytes:
        opening = []
        if piece.index not in opened:
            opened.add(piece.index)
            opening = form.opening(exchange, piece.index)
        return b"".join([*opening, *form.piece(exchange, piece)])

    try:
        if sent := events(first):
            yield sent
        async for piece in rest:
            if sent := events(piece):
                yield sent
    except LuthierError as error:
        yield b"".join(form.failure(exchange, error))
        return
    yield b"".join(form.ending(exchange))


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\ndata: ".encode() if name else b"data: "
    return head + json_bytes(data) + b"\n\n"


@dataclass
class Chunks:
    """What chat completions and completions have in common: how a chunk is written, and how a stream ends."""

    object: str
    with_usage: bool = False
    _head: dict[str, Any] | None = None

    def __call__(self, exchange: Exchange, choice: Mapping[str, Any]) -> bytes:
        """The event of a chunk of one choice."""
        if self._head is None:
            self._head = {**head_of(exchange), "object": self.object} | ({"usage": None} if self.with_usage else {})
        return event({**self._head, "choices": [choice]})

    def ending(self, exchange: Exchange) -> list[bytes]:
        """The token counts, where they were asked for, and the mark of the end."""
        done = b"data: [DONE]\n\n"
        if not self.with_usage:
            return [done]
        return [event({**head_of(exchange), "object": self.object, "choices": [], "usage": usage_of(exchange)}), done]


def failed(error: LuthierError) -> list[bytes]:
    """The event of an answer that fails in the middle."""
    return [event(error_body(error.message, error.http_status, code=getattr(error, "code", None)))]


class EventStream(Response):
    """Server-sent events. A client that leaves, or does not read for a minute, ends the work behind them."""

    def __init__(self, events: AsyncIterator[bytes], task: asyncio.Future[None], exchange: Exchange) -> None:
        self.events = events
        self.task = task
        self._id = exchange.id
        self.status_code = 200
        self.background = None
        self.init_headers({
            "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no",
            **trace_headers(exchange.id), **exchange.headers,
        })  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        try:
            await unless_gone(receive, self._send_all(send))
        except TimeoutError:  # before OSError, of which it is one
            logger.warning("stream %s was cut: its client read nothing for %g s", self._id, SEND_TIMEOUT_S)
        except (ClientGoneError, OSError):
            logger.info("the client left stream %s", self._id)
        finally:
            self.task.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self.events:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
