"""Guardrails on the way in: what a model is asked, after what must be hidden is hidden and what must be refused is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from luthier.core.message import Conversation, Message, Prompt, ToolCall
from luthier.gateway.api.messages import kept
from luthier.gateway.exchange import Exchange
from luthier.gateway.guard.placeholders import Placeholders, mask_arguments
from luthier.gateway.guard.rules import Guardrail, by_masks
from luthier.gateway.guard.run import Guard, Verdict, failed, report, verdict_on
from luthier.gateway.guardrails._contract import INPUT, Context, Finding
from luthier.gateway.layers import Question


@dataclass(frozen=True)
class Examined:
    """A question after its guardrails; with a ``verdict`` it is not put to a model."""

    question: Question
    placeholders: Placeholders
    verdict: Verdict | None = None


async def examine(guard: Guard, rails: Sequence[Guardrail], question: Question) -> Examined:
    """Let the guardrails that look at questions look at this one. Masks come first, the rest in the order of the configuration.

    Raises RequestError for a block that is an error, and when a guardrail fails that must not.
    """
    looking = [rail for rail in by_masks(rails) if INPUT in rail.on]
    masks = [rail for rail in looking if rail.action == "mask"]
    placeholders = _placeholders(masks, question)
    for rail in masks:
        question = await _masked(guard, rail, question, placeholders)
    if len(placeholders):
        question = _with(question, placeholders.mask_names)
        question.exchange.messages = tuple(kept(conversation_of(prompt)) for prompt in question.prompts)
    question.exchange.veiled = all(said["kind"] != "error" for said in said_of(question.exchange))
    for rail in looking:
        if rail.action != "mask":
            verdict = await _checked(guard, rail, question)
            if verdict is not None:
                if verdict.action == "block" and rail.respond(INPUT) == "error":
                    raise verdict.error(INPUT)
                return Examined(question, placeholders, verdict)
    return Examined(_amended(rails, question), placeholders)


def texts_of(prompt: Prompt, roles: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """(role, text, whether it is the last of its role) of everything in ``prompt`` that is read for ``roles``; raw text is the user's."""
    if isinstance(prompt, str):
        if "user" in roles:
            yield "user", prompt, True
        return
    last = {message.role: index for index, message in enumerate(prompt)}
    for index, message in enumerate(prompt):
        if message.role in roles:
            yield message.role, message.content, last[message.role] == index


def conversation_of(prompt: Prompt) -> Conversation:
    """The turns; raw text is one of the user."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _placeholders(masks: Sequence[Guardrail], question: Question) -> Placeholders:
    kinds = {kind for rail in masks for kind in rail.entry.optional("KINDS") or ()}
    texts = [text for prompt in question.prompts for text in _every_text(prompt)] if kinds else []
    return Placeholders(kinds, texts)


def _every_text(prompt: Prompt) -> Iterator[str]:
    for message in conversation_of(prompt):
        yield message.content
        yield from (call.arguments for call in message.tool_calls)


async def _masked(guard: Guard, rail: Guardrail, question: Question, placeholders: Placeholders) -> Question:
    """The question with what the guardrail finds behind placeholders."""
    exchange, roles = question.exchange, rail.roles
    found: dict[str, list[Finding]] = {}

    def mask(text: str, role: str, messages: Conversation) -> str:
        findings = rail.check(text, Context(INPUT, role=role, messages=messages))
        found.setdefault(role, []).extend(findings)
        return placeholders.mask(text, findings)

    def all_masked() -> tuple[Prompt, ...]:
        return tuple(_changed(prompt, roles, mask) for prompt in question.prompts)

    length = sum(len(text) for prompt in question.prompts for _, text, _ in texts_of(prompt, roles))
    try:
        prompts = await guard.run(rail, length, all_masked)
    except Exception as error:  # noqa: BLE001  whatever fails in a guardrail, its rule says what that means
        failed(exchange, rail, INPUT, error)
        return question
    for role, findings in found.items():
        report(exchange, rail, INPUT, findings, role=role)
    return replace(question, prompts=prompts)


def _changed(prompt: Prompt, roles: Sequence[str], change: Callable[[str, str, Conversation], str]) -> Prompt:
    if isinstance(prompt, str):
        return change(prompt, "user", conversation_of(prompt)) if "user" in roles else prompt
    out = []
    for message in prompt:
        if message.role not in roles:
            out.append(message)
            continue

        def changed(text: str, role: str = message.role) -> str:
            return change(text, role, prompt)

        calls = tuple(
            ToolCall(call.name, mask_arguments(call.arguments, changed), call.id) for call in message.tool_calls
        )
        content = changed(message.content)
        # a picture stands after so many characters of the text
        images = tuple(
            replace(each, at=min(len(content), len(changed(message.content[: each.at])))) for each in message.images
        )
        out.append(replace(message, content=content, tool_calls=calls, images=images))
    return tuple(out)


def _with(question: Question, change: Callable[[str], str]) -> Question:
    everybody = ("system", "user", "assistant", "tool")
    return replace(
        question,
        prompts=tuple(_changed(prompt, everybody, lambda text, *_: change(text)) for prompt in question.prompts),
    )


async def _checked(guard: Guard, rail: Guardrail, question: Question) -> Verdict | None:
    """What a guardrail that does not mask decides; None: nothing, or nothing more than to say so."""
    exchange = question.exchange
    for prompt in question.prompts:
        conversation = conversation_of(prompt)
        for role, text, last in texts_of(prompt, rail.roles):
            context = Context(
                INPUT, role=role, last=last, messages=conversation, constraint=question.sampling.constraint
            )
            try:
                findings = await guard.run(rail, len(text), partial(rail.check, text, context))
            except Exception as error:  # noqa: BLE001  whatever fails in a guardrail, its rule says what that means
                failed(exchange, rail, INPUT, error)
                continue
            if findings:
                report(exchange, rail, INPUT, findings, role=role)
                if rail.action != "flag":
                    return verdict_on(rail, findings)
    return None


def _amended(rails: Sequence[Guardrail], question: Question) -> Question:
    """The question as the entries that add something to it want it."""
    for rail in rails:
        amend = rail.entry.optional("amend")
        if amend is not None:
            context = Context(INPUT, state=rail.state)
            prompts = tuple(
                prompt if isinstance(prompt, str) else amend(prompt, rail.config, context)
                for prompt in question.prompts
            )
            question = replace(question, prompts=prompts)
    return question


def said_of(exchange: Exchange) -> list[dict[str, Any]]:
    """What guardrails decided about a request so far."""
    return exchange.details.get("guardrails", [])
