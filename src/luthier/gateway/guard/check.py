"""What guardrails would find and do, without asking a model: for people who write rules, from Python, HTTP and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field, PlainValidator, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.errors import InputError, did_you_mean
from luthier.core.message import Conversation, Message
from luthier.gateway.answer import json_response
from luthier.gateway.api import openapi
from luthier.gateway.api.messages import Messages
from luthier.gateway.api.wire import Body, RequestError, read
from luthier.gateway.config import read_config
from luthier.gateway.guard.layer import open_guard
from luthier.gateway.guard.placeholders import Placeholders
from luthier.gateway.guard.question import texts_of
from luthier.gateway.guard.rules import Guardrail, Rule, by_masks
from luthier.gateway.guard.run import Guard
from luthier.gateway.guardrails._contract import INPUT, OUTPUT, Context, Direction, Finding
from luthier.gateway.service import Service
from luthier.store.database import Store

STRICTEST = ("block", "hand_over", "retry", "cut", "mask", "flag", "pass")
DEFAULT_RULES = ("pii", "prompt_injection", "jailbreak")
MOST_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class Found:
    """A finding, of which guardrail, and what its rule does about it. ``start`` and ``end`` are places in ``message`` (its number) as that guardrail saw it."""

    guardrail: str
    action: str
    kind: str
    score: float
    reason: str
    role: str
    message: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Checked:
    """``action``: the strictest thing that is done, or ``pass``. ``texts``: the messages with what masks hide hidden."""

    action: str
    findings: tuple[Found, ...]
    texts: tuple[str, ...]


def guard(
    what: str | Sequence[Mapping[str, Any]],
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    on: Direction = "input",
    store: Store | None = None,
) -> Checked:
    """What the guardrails of a gateway's configuration find in a text or a conversation, and what they would do.

    Without ``config``: pii, prompt_injection and jailbreak as they are. ``on``: ``output`` reads the text, or the last turn, as an answer. Raises
    InputError for a configuration or messages that cannot be, NotFoundError for a model that is not there.
    """
    opened = open_for(config, store=store)
    try:
        return check(opened.rails, conversation_from(what, on), on)
    finally:
        opened.close()


def open_for(
    config: str | Path | Mapping[str, Any] | None, names: Sequence[str] = (), *, store: Store | None = None
) -> Guard:
    """The guardrails of a configuration, of these names only when there are any; without a configuration these names as they are.

    Raises InputError, NotFoundError.
    """
    if config is None:
        return open_guard([Rule(name=name) for name in names or DEFAULT_RULES], store=store)
    rules = read_config(config).guardrails
    if not rules:
        raise InputError("the configuration has no guardrails", hint="guardrails: [{name: pii}]")
    return open_guard([rule for rule in rules if _named(rule.name, names, rules)], store=store)


def _named(name: str, names: Sequence[str], rules: Sequence[Rule]) -> bool:
    known = {rule.name for rule in rules}
    for each in names:
        if each not in known:
            raise InputError(f"guardrail {each!r} is not in the configuration. {did_you_mean(each, known)}")
    return not names or name in names


def conversation_from(what: str | Sequence[Mapping[str, Any]], on: Direction) -> Conversation:
    """A text as one turn of the user, or of the assistant; messages as they are. Raises InputError."""
    if isinstance(what, str):
        return (Message("assistant" if on == OUTPUT else "user", what),)
    conversation = tuple(Message.from_dict(each) for each in what)
    if not conversation or (on == OUTPUT and conversation[-1].role != "assistant"):
        raise InputError("messages must hold a turn; to be read as an answer, the last one must be the assistant's")
    return conversation


def check(rails: Sequence[Guardrail], conversation: Conversation, on: Direction) -> Checked:
    """What ``rails`` find in the texts of a conversation (``output``: in its last turn), masks first."""
    chosen = [rail for rail in by_masks(rails) if on in rail.on]
    texts = [message.content for message in conversation]
    placeholders = Placeholders({kind for rail in chosen for kind in rail.entry.optional("KINDS") or ()}, texts)
    findings: list[Found] = []
    for rail in chosen:
        for number, role, last in _read(rail, conversation, on):
            text = texts[number]
            shown = tuple(replace(each, content=now) for each, now in zip(conversation, texts, strict=True))
            context = Context(on, role=role, last=last, messages=shown[:-1] if on == OUTPUT else shown)
            found = rail.check(text, context)
            findings += [_found(rail, each, role, number) for each in found]
            if rail.action == "mask":
                mask = placeholders.mask if on == INPUT else placeholders.mask_known
                texts[number] = mask(text, found)
    action = min((each.action for each in findings), key=STRICTEST.index, default="pass")
    return Checked(action, tuple(findings), tuple(placeholders.mask_names(text) for text in texts))


def _read(rail: Guardrail, conversation: Conversation, on: Direction) -> list[tuple[int, str, bool]]:
    """(number, role, whether it is the last of its role) of the turns that a guardrail reads."""
    if on == OUTPUT:
        return [(len(conversation) - 1, "assistant", True)]
    numbers = [number for number, message in enumerate(conversation) if message.role in rail.roles]
    read_texts = texts_of(conversation, rail.roles)
    return [(number, role, last) for number, (role, _, last) in zip(numbers, read_texts, strict=True)]


def _found(rail: Guardrail, finding: Finding, role: str, number: int) -> Found:
    return Found(
        rail.name, rail.action, finding.kind, round(finding.score, 4), finding.reason, role, number, finding.start,
        finding.end,
    )  # fmt: skip


def _direction(value: Any) -> Any:
    if value not in (INPUT, OUTPUT):
        raise ValueError(f"must be {INPUT} or {OUTPUT}")
    return value


class CheckRequest(Body):
    """What guardrails find in ``input``, a text or messages. ``model`` and the caller's tenant say which rules hold; ``on``: input or output."""

    input: str | Messages
    on: Annotated[Direction, PlainValidator(_direction), WithJsonSchema({"enum": [INPUT, OUTPUT]})] = "input"
    model: str = Field(default="", max_length=512)


