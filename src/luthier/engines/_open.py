"""From a name to an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core import catalog
from luthier.core.engine import Engine
from luthier.core.errors import UnsupportedError
from luthier.core.model import ModelRecord
from luthier.engines._target import EngineTarget

if TYPE_CHECKING:
    from luthier.store.database import Store

UNSTORED = ("fake", "openai")
"""Engines whose models are named ``engine`` or ``engine:...`` and need no store."""


def open_engine(
    store: Store,
    name: str,
    engine: str = "auto",
    options: Mapping[str, Any] | None = None,
    *,
    shown_as: str | None = None,
    shared: dict[Any, Any] | None = None,
) -> Engine:
    """The engine for ``name``: a stored base, adapter or export, ``openai:MODEL@URL``, ``fake`` or ``fake:label1,label2``.

    ``engine`` auto is torch for bases and adapters, llamacpp for exports. ``options`` are the engine's Config. ``shown_as`` is the
    name in ``info.model`` when the user typed another one. Engines opened with the same ``shared`` mapping share bases in memory.

    Raises NotFoundError for a name or engine that is not known, InputError for wrong options, UnsupportedError for an endpoint
    (``strategies._load.load`` opens those) and for an engine that cannot open the model.
    """
    record, base = _resolve(store, name)
    if engine == "auto":
        engine = _engine_for(name, record)
    elif record is None and engine != _engine_for(name, record):
        raise UnsupportedError(f"{name!r} opens with engine {_engine_for(name, record)}; got engine={engine}")
    entry = catalog.load("engines", engine)
    target = EngineTarget(shown_as or name, record, base, store, {} if shared is None else shared)
    if record is None:
        target = EngineTarget(name, None, None, store, target.shared)
    opened: Engine = entry(target, entry.configure(options))
    return opened


def open_many(
    store: Store, names: Sequence[str], engine: str = "auto", options: Mapping[str, Any] | None = None
) -> dict[str, Engine]:
    """Engines for several names; adapters of one base share it. When one fails, the others are closed again."""
    shared: dict[Any, Any] = {}
    opened: dict[str, Engine] = {}
    try:
        for name in names:
            if name not in opened:
                opened[name] = open_engine(store, name, engine, options, shared=shared)
    except BaseException:
        for each in opened.values():
            each.close()
        raise
    return opened


def _resolve(store: Store, name: str) -> tuple[ModelRecord | None, ModelRecord | None]:
    """The record and its base's record; (None, None) for names that are not in a store."""
    from luthier.core.errors import NotFoundError
    from luthier.store.models import find

    if name.split(":", 1)[0] in UNSTORED:
        return None, None
    record = find(store, name)
    if record.kind == "endpoint":
        raise UnsupportedError(f"{name} is an endpoint: load it with its strategy", hint=f"luthier.load({name!r})")
    if record.kind == "base" or record.base is None:
        return record, record
    try:
        return record, find(store, record.base)
    except NotFoundError:
        return record, None  # whole weights answer without their base


def _engine_for(name: str, record: ModelRecord | None) -> str:
    if record is None:
        return name.split(":", 1)[0]
    return "llamacpp" if record.kind == "export" else "torch"
