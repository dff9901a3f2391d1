"""The trace that a request belongs to outside of this server: W3C Trace Context (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.gateway.exchange import Exchange

_HEADER = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's trace and span, and whether it is recorded."""

    trace_id: int
    span_id: int
    sampled: bool


def parse_traceparent(header: str) -> Parent | None:
    """The header's content; None for one that is not valid, which is ignored as the standard says."""
    found = _HEADER.fullmatch(header.strip())
    if found is None or (header.startswith("00") and found[4]):
        return None
    trace_id, span_id = int(found[1], 16), int(found[2], 16)
    return Parent(trace_id, span_id, bool(int(found[3], 16) & 1)) if trace_id and span_id else None


def note_parent(exchange: Exchange) -> Parent | None:
    """Keep the caller's trace in the request's own; None when it has none."""
    parent = parse_traceparent(exchange.traceparent) if exchange.traceparent else None
    if parent is not None:
        exchange.details["otel"] = [{"trace_id": f"{parent.trace_id:032x}", "parent_id": f"{parent.span_id:016x}"}]
    return parent
