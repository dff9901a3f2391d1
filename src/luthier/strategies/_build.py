"""From a strategy's name and options to its prepared config, and from that to an engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core import catalog
from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.engine import Engine
from luthier.core.errors import InputError
from luthier.core.task import PromptTemplate

if TYPE_CHECKING:
    from luthier.store.database import Store


def prepare_strategy(
    name: str,
    options: Mapping[str, Any],
    prompt: PromptTemplate,
    train: Sequence[Example] = (),
    store: Store | None = None,
) -> Any:
    """The config of strategy ``name`` with everything in it that answering needs: the task's prompt, where ``options`` give none,
    examples from ``train``, texts of the prompt catalogue. It answers the same wherever it is put around an engine.

    Raises NotFoundError or InputError for an unknown strategy or option, and what the strategy cannot do with the examples.
    """
    entry = catalog.load("strategies", name)
    given = dict(options)
    if "prompt" in entry.config_class.model_fields:
        own = given.get("prompt") or prompt.as_dict()
        given["prompt"] = {"labels": prompt.labels, **own} if isinstance(own, Mapping) else own
    config = entry.configure(given)
    prepare = entry.optional("prepare")
    return config if prepare is None else _with_store(prepare, config, train, store=store)


def wrap_strategy(
    engine: Engine, name: str, config: EntryConfig | Mapping[str, Any], store: Store | None = None
) -> Engine:
    """``engine`` with strategy ``name`` around it."""
    entry = catalog.load("strategies", name)
    checked = entry.configure(config) if isinstance(config, Mapping) else config
    wrapped: Engine = _with_store(entry, engine, checked, store=store, like=entry.module.wrap)
    return wrapped


def prepare_inner(
    value: str | Mapping[str, Any],
    where: str,
    prompt: PromptTemplate,
    train: Sequence[Example],
    store: Store | None,
) -> dict[str, Any]:
    """A strategy that another one asks, prepared, as plain values: ``{"name", "config"}``."""
    name, options = read_strategy(value, where)
    config = prepare_strategy(name, options, prompt, train, store)
    return {"name": name, "config": config.model_dump(mode="json")}


def wrap_inner(
    engine: Engine, value: str | Mapping[str, Any], where: str, prompt: PromptTemplate, store: Store | None
) -> Engine:
    """``engine`` with that strategy around it, asked through ``prompt`` where it has none of its own."""
    name, options = read_strategy(value, where)
    if "prompt" in catalog.load("strategies", name).config_class.model_fields:
        options.setdefault("prompt", prompt.as_dict())
    return wrap_strategy(engine, name, options, store)


def read_strategy(value: str | Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a strategy within another: its name, or a mapping with ``name`` and options (also under ``config``)."""
    given: dict[str, Any] = {"name": value} if isinstance(value, str) else dict(value)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"{where} must be a strategy's name, or a mapping with a name; got {value!r}")
    return name, dict(given.pop("config", {})) | given


def _with_store(
    function: Callable[..., Any], *args: Any, store: Store | None, like: Callable[..., Any] | None = None
) -> Any:
    """Call ``function``, with the store where it takes one."""
    if "store" in inspect.signature(like or function).parameters:
        return function(*args, store=store)
    return function(*args)
