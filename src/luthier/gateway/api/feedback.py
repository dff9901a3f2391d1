"""What people say of answers, and what they do with them: checked against the trace and the labels of the model that gave it, then stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.errors import InputError, NotFoundError, did_you_mean
from luthier.core.trace import Feedback, Trace
from luthier.gateway.access.caller import Caller
from luthier.gateway.answer import json_response
from luthier.gateway.api import openapi
from luthier.gateway.api.wire import Body, read
from luthier.gateway.service import Service
from luthier.gateway.watch.lookup import after_flush
from luthier.store.battles import Battle, record_battles
from luthier.store.database import Store
from luthier.store.feedback import record_feedback
from luthier.store.models import find
from luthier.store.traces import find_trace
from luthier.strategies._labels import labels_of

LONGEST = 65_536
ARENA = "feedback"
"""The arena that a choice between the answers of two models is a battle of."""

REPORTED = Literal["copied", "accepted", "shared", "dismissed", "regenerated", "stopped"]
"""The events that an application can tell of."""


class FeedbackRequest(Body):
    """POST /v1/feedback: what somebody says of an answer (at least one of rating, label, corrected, comment, over), or an event alone.

    ``over`` is the id of another answer to the same question, which was worse. ``user`` is the application's name for who says it.
    """

    trace_id: str
    rating: Literal[-1, 1] | None = None
    label: str | None = None
    corrected: str | None = None
    comment: str = ""
    over: str | None = Field(default=None, min_length=1)
    event: REPORTED | None = None
    user: str | None = Field(default=None, max_length=512)


def give_feedback(
    store: Store,
    trace_id: str,
    *,
    rating: int | None = None,
    label: str | None = None,
    corrected: str | None = None,
    comment: str = "",
    over: str = "",
    event: str = "",
    labels: tuple[str, ...] | None = None,
    tenant: str | None = None,
    redact: Callable[[str], str] = str,
    **origin: str,
) -> Feedback:
    """Record a rating (-1 or 1), the right label, a corrected answer, a comment, or that it is better than the answer of the trace ``over``:
    at least one of them. Or an ``event`` alone: what was done with the answer.

    ``labels`` is the closed answer set of the trace's model, None to look it up. Only traces of ``tenant`` are known (None: all). ``redact`` is
    applied to what is free text. ``origin``: source, key_id, said_by. A choice between the answers of two models is a battle of the arena
    ``feedback``, too. Raises NotFoundError for an unknown trace, InputError for a label that the model cannot give and for what
    ``record_feedback`` refuses.
    """
    trace = find_trace(store, trace_id, tenant=tenant)
    worse = find_trace(store, over, tenant=tenant) if over else None
    if labels is None:
        labels = _labels(store, trace.model)
    if label is not None and labels and label not in labels:
        raise InputError(
            f"label must be one of the labels of {trace.model}: {', '.join(labels)}; got {label!r}. "
            f"{did_you_mean(label, labels) if len(labels) > 12 else ''}".rstrip()
        )
    for name, text in (("label", label), ("corrected", corrected), ("comment", comment)):
        if text is not None and len(text) > LONGEST:
            raise InputError(f"{name} must be at most {LONGEST:,} characters; got {len(text):,}")
        if text is not None and name != "comment" and not text.strip():
            raise InputError(f"{name} must not be empty; leave it out instead")
    given = record_feedback(
        store,
        trace_id,
        rating=rating,
        label=label if label is None or label in labels else redact(label),
        corrected=corrected if corrected is None else redact(corrected),
        comment=redact(comment),
        over=over,
        event=event,
        **origin,
    )
    if worse is not None:
        _battle(store, trace, worse, given)
    return given


def _battle(store: Store, better: Trace, worse: Trace, given: Feedback) -> None:
    """The choice as a vote between two models, where the question is one turn, as the arena has them."""
    asked = [message for message in better.messages if message.get("role") != "system"]
    if better.model == worse.model or len(asked) != 1 or not isinstance(asked[0].get("content"), str):
        return
    record_battles(store, [Battle(
        prompt=asked[0]["content"], model_a=better.model, model_b=worse.model, answer_a=better.answer, answer_b=worse.answer,
        winner="model_a", source="human", voter=given.said_by or given.key_id or given.id, arena=ARENA,
        digest_a=better.model_digest, digest_b=worse.model_digest, detail={"feedback": given.id},
    )])  # fmt: skip


def _labels(store: Store, model: str) -> tuple[str, ...]:
    """The labels of a stored model; a fake one carries them in its name."""
    try:
        return labels_of(store, find(store, model))
    except NotFoundError:
        return ()


def feedback_body(given: Feedback) -> dict[str, object]:
    """The response to POST /v1/feedback."""
    said: dict[str, object] = {
        "object": "feedback",
        "id": given.id,
        "trace_id": given.trace_id,
        "created_at": given.created_at,
        "kind": given.kind,
    }
    if given.kind == "implicit":
        return said | {"event": given.event}
    return said | {
        "rating": given.rating,
        "label": given.label,
        "corrected": given.corrected,
        "comment": given.comment,
        "over": given.over or None,
    }


def register(app: FastAPI, service: Service) -> None:
    """Add POST /v1/feedback."""

    @app.post("/v1/feedback", openapi_extra=openapi.takes(FeedbackRequest), responses=openapi.gives(openapi.FEEDBACK))
    async def feedback(request: Request) -> Response:
        """Say something of an answer, or what was done with it."""
        caller = request.scope["luthier.caller"]
        caller.require("feedback")
        body = read(await request.body(), FeedbackRequest)
        given = await asyncio.to_thread(after_flush, service, body.trace_id, partial(_given, service, body, caller))
        return json_response(feedback_body(given))


def _given(service: Service, body: FeedbackRequest, caller: Caller) -> Any:
    served = service.models.get(find_trace(service.store, body.trace_id, tenant=caller.tenant).model)
    return give_feedback(
        service.store,
        body.trace_id,
        rating=body.rating,
        label=body.label,
        corrected=body.corrected,
        comment=body.comment,
        over=body.over or "",
        event=body.event or "",
        labels=served.labels if served is not None else None,
        tenant=caller.tenant,
        redact=service.watch.redacted,
        source="client" if body.event else "http",
        key_id=caller.key_id,
        said_by=service.watch.redaction.name(body.user or ""),
    )
