"""Engines of one base, opened together so that its weights are in memory once, and closed before the next base is opened."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from luthier.core.engine import Engine
from luthier.core.errors import LuthierError
from luthier.store.database import Store

Lookup = Callable[[str, bool], Engine]


@contextmanager
def open_together(store: Store, asked: Sequence[tuple[str, bool]], engine: str) -> Iterator[Lookup]:
    """Yields a lookup of ``(name, raw)`` -> engine; ``raw`` ones are without the prompt that a tuned model brings.

    When they do not open together (one is damaged), each is opened by itself when it is looked up, so that its error is its own.
    """
    from luthier.strategies._load import load, load_many

    opened: dict[tuple[str, bool], Engine] = {}
    try:
        for raw in sorted({raw for _, raw in asked}):
            names = [name for name, is_raw in asked if is_raw == raw]
            try:
                found = load_many(names, engine=engine, store=store, raw=raw)
            except LuthierError:
                continue
            opened |= {(name, raw): found[name] for name in names}

        def lookup(name: str, raw: bool) -> Engine:
            if (name, raw) not in opened:
                opened[name, raw] = load(name, engine=engine, store=store, raw=raw)
            return opened[name, raw]

        yield lookup
    finally:
        for each in opened.values():
            each.close()
        opened.clear()
        gc.collect()
