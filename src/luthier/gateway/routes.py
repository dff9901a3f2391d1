"""Which target answers a question."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from luthier.gateway.calls import Piece
from luthier.gateway.gate import Turn
from luthier.gateway.layers import Ask, Layer, Question

if TYPE_CHECKING:
    from luthier.gateway.service import Service


def direct(service: Service) -> Layer:
    """The served model whose name the request says."""

    async def layer(question: Question, ask: Ask) -> AsyncIterator[Piece]:
        exchange = question.exchange
        turn = Turn(exchange.caller.tenant, exchange.priority)
        async for piece in ask(question.to(service.model(exchange.model), turn)):
            yield piece

    return layer
