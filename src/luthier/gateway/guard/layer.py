"""The outermost layer: guardrails see every word before a model does, and every word of an answer before the caller does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from luthier.core.engine import Engine, Generation
from luthier.core.message import Message, Prompt, ToolCall
from luthier.gateway.api.wire import RequestError
from luthier.gateway.calls import Piece
from luthier.gateway.exchange import Exchange
from luthier.gateway.guard.answer import Answer
from luthier.gateway.guard.question import Examined, conversation_of, examine
from luthier.gateway.guard.rules import Guardrail, OpenModels, Rule, by_masks, open_rules
from luthier.gateway.guard.run import Guard, Verdict
from luthier.gateway.guardrails._contract import OUTPUT, Context
from luthier.gateway.layers import Ask, Layer, Question
from luthier.gateway.targets.served import count_or_estimate

if TYPE_CHECKING:
    from luthier.store.database import Store

ASK_AGAIN = "That answer cannot be used: {reasons}. Answer again."
JSON = ("json", "json_schema")

Record: TypeAlias = Callable[[Exchange, Verdict], object] | None


def open_guard(rules: Sequence[Rule], served: Mapping[str, Engine] | None = None, store: Store | None = None) -> Guard:
    """The guardrails of a configuration with the models they ask: ``served`` ones, or opened from ``store``.

    Raises InputError that names the rule and the option, NotFoundError for a model that is not there.
    """
    models = OpenModels(served or {}, store)
    try:
        return Guard(open_rules(rules, models), models)
    except BaseException:
        models.close()
        raise


def guard_of(rules: Sequence[Rule], served: Mapping[str, Engine], store: Store) -> Guard | None:
    """The guardrails of these rules; None when there are none."""
    return open_guard(rules, served, store) if rules else None


def guarded(guard: Guard, record: Record = None) -> Layer:
    """The layer. ``record`` is told of each request that is handed over to a person."""

    async def layer(question: Question, ask: Ask) -> AsyncIterator[Piece]:
        rails = guard.of(question.exchange)
        if not rails:
            async for piece in ask(question):
                yield piece
            return
        with guard.using():
            async for piece in _Asking(guard, rails, ask, record).pieces(question):
                yield piece

    return layer


class _Asking:
    """One request with guardrails around it."""

    def __init__(self, guard: Guard, rails: Sequence[Guardrail], ask: Ask, record: Record) -> None:
        self._guard = guard
        self._rails = rails
        self._out = tuple(rail for rail in by_masks(rails) if OUTPUT in rail.on)
        self._ask = ask
        self._record = record

    async def pieces(self, question: Question) -> AsyncIterator[Piece]:
        """The pieces that the caller gets. Raises RequestError for what is refused as an error."""
        examined = await examine(self._guard, self._rails, question)
        count = len(question.prompts) * question.n
        if examined.verdict is not None:
            self._note(question.exchange, examined.verdict)
            for index in range(count):
                text = examined.verdict.message
                reason = "stop" if examined.verdict.action == "hand_over" else "content_filter"
                yield Piece(index, text, Generation(text, (), (), reason))
            return
        self._refuse_logprobs(examined)
        question = examined.question
        if any(rail.entry.optional("EARLY") and rail.streams for rail in self._out):
            question = replace(question, stream=True)  # so that an answer can be ended before it is whole
        answers = {index: self._answer(examined, index) for index in range(count)}
        async with aclosing(cast(Any, self._ask(question))) as pieces:
            async for piece in pieces:
                answer = answers.get(piece.index)
                if answer is None:
                    continue  # a choice that has ended
                async for made in self._through(examined, answer, piece):
                    if made.generation is not None:
                        del answers[piece.index]
                    yield made
                if not answers:
                    return

    def _answer(self, examined: Examined, index: int) -> Answer:
        question = examined.question
        constraint = question.sampling.constraint
        as_json = constraint is not None and constraint.kind in JSON
        context = Context(
            OUTPUT,
            role="assistant",
            messages=conversation_of(question.prompts[index // question.n]),
            constraint=constraint,
            restored=lambda text: examined.placeholders.restore(text, as_json=as_json),
        )
        answer = Answer(self._guard, self._out, question.exchange, context, examined.placeholders, as_json=as_json)
        question.exchange.kept[index] = answer.kept
        return answer

    async def _through(
        self, examined: Examined, answer: Answer, piece: Piece, attempt: int = 0
    ) -> AsyncIterator[Piece]:
        """What the caller gets for a piece of an answer; the last piece has the generation."""
        ends = piece.generation is not None
        text = await answer.feed(piece.text, final=ends)
        calls = [await answer.call(call) for call in piece.tool_calls if answer.verdict is None]
        verdict = answer.verdict
        if verdict is not None and verdict.action == "retry":
            if attempt < verdict.rail.rule.retries:
                async for made in self._again(examined, answer, piece, attempt + 1):
                    yield made
                return
            text = await self._exhausted(examined.question, answer, verdict, attempt + 1)
        if ends or answer.verdict is not None:
            yield self._last(examined.question, answer, piece, text, calls)
        elif examined.question.stream and not answer.holds and (text or calls):
            yield Piece(piece.index, text, None, piece.tokens, tuple(calls))

    async def _again(self, examined: Examined, answer: Answer, piece: Piece, attempt: int) -> AsyncIterator[Piece]:
        """The same question once more, with what was wrong."""
        question, verdict = examined.question, cast(Verdict, answer.verdict)
        seed = question.sampling.seed
        again = replace(
            question,
            prompts=(_with_fault(question.prompts[piece.index // question.n], answer.rejected(), verdict),),
            n=1,
            sampling=question.sampling if seed is None else replace(question.sampling, seed=(seed + attempt) % 2**63),
        )
        fresh = self._answer(examined, piece.index)
        fresh.earlier = answer.generation(piece.generation, 0, "", "stop")
        async with aclosing(cast(Any, self._ask(again))) as pieces:
            async for next_piece in pieces:
                async for made in self._through(examined, fresh, replace(next_piece, index=piece.index), attempt):
                    yield made
                    if made.generation is not None:
                        return

    async def _exhausted(self, question: Question, answer: Answer, verdict: Verdict, tries: int) -> str:
        """The last try was no better: what the rule says then. Gives the text that is let out."""
        then = verdict.rail.rule.exhausted
        question.exchange.say(
            "guardrails", name=verdict.rail.name, on=OUTPUT, action=then, kind="exhausted", count=tries, score=1.0,
            reason="; ".join(verdict.reasons), role="assistant",
        )  # fmt: skip
        if then == "flag":
            return await answer.release()
        answer.verdict = replace(verdict, action=then)
        return ""

    def _last(self, question: Question, answer: Answer, piece: Piece, text: str, calls: Sequence[ToolCall]) -> Piece:
        """The end of a choice. Raises RequestError for a block that is an error."""
        verdict, generation = answer.verdict, piece.generation
        reason = generation.finish_reason if generation is not None else "stop"
        if verdict is not None:
            self._note(question.exchange, verdict)
            if verdict.action == "block" and verdict.rail.respond(OUTPUT) == "error":
                raise verdict.error(OUTPUT)
            reason = "length" if verdict.action == "cut" else "content_filter"
            if verdict.action != "cut" and not (question.stream and answer.text()):
                text = answer.instead(verdict.message)
                reason = "stop" if verdict.action == "hand_over" else reason
        elif answer.holds or not question.stream:
            calls = answer.calls
        if not question.stream:
            text = answer.text()
        prompt_tokens = 0
        if generation is None and question.exchange.served is not None:
            prompt = question.prompts[piece.index // question.n]
            prompt_tokens, _ = count_or_estimate(question.exchange.served, prompt)
        made = answer.generation(generation, prompt_tokens, answer.text(), reason)
        tokens = piece.tokens if not self._out and verdict is None else ()
        return Piece(piece.index, text, made, tokens, tuple(calls))

    def _note(self, exchange: Exchange, verdict: Verdict) -> None:
        if verdict.action == "hand_over" and self._record is not None:
            self._record(exchange, verdict)

    def _refuse_logprobs(self, examined: Examined) -> None:
        """Tokens would tell what a guardrail hides or holds back."""
        if examined.question.sampling.logprobs is None:
            return
        changing = [rail.name for rail in self._out if rail.action != "flag"]
        if changing or len(examined.placeholders):
            names = ", ".join(changing or [rail.name for rail in self._rails if rail.action == "mask"])
            raise RequestError(
                f"logprobs cannot be given here: the guardrail {names} may change the answer; leave logprobs out",
                param="logprobs",
                code="unsupported_value",
            )


def _with_fault(prompt: Prompt, rejected: str, verdict: Verdict) -> Prompt:
    """The conversation with the answer that was no good and what was wrong with it; raw text is asked again as it is."""
    if isinstance(prompt, str):
        return prompt
    wish = verdict.rail.rule.message or ASK_AGAIN.format(reasons="; ".join(verdict.reasons))
    return (*prompt, Message("assistant", rejected), Message("user", wish))
