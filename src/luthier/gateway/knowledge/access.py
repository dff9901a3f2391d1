"""Who sees which documents: the one rule for searches, answers and citations through the gateway."""

from __future__ import annotations

from dataclasses import replace

from luthier.gateway.access.caller import Caller
from luthier.knowledge.index import Filter
from luthier.knowledge.rag import PREFIX
from luthier.store.knowledge import KnowledgeRecord


def labels_of(caller: Caller) -> tuple[str, ...]:
    """The access labels of a caller: its tenant's name, and those of its key (``luthier keys create --label``).

    Every caller has some, so nobody who asks over HTTP sees all: not even a key with the scope ``admin``, nor the one caller (of the
    tenant ``local``) of a server that asks for no keys.
    """
    return tuple(dict.fromkeys((caller.tenant, *caller.labels)))


def visible(caller: Caller, where: Filter | None = None) -> Filter:
    """``where`` without documents that the caller may not see: those with labels of which it has none."""
    return replace(where or Filter(), labels=labels_of(caller))


def may_ask(caller: Caller, record: KnowledgeRecord) -> bool:
    """Whether a base is there for a caller: its key may ask ``kb:NAME``, and the base is the operator's or its tenant's own."""
    owner = record.meta.get("tenant")
    return caller.sees(f"{PREFIX}{record.name}") and owner in (None, caller.tenant)
