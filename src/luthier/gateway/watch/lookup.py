"""Looking for the traces of requests that were answered a moment ago."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from luthier.core.errors import NotFoundError
from luthier.gateway.api.wire import RequestError
from luthier.gateway.service import Service

Found = TypeVar("Found")


def after_flush(service: Service, trace_id: str, look: Callable[[], Found]) -> Found:
    """``look`` for a trace; one that was answered a moment ago is written first."""
    try:
        return look()
    except NotFoundError:
        if service.traces.flush():
            return look()
        raise RequestError(
            f"traces are not being written at the moment, so {trace_id!r} cannot be found; "
            "the server's log says why. Try again later",
            status=503,
            param="trace_id",
            code="traces_waiting",
            headers={"Retry-After": "5"},
        ) from None