FOUND = openapi.record({
    "guardrail": openapi.TEXT, "action": openapi.TEXT, "kind": openapi.TEXT, "score": openapi.NUMBER, "reason": openapi.TEXT,
    "role": openapi.TEXT, "message": openapi.COUNT, "start": openapi.COUNT, "end": openapi.COUNT,
})  # fmt: skip
CHECKED = openapi.record({
    "object": {"const": "guardrails.check"}, "action": {"enum": list(STRICTEST)}, "findings": openapi.listing(FOUND),
    "texts": openapi.listing(openapi.TEXT),
})  # fmt: skip


def register(app: FastAPI, service: Service) -> None:
    """The route."""

    @app.post(
        "/v1/guardrails/check",
        operation_id="check_guardrails",
        openapi_extra=openapi.takes(CheckRequest),
        responses=openapi.gives(CHECKED),
    )
    async def check_guardrails(request: Request) -> Response:
        """Say what the server's guardrails find in a text or a conversation, without asking a model."""
        caller = request.scope["luthier.caller"]
        caller.require("inference")
        body = read(await request.body(), CheckRequest)
        what = body.input
        conversation = conversation_from(what, body.on) if isinstance(what, str) else what
        if sum(len(message.content) for message in conversation) > MOST_CHARACTERS:
            raise RequestError(f"input may have {MOST_CHARACTERS:,} characters", param="input", code="invalid_value")
        if body.on == OUTPUT and conversation[-1].role != "assistant":
            raise RequestError(
                "input: to be read as an answer, the last turn must be the assistant's",
                param="input",
                code="invalid_value",
            )
        rails: Sequence[Guardrail] = ()
        if service.guard is not None:
            rails = [each for each in service.guard.rails if each.rule.holds(body.model, caller.tenant)]
            checked = await service.guard.in_thread(lambda: check(rails, conversation, body.on))
        else:
            checked = Checked("pass", (), tuple(message.content for message in conversation))
        return json_response({"object": "guardrails.check", **asdict(checked)})


def read_rows(path: Path) -> list[str | list[Mapping[str, Any]]]:
    """Texts or conversations of a JSON Lines file (``text``, or ``messages``). Raises InputError that names the line."""
    import orjson

    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    rows: list[str | list[Mapping[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from error
        what = row.get("text", row.get("messages")) if isinstance(row, dict) else row
        if not isinstance(what, str | list):
            raise InputError(f'{path}:{number}: a row needs "text" or "messages"')
        rows.append(what)
    if not rows:
        raise InputError(f"{path} has no rows")
    return rows
