"""Running guardrails: off the event loop where they take long, and what a failure of one means."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from luthier.data.pii import redact
from luthier.gateway.api.wire import RequestError
from luthier.gateway.exchange import Exchange
from luthier.gateway.guard.placeholders import each_text
from luthier.gateway.guard.rules import HANDED_OVER, REFUSAL, Guardrail, OpenModels
from luthier.gateway.guardrails._contract import INPUT, Direction, Finding

LONG_CHARACTERS = 8_192  # a text of more is checked in a thread, whoever checks it
THREADS = 2

Made = TypeVar("Made")

logger = logging.getLogger("luthier.gateway")


@dataclass
class Guard:
    """The guardrails of a server, and the threads in which they ask models. Safe to use from an event loop; close it when the server ends."""

    rails: tuple[Guardrail, ...]
    models: OpenModels
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(THREADS, thread_name_prefix="luthier-guard"), repr=False
    )

    _using: int = 0
    _retired: bool = False

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep it open for a request, even when it is retired meanwhile."""
        self._using += 1
        try:
            yield
        finally:
            self._using -= 1
            if self._retired and not self._using:
                self.close()

    def retire(self) -> None:
        """Another one has taken its place: close it when the last request that uses it is over. Belongs to the event loop."""
        self._retired = True
        if not self._using:
            self.close()

    def of(self, exchange: Exchange) -> tuple[Guardrail, ...]:
        """The guardrails that hold for a request."""
        return tuple(rail for rail in self.rails if rail.rule.holds(exchange.model, exchange.caller.tenant))

    def veil(self, exchange: Exchange) -> None:
        """Hide in what traces keep of a request that no layer has seen (refused before, or not a conversation) what its masks would hide."""
        if exchange.veiled:
            return
        exchange.veiled = True
        for rail in self.of(exchange):
            if rail.action == "mask" and INPUT in rail.on and rail.rule.name == "pii":
                hide = partial(redact, kinds=rail.config.kinds, regions=rail.config.regions)
                exchange.messages = tuple(
                    tuple(each_text(message, hide) for message in prompt) for prompt in exchange.messages
                )

    async def run(self, rail: Guardrail, length: int, work: Callable[[], Made]) -> Made:
        """What ``work`` returns; in a thread when the guardrail is slow or the text long."""
        if not rail.slow and length <= LONG_CHARACTERS:
            return work()
        return await self.in_thread(work)

    async def in_thread(self, work: Callable[[], Made]) -> Made:
        """What ``work`` returns, from a thread of the guardrails' own."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End the threads and close the models that were opened for guardrails. Safe to call twice."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.models.close()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a guardrail decided about a whole request or answer: ``block``, ``cut``, ``retry`` or ``hand_over``, for these reasons."""

    rail: Guardrail
    action: str
    reasons: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """What the caller reads instead."""
        default = HANDED_OVER if self.action == "hand_over" else REFUSAL
        return default if self.rail.action == "retry" else self.rail.rule.message or default

    def error(self, direction: Direction) -> RequestError:
        """A block as an error."""
        what = "the request" if direction == "input" else "the answer"
        reasons = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return RequestError(f"{what} was stopped by the guardrail {self.rail.name}{reasons}", code="guardrail_blocked")


def verdict_on(rail: Guardrail, findings: Sequence[Finding]) -> Verdict:
    """The verdict that a guardrail's action means."""
    return Verdict(rail, rail.action, reasons_of(findings))


def reasons_of(findings: Iterable[Finding]) -> tuple[str, ...]:
    """The reasons, each once."""
    return tuple(dict.fromkeys(finding.reason or finding.kind for finding in findings))


def report(
    exchange: Exchange,
    rail: Guardrail,
    direction: Direction,
    findings: Sequence[Finding],
    *,
    role: str,
    action: str = "",
) -> None:
    """Say in the trace what was found and what is done about it: kinds and numbers, never the text itself."""
    by_kind: dict[str, list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    for kind, found in by_kind.items():
        exchange.say(
            "guardrails",
            name=rail.name,
            on=direction,
            action=action or rail.action,
            kind=kind,
            count=len(found),
            score=round(max(each.score for each in found), 4),
            reason="; ".join(reasons_of(found)),
            role=role,
        )


def failed(exchange: Exchange, rail: Guardrail, direction: Direction, error: Exception) -> None:
    """A guardrail could not do its work. Raises RequestError (503) when its rule says that the request ends then."""
    logger.error("guardrail %s failed on %s of %s", rail.name, direction, exchange.id, exc_info=error)
    exchange.say(
        "guardrails",
        name=rail.name,
        on=direction,
        action="refused" if rail.closed else "let_through",
        kind="error",
        count=1,
        score=0.0,
        reason=f"the guardrail failed: {type(error).__name__}",
        role="",
    )
    if rail.closed:
        raise RequestError(
            f"the guardrail {rail.name} could not check this {'request' if direction == 'input' else 'answer'}, "
            "so it was refused; the server's log says why",
            status=503,
            code="guardrail_failed",
        ) from error
