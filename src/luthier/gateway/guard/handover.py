"""Requests that a guardrail hands over to a person: a row of the audit log each, from which they can be listed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from luthier.gateway.exchange import Exchange
from luthier.gateway.guard.run import Verdict
from luthier.store.audit import AuditRecord, audit, list_audit
from luthier.store.database import Store

if TYPE_CHECKING:
    from luthier.gateway.service import Service

ACTION = "guardrail.hand_over"
ACTOR = "guardrails"

logger = logging.getLogger("luthier.gateway")


def record_handover(service: Service, exchange: Exchange, verdict: Verdict) -> None:
    """Write the row in a thread; the trace's id is its target."""
    caller = exchange.caller
    detail = {
        "guardrail": verdict.rail.name, "reasons": list(verdict.reasons), "model": exchange.model, "key_id": caller.key_id,
        "session": exchange.session,
    }  # fmt: skip

    def write() -> None:
        try:
            audit(service.store, ACTOR, ACTION, exchange.id, detail, tenant=caller.tenant)
        except Exception:  # the answer has been given; the trace says the same
            logger.exception("the audit log has no row for the hand-over of %s", exchange.id)

    service.workers.run(write)


def handed_over(store: Store, *, tenant: str | None = None, most: int = 100) -> list[AuditRecord]:
    """The newest requests that were handed over to a person; ``target`` is the trace's id."""
    return list_audit(store, tenant=tenant, action=ACTION, limit=most)
