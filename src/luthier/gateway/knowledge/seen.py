"""Models that answer from documents, as one caller sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.gateway.access.caller import Caller
from luthier.gateway.knowledge.access import visible
from luthier.knowledge.rag import RagEngine

if TYPE_CHECKING:
    from luthier.gateway.targets.served import Served


def seen_by(served: Served, caller: Caller) -> Served:
    """``served`` for this caller: of a knowledge base, one that finds only what the caller may see.

    Its ``info`` names the base's version and the caller's labels, so that answers of one are never taken for another's.
    """
    if not isinstance(served.engine, RagEngine):
        return served
    return replace(served, engine=served.engine.within(visible(caller, served.engine.where)))
