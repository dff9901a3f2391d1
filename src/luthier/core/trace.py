"""Traces: what was asked, what was answered, by exactly which weights, template and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Trace:
    """One served request. Times are seconds; ``cost`` is in the price list's currency (0.0 when none is set).

    ``tenant`` and ``key_id`` say whose it is, ``session`` which conversation of theirs (what the client calls it), ``route`` by which route it
    came to ``model``, ``cache`` whether it was answered out of one (``exact``, ``semantic``). ``details`` holds what the gateway decided on the
    way: lists of plain mappings under the name of the part that decided (``route``, ``guardrails``, ``cache``, ``tool_calls``).
    """

    id: str
    created_at: str
    model: str
    operation: str  # chat, completion, embedding, rerank
    messages: tuple[Mapping[str, Any], ...] = ()
    answer: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    model_digest: str = ""
    base_digest: str = ""
    template_digest: str = ""
    prompt_digest: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    latency_s: float = 0.0
    cost: float = 0.0
    finish_reason: str = ""
    error: str = ""
    tenant: str = "local"
    key_id: str = ""
    session: str = ""
    route: str = ""
    cache: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


FeedbackKind = Literal["explicit", "implicit"]

GOOD_EVENTS = ("copied", "accepted", "shared", "preferred")
BAD_EVENTS = ("regenerated", "rephrased", "stopped", "dismissed")
EVENTS = (*GOOD_EVENTS, *BAD_EVENTS)
"""What people do with an answer without saying what they think of it."""


@dataclass(frozen=True)
class Feedback:
    """What somebody said of a trace's answer, or did with it.

    ``explicit``: said: ``rating`` -1 or 1, a class ``label``, a ``corrected`` answer, a ``comment``, or that it is better than the answer of the trace
    ``over`` (which may also be empty). ``implicit``: not said but done: ``event`` is one of ``EVENTS``, and the four are empty. ``source`` is
    where it comes from: ``http``, ``cli``, ``python``, ``client`` (an application reports an event), ``inferred`` (found in the traces).
    ``tenant``, ``key_id`` and ``said_by`` (the client's name for its user) are who gave it.
    """

    id: str
    trace_id: str
    created_at: str
    rating: int | None = None
    label: str | None = None
    corrected: str | None = None
    comment: str = ""
    kind: FeedbackKind = "explicit"
    event: str = ""
    source: str = ""
    over: str = ""
    tenant: str = "local"
    key_id: str = ""
    said_by: str = ""

    @property
    def verdict(self) -> int:
        """1 for a good answer, -1 for a bad one, 0 when neither the rating nor the event says."""
        if self.kind == "implicit":
            return 1 if self.event in GOOD_EVENTS else -1 if self.event in BAD_EVENTS else 0
        return self.rating or (1 if self.over else 0)


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message as a trace keeps it; of content in parts, their texts one a line."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content or () if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


def asked_last(trace: Trace) -> str:
    """The text of a trace's last user turn; "" when it has none or does not keep it."""
    asked = [message for message in trace.messages if message.get("role") == "user"]
    return text_of(asked[-1]) if asked else ""
