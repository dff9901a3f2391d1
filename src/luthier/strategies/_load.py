"""The verb ``load``: a name becomes an engine that is asked the way it should be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.engine import Engine
from luthier.core.errors import InputError
from luthier.core.model import ModelRecord
from luthier.engines._open import UNSTORED, open_engine
from luthier.strategies._build import read_strategy, wrap_strategy
from luthier.strategies._labels import answer_with_labels, labels_of, prompt_counter

if TYPE_CHECKING:
    from luthier.store.database import Store


def load(
    name: str,
    *,
    engine: str = "auto",
    store: Store | None = None,
    options: Mapping[str, Any] | None = None,
    raw: bool = False,
) -> Engine:
    """Open a model by name.

    ``kb:NAME`` is a knowledge base with the model that writes its answers; ``engine`` opens that one, ``options`` are those of
    ``knowledge.rag.open_rag``. An endpoint opens its target with its strategy around it; an adapter that was tuned with a task prompt is asked with that prompt;
    either answers with one of its labels where it has some, the way it was evaluated. Everything else is the bare engine. ``raw``
    leaves prompts, strategies and labels away. ``options`` are the engine's.

    Raises NotFoundError for an unknown name, and what the engine raises when it opens.
    """
    return load_many([name], engine=engine, store=store, options=options, raw=raw)[name]


def load_many(
    names: Sequence[str],
    *,
    engine: str = "auto",
    store: Store | None = None,
    options: Mapping[str, Any] | None = None,
    raw: bool = False,
    shared: dict[Any, Any] | None = None,
) -> dict[str, Engine]:
    """``load`` for several names that share bases in memory, whether they are adapters or endpoints of adapters.

    What is loaded at different times shares them, too, when it is given the same ``shared`` mapping, by one thread at a time. When one
    fails, the others are closed again.
    """
    from luthier.store.database import open_store

    store = store or open_store()
    shared = {} if shared is None else shared
    opened: dict[str, Engine] = {}
    try:
        for name in names:
            if name not in opened:
                opened[name] = _load(store, name, engine, options, raw=raw, shared=shared)
    except BaseException:
        for each in opened.values():
            each.close()
        raise
    return opened


def _load(
    store: Store,
    name: str,
    engine: str,
    options: Mapping[str, Any] | None,
    *,
    raw: bool,
    shared: dict[Any, Any],
) -> Engine:
    if name.split(":", 1)[0] in UNSTORED:
        return open_engine(store, name, engine, options, shared=shared)
    from luthier import opener

    above = opener(name)
    if above is not None:
        opened: Engine = above(name, engine=engine, store=store, options=options, raw=raw, shared=shared)
        return opened
    record, endpoint = _target(store, name)
    meta = endpoint.meta if endpoint is not None else {}
    if engine == "auto":
        engine = str(meta.get("engine") or "auto")
    if options is None:
        options = meta.get("engine_options")
    bare = open_engine(store, record.name, engine, options, shown_as=name, shared=shared)
    if raw or record.architecture == "encoder":
        return bare
    try:
        asked = _asked(store, bare, record, endpoint)
        named = endpoint or record
        return answer_with_labels(asked, labels_of(store, named), prompt_counter(store, named, asked))
    except BaseException:
        bare.close()
        raise


def _target(store: Store, name: str) -> tuple[ModelRecord, ModelRecord | None]:
    """The model behind ``name`` and the endpoint that the name is, if it is one. An endpoint may point at another."""
    from luthier.store.models import find

    record = first = find(store, name)
    seen = [name]
    while record.kind == "endpoint":
        target = str(record.meta.get("target") or "")
        if target in seen or not target:
            raise InputError(f"endpoint {name} leads nowhere: {' -> '.join([*seen, target or 'nothing'])}")
        seen.append(target)
        record = find(store, target)
    return record, first if first.kind == "endpoint" else None


def _asked(store: Store, opened: Engine, record: ModelRecord, endpoint: ModelRecord | None) -> Engine:
    """``opened`` behind the endpoint's strategy, or behind the prompt that the adapter was tuned with."""
    if endpoint is not None:
        strategy = endpoint.meta.get("strategy")
        if not strategy:
            return opened
        name, config = read_strategy(strategy, f"the strategy of endpoint {endpoint.name}")
        return wrap_strategy(opened, name, config, store)
    if record.meta.get("prompt"):
        return wrap_strategy(opened, "zero_shot", {"prompt": dict(record.meta["prompt"])}, store)
    return opened
