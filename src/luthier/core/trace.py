"""Traces: what was asked, what was answered, by exactly which weights, template and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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


@dataclass(frozen=True)
class Feedback:
    """What somebody said of a trace's answer: ``rating`` -1 or 1, a class ``label``, or a ``corrected`` answer."""

    id: str
    trace_id: str
    created_at: str
    rating: int | None = None
    label: str | None = None
    corrected: str | None = None
    comment: str = ""
