"""The way of a chat or completion request: admitted, answered in a thread, formatted, traced."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from luthier.core.engine import GENERATE, Generation, Sampling, require
from luthier.core.errors import LuthierError
from luthier.core.message import Prompt
from luthier.core.trace import Trace
from luthier.gateway.calls import Call, ClientGoneError, Piece, generate, merge_pieces, unless_gone
from luthier.gateway.service import Served, Service
from luthier.gateway.wire import Asking, error_body
from luthier.store.home import new_id, now

SEND_TIMEOUT_S = 60.0
GONE = "the client closed its connection"

logger = logging.getLogger("luthier.gateway")


class Format(Protocol):
    """How one endpoint writes answers."""

    def whole(self, head: Mapping[str, Any], choices: list[Generation], usage: dict[str, int]) -> dict[str, Any]:
        """The body of a response that is not streamed."""

    def opening(self, head: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
        """The chunks before a choice's first text."""

    def piece(self, head: Mapping[str, Any], index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """The chunk of a piece of text, or (with a finish reason) of a choice's end."""


@dataclass(frozen=True)
class Asked:
    """A request as the engine sees it. ``messages`` are what the trace keeps, one entry a prompt."""

    operation: str
    body: Asking
    served: Served
    prompts: tuple[Prompt, ...]
    messages: tuple[tuple[Mapping[str, Any], ...], ...]
    default_tokens: int
    format: Format

    @property
    def choices(self) -> int:
        """How many answers."""
        return len(self.prompts) * self.body.n

    def sampling(self) -> Sampling:
        """The request's parameters, with the model's defaults where it does not say."""
        body, off = self.body, Sampling()
        return Sampling(
            max_new_tokens=body.limit() or self.default_tokens,
            temperature=self.served.temperature if body.temperature is None else body.temperature,
            top_p=off.top_p if body.top_p is None else body.top_p,
            top_k=off.top_k if body.top_k is None else body.top_k,
            repetition_penalty=off.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty,
            seed=body.seed,
            stop=tuple(body.stop),
        )

    def parameters(self) -> dict[str, Any]:
        """What the trace says of how the answer was drawn."""
        extra = {"n": self.body.n, "stream": self.body.stream, "user": self.body.user}
        return {**asdict(self.sampling()), **{key: value for key, value in extra.items() if value is not None}}


@dataclass
class Record:
    """What one request did so far; makes its traces, one a choice. Filled by the call's thread only."""

    asked: Asked
    id: str = field(default_factory=lambda: new_id("trace"))
    created_at: str = field(default_factory=now)
    start: float = field(default_factory=time.perf_counter)
    texts: dict[int, list[str]] = field(default_factory=dict)
    first_s: dict[int, float] = field(default_factory=dict)
    end_s: dict[int, float] = field(default_factory=dict)
    made: dict[int, Generation] = field(default_factory=dict)

    @property
    def head(self) -> dict[str, Any]:
        """The fields that every chunk and response begins with."""
        return {"id": self.id, "created": int(time.time()), "model": self.asked.served.name}

    def note(self, piece: Piece) -> None:
        """Remember a piece."""
        at = time.perf_counter() - self.start
        self.texts.setdefault(piece.index, []).append(piece.text)
        if piece.generation is None:
            self.first_s.setdefault(piece.index, at)
        else:
            self.made[piece.index] = piece.generation
            self.end_s[piece.index] = at
            whole = len(self.texts[piece.index]) == 1  # not streamed: the engine knows when its first token came
            early = piece.generation.latency_s - piece.generation.first_token_s if whole else 0.0
            self.first_s.setdefault(piece.index, max(0.0, at - max(0.0, early)))

    def usage(self) -> dict[str, int]:
        """Token counts; the prompt of several choices counts once."""
        prompt = sum(g.prompt_tokens for index, g in self.made.items() if index % self.asked.body.n == 0)
        completion = sum(g.completion_tokens for g in self.made.values())
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def trace_id(self, index: int) -> str:
        """The trace of a choice: the response's id, for later choices with their number."""
        return self.id if index == 0 else f"{self.id}.{index}"

    def traces(self, error: str) -> Iterator[Trace]:
        """A trace for each choice that was begun; for a request that failed before, one with the error."""
        info, body = self.asked.served.engine.info, self.asked.body
        for index in sorted(self.texts) or [0]:
            answer = self.made.get(index)
            yield Trace(
                id=self.trace_id(index),
                created_at=self.created_at,
                model=self.asked.served.name,
                operation=self.asked.operation,
                messages=self.asked.messages[index // body.n],
                answer="".join(self.texts.get(index, ())),
                parameters=self.asked.parameters(),
                model_digest=info.model_digest,
                base_digest=info.base_digest,
                template_digest=info.template_digest,
                prompt_digest=info.prompt_digest,
                prompt_tokens=answer.prompt_tokens if answer else 0,
                completion_tokens=answer.completion_tokens if answer else 0,
                first_token_s=self.first_s.get(index),
                latency_s=self.end_s.get(index, time.perf_counter() - self.start),
                cost=self.asked.served.price.of(answer, with_prompt=index % body.n == 0) if answer else 0.0,
                finish_reason=answer.finish_reason if answer else "",
                error="" if answer else error,
            )


async def answer(service: Service, request: Request, asked: Asked) -> Response:
    """Answer a request. Raises LuthierError for what the engine refuses, RequestError when the server is full."""
    require(asked.served.engine, GENERATE)
    record = Record(asked)
    try:
        await unless_gone(request.receive, service.gate.enter())
    except ClientGoneError:
        _finish(service, record, GONE)
        return Response(status_code=499)
    request.state.trace_id = record.id
    call = _call(service, record)
    call.start()
    results = call.results()
    try:
        if asked.body.stream:
            first = await unless_gone(request.receive, anext(results))
            return EventStream(_chunks(record, first, results), call, record.id)
        await unless_gone(request.receive, _exhaust(results))
    except ClientGoneError:
        return Response(status_code=499)
    finally:
        if not asked.body.stream:
            call.stop()
    choices = [record.made[index] for index in range(asked.choices)]
    body = asked.format.whole(record.head, choices, record.usage())
    if len(choices) > 1:
        for index, choice in enumerate(body["choices"]):
            choice["trace_id"] = record.trace_id(index)
    return JSONResponse(body, headers=trace_headers(record.id))


def trace_headers(trace_id: str) -> dict[str, str]:
    """The headers that name a request's trace (``x-request-id`` is where the openai client looks)."""
    return {"X-Luthier-Trace-Id": trace_id, "X-Request-Id": trace_id}


def _call(service: Service, record: Record) -> Call[Piece]:
    asked, loop = record.asked, asyncio.get_running_loop()
    sampling = asked.sampling()

    def work(stopped: threading.Event) -> Iterator[Piece]:
        made = generate(
            asked.served.engine, asked.prompts, sampling, asked.body.n, pieces=asked.body.stream, stopped=stopped
        )
        for piece in made:
            record.note(piece)
            if asked.body.stream:
                yield piece

    def finished(error: Exception | None, took_s: float) -> None:
        stopped = GONE if call.stopped.is_set() else ""
        try:
            _finish(service, record, str(error) if error else stopped)
        finally:
            give_back(service, loop, took_s)

    call: Call[Piece] = Call(work, finished=finished, merge=merge_pieces)
    service.track(call.thread)
    return call


def give_back(service: Service, loop: asyncio.AbstractEventLoop, took_s: float) -> None:
    """Give a call's turn back, from its thread."""
    try:
        loop.call_soon_threadsafe(service.gate.leave, took_s)
    except RuntimeError:
        logger.debug("a call ended after the server; nobody waits for its turn")


def keep_trace(service: Service, trace: Trace) -> None:
    """Hand a trace to the writer, and log one line; nothing that anybody wrote is in it."""
    service.traces.put(trace)
    logger.info(
        "%s %s %s %d+%d tokens %.3f s %s",
        trace.operation, trace.model, trace.finish_reason or "failed", trace.prompt_tokens, trace.completion_tokens,
        trace.latency_s, trace.id,
    )  # fmt: skip


def _finish(service: Service, record: Record, error: str) -> None:
    for trace in record.traces(error):
        keep_trace(service, trace)


async def _exhaust(results: AsyncIterator[Piece]) -> None:
    async for _ in results:
        pass


async def _chunks(record: Record, first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[str]:
    """The events of a streamed answer. An error after the first piece is an event of its own, and then nothing follows."""
    asked, head = record.asked, record.head
    options = asked.body.stream_options
    nothing: dict[str, Any] = {"usage": None} if options is not None and options.include_usage else {}
    opened: set[int] = set()

    def events(piece: Piece) -> Iterator[str]:
        if piece.index not in opened:
            opened.add(piece.index)
            for chunk in asked.format.opening(head, piece.index):
                yield _event(chunk | nothing)
        if piece.text:
            yield _event(asked.format.piece(head, piece.index, piece.text, None) | nothing)
        if piece.generation is not None:
            yield _event(asked.format.piece(head, piece.index, "", piece.generation.finish_reason) | nothing)

    for event in events(first):
        yield event
    try:
        async for piece in rest:
            for event in events(piece):
                yield event
    except LuthierError as error:
        yield _event(error_body(error.message, error.http_status))
        return
    if nothing:
        yield _event(asked.format.piece(head, 0, "", None) | {"choices": [], "usage": record.usage()})
    yield "data: [DONE]\n\n"


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


class EventStream(Response):
    """Server-sent events. A client that leaves, or does not read for a minute, ends the call behind them."""

    def __init__(self, events: AsyncIterator[str], call: Call[Piece], trace_id: str) -> None:
        self.events = events
        self.call = call
        self._id = trace_id
        self.status_code = 200
        self.background = None
        self.init_headers({
            "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no",
            **trace_headers(trace_id),
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
            self.call.stop()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self.events:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send({"type": "http.response.body", "body": event.encode("utf-8", "replace"), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
