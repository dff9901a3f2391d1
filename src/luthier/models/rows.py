"""Which adapter answers which row of a batch, for layers that can take several at once.

``current()`` is None when one adapter (or the bare base) answers all rows, the usual case. Otherwise it has, for each row of the batch
that a layer is given (its input's first dimension), PEFT's name of the adapter, or None for the bare base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[tuple[str | None, ...] | None] = ContextVar("rows", default=None)


def current() -> tuple[str | None, ...] | None:
    """The adapter of each row, or None when they share the selected one."""
    return _current.get()


@contextmanager
def answering(names: Sequence[str | None]) -> Iterator[None]:
    """Within the block, row i of every batch is answered by the adapter ``names[i]``."""
    token = _current.set(tuple(names))
    try:
        yield
    finally:
        _current.reset(token)


def places(name: str | None) -> list[int]:
    """The rows that the adapter ``name`` answers; empty when no names are set."""
    return [place for place, own in enumerate(current() or ()) if own == name]
