"""Guardrails on the way out: an answer passes a stage for each guardrail while it is written, and what is hidden from the model is put back.

A stage lets out what it is sure of and holds back the rest: what may be the beginning of something to mask or to block. What comes out is
the same however the answer is cut into pieces. A guardrail that must see the whole answer, or that asks again, holds all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.core.document import Citation
from luthier.core.engine import Generation
from luthier.core.message import ToolCall
from luthier.gateway.databases.answers import without_rows
from luthier.gateway.exchange import Exchange, Kept
from luthier.gateway.guard.placeholders import Placeholders, mask_arguments
from luthier.gateway.guard.rules import Guardrail
from luthier.gateway.guard.run import Guard, Verdict, failed, report, verdict_on
from luthier.gateway.guardrails._contract import OUTPUT, Context, Finding
from luthier.knowledge.cite import clean

MASK, CUT, FLAG, RETRY = "mask", "cut", "flag", "retry"


@dataclass
class Stage:
    """One guardrail's look at one answer."""

    guard: Guard
    rail: Guardrail
    exchange: Exchange
    context: Context
    placeholders: Placeholders
    _window: str = ""
    _start: int = 0
    _all: list[str] = field(default_factory=list)
    _found: list[Finding] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing comes out before the end."""
        return self.rail.action == RETRY or (self.rail.action != FLAG and not self.rail.streams)

    def all(self) -> str:
        """All that a stage was fed that holds an answer to its end."""
        return "".join(self._all)

    async def feed(self, text: str, *, final: bool = False) -> tuple[str, Verdict | None]:
        """The text that is sure now, and what ends the answer, if anything does. Raises RequestError when the guardrail fails and must not."""
        try:
            if self.rail.action == FLAG:
                return await self._flag(text, final=final), None
            if self.holds:
                return await self._whole(text, final=final)
            return await self._growing(text, final=final)
        except Exception as error:  # noqa: BLE001  whatever fails in a guardrail, its rule says what that means
            failed(self.exchange, self.rail, OUTPUT, error)
            if self.rail.action == FLAG:
                return text, None
            out = "".join(self._all) if self.holds else self._window[self._start :]
            self._all, self._window, self._start = [], "", 0
            return out, None

    async def _flag(self, text: str, *, final: bool) -> str:
        self._all.append(text)
        if final:
            self._found = await self._check("".join(self._all))
            self._report()
        return text

    async def _whole(self, text: str, *, final: bool) -> tuple[str, Verdict | None]:
        self._all.append(text)
        if not final:
            return "", None
        answer = "".join(self._all)
        self._found = await self._check(answer)
        return self._done(answer, 0, len(answer), self._found, final=True)

    async def _growing(self, text: str, *, final: bool) -> tuple[str, Verdict | None]:
        self._window += text
        window, start = self._window, self._start
        findings, cut = await self.guard.run(
            self.rail, len(window), lambda: self.rail.scan(window, start, final, self.context)
        )
        if findings and self.rail.action != MASK:  # the answer ends with the first one, so nobody sees the others
            findings = [min(findings, key=lambda each: each.start)]
        self._found += findings
        out = self._done(window, start, cut, findings, final=final)
        drop = max(0, cut - self.rail.kept)
        self._window, self._start = window[drop:], cut - drop
        self.context.offset += drop
        return out

    def _done(
        self, text: str, start: int, cut: int, findings: Sequence[Finding], *, final: bool
    ) -> tuple[str, Verdict | None]:
        """``text[start:cut]`` after what the rule says is done about the findings in it."""
        if self.rail.action == MASK:
            if final:
                self._report()
            moved = [replace(each, start=each.start - start, end=each.end - start) for each in findings]
            return self.placeholders.mask_known(text[start:cut], moved), None
        if not findings:
            return text[start:cut], None
        self._report()
        sure = "" if self.rail.action == RETRY else text[start : min(each.start for each in findings)]
        return sure, verdict_on(self.rail, findings)

    async def _check(self, text: str) -> list[Finding]:
        return await self.guard.run(self.rail, len(text), lambda: self.rail.check(text, self.context))

    def _report(self) -> None:
        report(self.exchange, self.rail, OUTPUT, self._found, role="assistant")
        self._found = []


class Answer:
    """One choice on its way to the caller. ``sent`` is what the caller has of it, ``kept`` the same as traces keep it."""

    def __init__(
        self,
        guard: Guard,
        rails: Sequence[Guardrail],
        exchange: Exchange,
        context: Context,
        placeholders: Placeholders,
        *,
        as_json: bool,
    ) -> None:
        self._guard = guard
        self._rails = rails
        self._exchange = exchange
        self._context = context
        self._placeholders = placeholders
        self._stages = [Stage(guard, rail, exchange, replace(context), placeholders) for rail in rails]
        self._restorer = placeholders.restorer(as_json=as_json)
        self.pieces = 0
        self.sent: list[str] = []
        self.calls: list[ToolCall] = []
        self.kept = Kept()
        self.verdict: Verdict | None = None
        self.earlier: Generation | None = None  # what earlier tries of this answer took
        self._ended_at = 0

    @property
    def holds(self) -> bool:
        """Whether nothing is let out before the end."""
        return any(stage.holds for stage in self._stages)

    async def feed(self, text: str, *, final: bool = False) -> str:
        """The text that the caller gets now. After a verdict there is none any more."""
        self.pieces += 1
        for number, stage in enumerate(self._stages):
            if not (text or final):
                break
            text, verdict = await stage.feed(text, final=final)
            if verdict is not None:
                self.verdict, self._ended_at, final = verdict, number, True
                if verdict.action == RETRY:
                    return ""
                text = await self._last(text, self._stages[number + 1 :])
                break
        return self._out(text, final=final)

    async def release(self) -> str:
        """All of an answer that a guardrail wanted another one for, after it gave up; the stages behind it see it first."""
        text, self.verdict = self._stages[self._ended_at].all(), None
        for stage in self._stages[self._ended_at + 1 :]:
            text, verdict = await stage.feed(text, final=True)
            self.verdict = self.verdict or verdict
        return self._out(text, final=True)

    def rejected(self) -> str:
        """The answer that another one is wanted for, as the model gave it."""
        return self._stages[self._ended_at].all()

    def instead(self, message: str) -> str:
        """The caller gets this and nothing else."""
        self.sent[:], self.kept.texts[:] = [message], [message]
        self.calls.clear()
        self.kept.calls.clear()
        return message

    def _out(self, text: str, *, final: bool) -> str:
        self.kept.texts.append(text)
        out = self._restorer.feed(text, final=final)
        self.sent.append(out)
        return out

    async def _last(self, text: str, stages: Sequence[Stage]) -> str:
        """What comes out at the end when an earlier stage ended the answer behind ``text``: nothing, where a stage must see all of an answer."""
        if any(stage.holds for stage in stages):
            return ""
        for stage in stages:
            text, verdict = await stage.feed(text, final=True)
            self.verdict = verdict or self.verdict
        return text

    async def call(self, call: ToolCall) -> ToolCall:
        """A tool call as the caller gets it: its arguments are looked at by the guardrails that read calls."""
        arguments = call.arguments
        for rail in self._rails:
            if rail.entry.optional("CALLS") and self.verdict is None:
                arguments = await self._arguments(rail, arguments)
        made = ToolCall(call.name, self._placeholders.restore_arguments(arguments), call.id)
        self.calls.append(made)
        self.kept.calls.append(ToolCall(call.name, arguments, call.id))
        return made

    async def _arguments(self, rail: Guardrail, arguments: str) -> str:
        context, found = replace(self._context), []

        def look(text: str) -> str:
            findings = rail.check(text, context)
            found.extend(findings)
            return self._placeholders.mask_known(text, findings) if rail.action == MASK else text

        try:
            out = await self._guard.run(rail, len(arguments), lambda: mask_arguments(arguments, look))
        except Exception as error:  # noqa: BLE001  whatever fails in a guardrail, its rule says what that means
            failed(self._exchange, rail, OUTPUT, error)
            return arguments
        report(self._exchange, rail, OUTPUT, found, role="assistant")
        if found and rail.action not in (MASK, FLAG):
            self.verdict = verdict_on(rail, found)
        return out

    def text(self) -> str:
        """All that the caller has."""
        return "".join(self.sent)

    def generation(self, made: Generation | None, prompt_tokens: int, text: str, reason: str) -> Generation:
        """The answer as the caller gets it: this text, and no tokens, which would give away what is hidden.

        ``made`` is the engine's; without one (it was stopped) the tokens of the prompt are as given, and those of the answer at least the pieces
        that came. Earlier tries count.
        """
        if made is None:
            made = Generation("", (), (), reason, prompt_tokens=prompt_tokens, completion_tokens=self.pieces)
        before = self.earlier
        return replace(
            made,
            text=text,
            finish_reason=reason,
            tool_calls=tuple(self.calls) if reason == "tool_calls" else (),
            token_ids=(),
            tokens=(),
            samples=(),
            reasoning="",
            logprob=None,
            citations=self._cited(made, text),
            steps=self._steps(made),
            prompt_tokens=made.prompt_tokens + (before.prompt_tokens if before else 0),
            completion_tokens=made.completion_tokens + (before.completion_tokens if before else 0),
            latency_s=made.latency_s + (before.latency_s if before else 0.0),
            calls=made.calls + (before.calls if before else 0),
        )

    def _steps(self, made: Generation) -> tuple[Mapping[str, Any], ...]:
        """What was done for the answer. The rows of a database are no part of the text that the guardrails saw, as quotes are not."""
        return made.steps if all(rail.action == FLAG for rail in self._rails) else without_rows(made)

    def _cited(self, made: Generation, text: str) -> tuple[Citation, ...]:
        """What the caller's text still cites. Quotes are no part of the text that the guardrails saw, so those that hide or stop something hide quotes."""
        if text != made.text:
            there = clean(text, len(made.hits))[1]
            found = tuple(each for each in made.citations if each.number in there)
        else:
            found = made.citations
        return (
            found
            if all(rail.action == FLAG for rail in self._rails)
            else tuple(replace(each, quote="") for each in found)
        )
