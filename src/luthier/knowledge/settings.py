"""How a knowledge base is made, searched and asked, as users write it: entries of the catalogues, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core import catalog
from luthier.core.config import apply_overrides, from_mapping
from luthier.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from luthier.store.database import Store
    from luthier.store.knowledge import KnowledgeRecord

MADE_WITH = ("embedder", "chunker", "index")
"""What vectors and chunks depend on: to change it is to build the index anew."""
ASKED_WITH = ("description", "retrieval", "answer")
DEFAULTS = {"embedder": "minilm-l6", "chunker": "recursive", "index": "lancedb"}
DEFAULT_MODE = "stuff"
ANSWERED_WITH = ("model", "mode", "k", "least", "rewrite", "reranker")


def read_settings(
    values: Mapping[str, Any], overrides: Sequence[str] = (), *, allowed: Sequence[str] = (*MADE_WITH, *ASKED_WITH)
) -> dict[str, Any]:
    """``values`` with dotted ``overrides`` (``chunker.tokens=200``), all checked; a catalogue's entry may be its name alone.

    ``retrieval`` is one step or a list of steps. Raises InputError and NotFoundError that name the key.
    """
    parts = {override.partition("=")[0].split(".")[0] for override in overrides}
    document = from_mapping({key: name for key, name in DEFAULTS.items() if key in parts} | dict(values))
    for override in overrides:
        key = override.partition("=")[0].split(".")[0]
        if key not in allowed:
            changes = key in MADE_WITH
            raise InputError(
                f"{key!r} cannot be set here. "
                + ("It changes what is in the index" if changes else did_you_mean(key, allowed)),
                hint=f"luthier kb rebuild NAME --option {override}" if changes else None,
            )
        apply_overrides(document, [override])
    checks: dict[str, Any] = {
        "embedder": lambda value: _text("embedder", value),
        "chunker": chunker_of,
        "index": lambda value: entry_of("indexes", value),
        "description": lambda value: _text("description", value or ""),
        "retrieval": steps_of,
        "answer": answer_of,
    }
    return {name: checks[name](value) for name, value in document.values.items()}


def set_base(name: str, overrides: Iterable[str] = (), *, store: Store | None = None, **values: Any) -> KnowledgeRecord:
    """Change how a base is described, searched and asked: ``set_base("handbook", retrieval=[...], answer={...})``, or dotted texts.

    What is not named stays. Raises NotFoundError for an unknown base, InputError for wrong settings.
    """
    from luthier.store.database import open_store
    from luthier.store.knowledge import find_base, update_base

    store = store or open_store()
    record = find_base(store, name)
    unknown = [each for each in values if each not in ASKED_WITH]
    if unknown:
        raise InputError(f"{unknown[0]!r} cannot be set. {did_you_mean(unknown[0], ASKED_WITH)}")
    now = {"description": record.description, "retrieval": list(record.retrieval), "answer": dict(record.answer)}
    overrides = list(overrides)
    if not overrides and not values:
        raise InputError(
            f"nothing to set; settings are {', '.join(ASKED_WITH)}", hint=f"luthier kb set {name} answer.k=8"
        )
    return update_base(store, name, **read_settings({**now, **values}, overrides, allowed=ASKED_WITH))


def entry_of(catalogue: str, given: Mapping[str, Any] | str) -> dict[str, Any]:
    """An entry of a catalogue with its options, checked: ``"fixed"`` or ``{"name": "fixed", "tokens": 200}``."""
    known = ", ".join(catalog.names(catalogue))
    if not isinstance(given, str | Mapping):
        raise InputError(f"{catalog.singular(catalogue)} must be a name or a name with options; got {given!r}")
    options = {"name": given} if isinstance(given, str) else dict(given)
    if not isinstance(options.get("name"), str):
        raise InputError(f"{catalog.singular(catalogue)} needs a name, one of {known}")
    entry = catalog.load(catalogue, options["name"])
    entry.configure({key: value for key, value in options.items() if key != "name"})
    return options


def chunker_of(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """A chunker with its options, of which ``context`` may be one, checked."""
    from luthier.knowledge.chunk import CONTEXT, read_chunker

    context = {CONTEXT: given[CONTEXT]} if isinstance(given, Mapping) and CONTEXT in given else {}
    plain = {key: value for key, value in given.items() if key != CONTEXT} if isinstance(given, Mapping) else given
    options = entry_of("chunkers", plain) | context
    read_chunker(options)
    return options


def steps_of(given: Any) -> list[dict[str, Any]]:
    """Steps of a search from one name, one step, or a list of both; None and nothing are the default search."""
    from luthier.knowledge.search import check_retrieval

    if given is not None and not isinstance(given, str | Mapping | Sequence):
        raise InputError(f"retrieval must be a list of steps; got {given!r}")
    listed = [given] if isinstance(given, str | Mapping) else list(given or ())
    steps = [{"name": each} if isinstance(each, str) else each for each in listed]
    for place, step in enumerate(steps, 1):
        if not isinstance(step, Mapping):
            raise InputError(f"retrieval: step {place} must be a name or a name with options; got {step!r}")
    check_retrieval(steps)
    return [dict(step) for step in steps]


def answer_of(given: Any) -> dict[str, Any]:
    """How questions are answered (``knowledge.rag.open_rag``): ``model``, ``mode``, ``k``, ``least``, ``rewrite``, ``reranker`` and the options of the mode."""
    answer = dict(given or {}) if isinstance(given, Mapping) or given is None else {"mode": given}
    model, mode, k = answer.get("model"), answer.get("mode", DEFAULT_MODE), answer.get("k")
    if model is not None:
        _text("answer.model", model)
    for name, kind in (("least", int | float), ("rewrite", bool), ("reranker", str)):
        value = answer.get(name)
        if value is not None and not isinstance(value, kind):
            raise InputError(
                f"answer.{name} must be {'text' if kind is str else 'true or false' if kind is bool else 'a number'}; got {value!r}"
            )
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 100):
        raise InputError(f"answer.k must be 1 to 100; got {k!r}")
    if not isinstance(mode, str):
        raise InputError(f"answer.mode must be a name; got {mode!r}")
    options = {key: value for key, value in answer.items() if key not in ANSWERED_WITH}
    catalog.load("answers", mode).configure(options)
    return {key: value for key, value in answer.items() if value is not None}


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{key} must be text; got {value!r}")
    return value
