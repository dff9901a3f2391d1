"""One request on its way through the gateway: who asked what, what happened to it, and the traces that are made of that."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from luthier.core.engine import Generation
from luthier.core.errors import LuthierError
from luthier.core.message import ToolCall
from luthier.core.trace import Trace
from luthier.gateway.access.caller import Caller
from luthier.gateway.calls import Piece
from luthier.gateway.databases import answers as databases
from luthier.gateway.knowledge.citations import is_from_documents, traced
from luthier.gateway.targets.gate import ONLINE
from luthier.store.home import new_id, now

if TYPE_CHECKING:
    from luthier.gateway.service import Served

GONE = "the client closed its connection"
TRACEPARENT: ContextVar[str] = ContextVar("traceparent", default="")
"""The header of that name (W3C Trace Context) of the request that is being handled; the Door sets it."""

CACHE_CONTROL: ContextVar[str] = ContextVar("cache-control", default="")
"""The header ``Cache-Control`` (RFC 9111) of the request that is being handled; the Door sets it."""

_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

logger = logging.getLogger("luthier.gateway")


@dataclass
class Kept:
    """What traces keep of a choice."""

    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)


@dataclass
class Exchange:
    """A request, from its arrival to its last trace. Belongs to the event loop.

    ``messages``: what the trace keeps, one entry a prompt. ``served`` is what answers (the last target that was tried). ``details`` is
    where the layers write what they decided, each under its own name: lists of plain mappings, kept in the trace. ``finishers`` are called
    once, when the request is over, before its traces are made. ``status`` is the HTTP status that the client sees (of a stream, would have
    seen), ``fault`` the kind of error behind it: a short name of a closed set. ``priority`` says who goes first at the gate.
    ``headers`` go out with the answer. ``expected_tokens``: about how many the prompt has besides ``messages``, before anything counted them.
    ``kept`` holds the texts and calls of choices that must be kept in another form than the caller got them; ``veiled``: ``messages`` are so, too.
    """

    operation: str
    model: str
    caller: Caller
    messages: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    session: str = ""
    priority: int = ONLINE
    served: Served | None = None
    route: str = ""
    cache: str = ""
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    finishers: list[Callable[[Exchange], object]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    expected_tokens: int = 0
    id: str = field(default_factory=lambda: new_id("trace"))
    created_at: str = field(default_factory=now)
    created: int = field(default_factory=lambda: int(time.time()))
    start: float = field(default_factory=time.perf_counter)
    texts: dict[int, list[str]] = field(default_factory=dict)
    first_s: dict[int, float] = field(default_factory=dict)
    end_s: dict[int, float] = field(default_factory=dict)
    made: dict[int, Generation] = field(default_factory=dict)
    kept: dict[int, Kept] = field(default_factory=dict)
    veiled: bool = False
    error: str = ""
    fault: str = ""
    status: int = 200
    traceparent: str = field(default_factory=TRACEPARENT.get)
    cache_control: str = field(default_factory=CACHE_CONTROL.get)
    prompt_tokens: int = 0
    finished: bool = False
    ended_s: float = 0.0

    def say(self, layer: str, **what: Any) -> None:
        """Keep a decision for the trace, with the seconds since the request came as ``at_s``.

        What took time says so in ``took_s`` and ends at ``at_s``.
        """
        what.setdefault("at_s", round(time.perf_counter() - self.start, 6))
        self.details.setdefault(layer, []).append(what)

    def note(self, piece: Piece) -> None:
        """Remember a piece of an answer."""
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

    def text(self, index: int) -> str:
        """What traces and spans say of a choice."""
        return "".join(self.kept[index].texts if index in self.kept else self.texts.get(index, ()))

    @property
    def usage(self) -> tuple[int, int, int]:
        """Tokens so far: of prompts (one that has several choices counts once), of answers, and of prompts that were cached."""
        prompt = sum(g.prompt_tokens for index, g in self.made.items() if index % self.n == 0)
        cached = sum(g.cached_tokens for index, g in self.made.items() if index % self.n == 0)
        return prompt or self.prompt_tokens, sum(g.completion_tokens for g in self.made.values()), cached

    @property
    def cost(self) -> float:
        """What the answers so far cost; an answer out of a cache costs nothing."""
        if self.served is None or self.cache:
            return 0.0
        prompt, completion, _ = self.usage
        return self.served.price.of_tokens(prompt, completion)

    def trace_id(self, index: int) -> str:
        """The trace of a choice: the response's id, for later choices with their number."""
        return self.id if index == 0 else f"{self.id}.{index}"

    def finish(self, error: str | LuthierError = "") -> None:
        """The request is over. The second call does nothing."""
        if self.finished:
            return
        self.finished, self.ended_s = True, time.perf_counter() - self.start
        if error:
            self.error = error.message if isinstance(error, LuthierError) else error
            self.fault, self.status = _kind(error)
            self.say("error", kind=self.fault, status=self.status)
        for finisher in self.finishers:
            try:
                finisher(self)
            except Exception:  # what one of them gets wrong must not cost the others their end
                logger.exception("request %s could not be finished as it should", self.id)

    def traces(self) -> Iterator[Trace]:
        """A trace for each choice that was begun; for a request that failed before, one with the error."""
        for index in sorted(self.texts) or [0]:
            yield self._trace(index)

    def _trace(self, index: int) -> Trace:
        served, answer = self.served, self.made.get(index)
        info = served.engine.info if served is not None else None
        price = (
            served.price.of(answer, with_prompt=index % self.n == 0) if served and answer and not self.cache else 0.0
        )
        if self.operation in ("embedding", "rerank"):
            price = self.cost
        details = {name: list(said) for name, said in self.details.items()}
        made_calls: Sequence[ToolCall] = answer.tool_calls if answer is not None else ()
        if index in self.kept:
            made_calls = self.kept[index].calls
        if made_calls:
            calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in made_calls]
            details["tool_calls"] = calls
        open_ = not self.veiled and index not in self.kept
        if answer is not None and databases.is_from_database(answer):
            details["database"] = [databases.traced(answer, info, with_texts=open_)]
        elif answer is not None and is_from_documents(answer):
            details["knowledge"] = [traced(answer, info, with_texts=open_)]
        if answer is not None and answer.logprob is not None:
            details["answer"] = [{"logprob": answer.logprob}]
        return Trace(
            id=self.trace_id(index),
            created_at=self.created_at,
            model=served.name if served is not None else self.model,
            operation=self.operation,
            messages=self.messages[index // self.n] if self.messages else (),
            answer=self.text(index),
            parameters=self.parameters,
            model_digest=info.model_digest if info else "",
            base_digest=info.base_digest if info else "",
            template_digest=info.template_digest if info else "",
            prompt_digest=info.prompt_digest if info else "",
            prompt_tokens=answer.prompt_tokens if answer else self.prompt_tokens,
            completion_tokens=answer.completion_tokens if answer else 0,
            first_token_s=self.first_s.get(index),
            latency_s=self.end_s.get(index, time.perf_counter() - self.start),
            cost=price,
            finish_reason=answer.finish_reason if answer else "" if self.error or self.texts else "stop",
            error="" if answer else self.error,
            tenant=self.caller.tenant,
            key_id=self.caller.key_id,
            session=self.session,
            route=self.route,
            cache=self.cache,
            details=details,
        )


def _kind(error: str | LuthierError) -> tuple[str, int]:
    """(the kind of an error: its code or what its class is called, the HTTP status)."""
    if isinstance(error, LuthierError):
        return getattr(error, "code", None) or _called(type(error).__name__), error.http_status
    return ("client_gone", 499) if error == GONE else ("internal_error", 500)


@cache
def _called(kind: str) -> str:
    """``engine_error`` of EngineError."""
    return _CAPITAL.sub("_", kind).lower()
