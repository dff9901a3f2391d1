"""Entrants: each is a model, a way to ask it, and, when it is trained, a way to train it.

models: {decoder: smollm2-135m, encoder: minilm-l6}   # what short names stand for; these are the defaults
entrants:
  - zero_shot                                         # a strategy: asks models.decoder
  - lora                                              # a method: tunes a model of its own size and asks that
  - {name: few-shot-8, strategy: {name: few_shot, shots: 8}}
  - {method: {name: lora, rank: 32}, model: minilm-l6, train: {epochs: 2}}
  - {method: lora, search: 8}                         # the best of 8 trials; ``search: 0`` where all others search
  - {model: "openai:gpt-x@https://host/v1"}           # anything that answers
  - rag                                               # models.decoder, answering from the task's documents
  - rag + lora                                        # the same, tuned on prompts with what is found for its training questions
  - {rag: {mode: refine, k: 8}, model: qwen}          # a mode of answering, passages, retrieval, options of the mode
train: {epochs: 3}                                    # for every trained entrant; its own ``train`` wins

What holds for all of them (budget, search, seeds, jobs, prices) is in ``settings``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import Field, field_validator

from luthier.core import catalog
from luthier.core.catalog import EntryConfig
from luthier.core.config import validate
from luthier.core.errors import InputError, NotFoundError, did_you_mean
from luthier.core.task import TaskKind
from luthier.tasks.own import Config as TaskConfig
from luthier.tournament.settings import Search, read_search

MODELS: Mapping[str, str] = {"decoder": "smollm2-135m", "encoder": "minilm-l6"}
ENTRANTS: Mapping[TaskKind, tuple[str, ...]] = {
    "classify": ("zero_shot", "few_shot", "lora", "full", "linear_probe"),
    "choice": ("zero_shot", "few_shot"),
    "generate": ("zero_shot", "few_shot", "lora"),
    "likelihood": (),
}


RAG = "rag"
RAG_ENTRANTS = (RAG, f"{RAG} + lora")
"""Default entrants besides the others, where documents hold the answers."""


class RagConfig(EntryConfig):
    """How an entrant answers from documents: ``mode`` of the catalogue ``answers`` with its ``options``, ``k`` passages found by the steps of
    ``retrieval`` (the base's own when left out)."""

    mode: str = "stuff"
    k: int = Field(default=5, ge=1, le=100)
    retrieval: Any = None
    options: dict[str, Any] = Field(default_factory=dict)


class EntrantConfig(EntryConfig):
    """One item of ``entrants``. ``strategy``, ``method`` and ``objective`` are a name, or a mapping with ``name`` and options."""

    name: str | None = Field(default=None, min_length=1, max_length=60)
    model: str | None = None
    strategy: str | dict[str, Any] | None = None
    method: str | dict[str, Any] | None = None
    objective: str | dict[str, Any] | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    search: Any = None
    engine: str | None = None
    rag: bool | RagConfig | None = None

    @field_validator("strategy", "method", "objective")
    @classmethod
    def _named(cls, value: str | dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None or isinstance(value, dict):
            if value is not None and not isinstance(value.get("name"), str):
                raise ValueError("must be a name, or a mapping with a name")
            return value
        return {"name": value}


@dataclass(frozen=True)
class Entrant:
    """One resolved entrant. ``method`` is None when nothing is trained; then ``objective`` and ``train`` are empty."""

    name: str
    model: str
    strategy: Mapping[str, Any] | None = None
    method: Mapping[str, Any] | None = None
    objective: Mapping[str, Any] | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "auto"
    search: Search | None = None
    rag: Mapping[str, Any] | None = None

    @property
    def way(self) -> str:
        """How it adapts the model, in a word or two."""
        parts = ["rag"] if self.rag is not None else []
        parts += [str(part["name"]) for part in (self.method, self.strategy) if part is not None]
        return " + ".join(parts) or "as it is"

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        plain = asdict(replace(self, search=None))
        del plain["search"]
        if self.rag is None:
            del plain["rag"]  # entrants of tasks without documents are found again under the keys that they always had
        return plain | ({"search": self.search.model_dump()} if self.search is not None else {})

    def tune_config(self) -> dict[str, Any]:
        """What ``tune`` is told; data and prompt come from the task."""
        assert self.method is not None
        config: dict[str, Any] = {"model": {"base": self.model}, "method": dict(self.method)}
        if self.objective is not None:
            config["objective"] = dict(self.objective)
        if self.train:
            config["train"] = dict(self.train)
        return config


def read_entrants(
    config: TaskConfig,
    kind: TaskKind,
    *,
    engine: str = "auto",
    origins: Mapping[str, str] | None = None,
    search: Search | None = None,
) -> tuple[Entrant, ...]:
    """The entrants of a task file, or the default ones. ``search`` is that of trained entrants which do not say otherwise.

    Raises InputError for two of one name, settings that have no use, or unknown keys; NotFoundError for unknown strategies and
    methods.
    """
    for role in config.models:
        if role not in MODELS:
            if role == "encoder-decoder":
                raise InputError(
                    "models: roles are decoder and encoder; no method tunes an encoder-decoder unless its entrant names one",
                    hint=f"entrants: - {{method: lora, model: {config.models[role]}}}",
                )
            raise InputError(f"models: {role!r} is not a role. {did_you_mean(role, MODELS)}")
    models = {**MODELS, **config.models}
    default = (*ENTRANTS[kind], *(RAG_ENTRANTS if config.documents is not None and kind == "generate" else ()))
    items = config.entrants if config.entrants is not None else default
    if not items:
        raise InputError("entrants is empty; name at least one, or leave the key out for the default ones")
    origins = origins or {}
    parsed = [_parse(item, f"entrants.{i}", origins) for i, item in enumerate(items)]
    entrants = [_resolve(entry, models, kind, config.train, engine, search) for entry in parsed]
    if config.documents is None and any(entrant.rag is not None for entrant in entrants):
        raise InputError(
            "rag needs documents to answer from", hint="documents: a folder, or the name of a knowledge base"
        )
    return _named([entry.name for entry in parsed], entrants)


def _parse(item: str | Mapping[str, Any], key: str, origins: Mapping[str, str]) -> EntrantConfig:
    if not isinstance(item, str):
        inner = {k.removeprefix(key + "."): v for k, v in origins.items() if k.startswith(key + ".")}
        return validate(EntrantConfig, item, where=key, origins=inner)
    strategies, methods = catalog.names("strategies"), catalog.names("methods")
    if item in strategies:
        return EntrantConfig(strategy={"name": item})
    if item in methods:
        return EntrantConfig(method={"name": item})
    if item == RAG:
        return EntrantConfig(rag=True)
    first, _, method = (part.strip() for part in item.partition("+"))
    if first == RAG and method in methods:
        return EntrantConfig(rag=True, method={"name": method})
    where = f" ({origins[key]})" if key in origins else ""
    raise NotFoundError(
        f"{key}: {item!r} is neither a strategy nor a method{where}. {did_you_mean(item, (*strategies, *methods, RAG))}"
    )


def _resolve(
    entry: EntrantConfig,
    models: Mapping[str, str],
    kind: TaskKind,
    train: Mapping[str, Any],
    engine: str,
    search: Search | None,
) -> Entrant:
    strategy, method, objective = _mapping(entry.strategy), _mapping(entry.method), _mapping(entry.objective)
    if strategy is not None:
        catalog.load("strategies", strategy["name"])
    if method is None:
        for key, value in (("objective", objective), ("train", entry.train), ("search", entry.search)):
            if value:
                raise InputError(
                    f"entrant {entry.name or entry.model or 'without a name'}: {key} needs a method to use it"
                )
        if strategy is None and entry.model is None and not entry.rag:
            raise InputError("an entrant needs a model, a strategy or a method; got none of them")
    role = "decoder" if method is None or kind == "generate" else _role(method["name"])
    if role not in models and not entry.model:
        raise InputError(
            f"entrant {entry.name or (method or {})['name']}: its method tunes models of architecture {role}; name one: model: NAME"
        )
    return Entrant(
        name="",
        model=entry.model or models[role],
        strategy=strategy,
        method=method,
        objective=objective,
        train={**train, **entry.train} if method is not None else {},
        engine=entry.engine or engine,
        search=_search(entry, search) if method is not None else None,
        rag=_rag(entry, kind),
    )


def _search(entry: EntrantConfig, common: Search | None) -> Search | None:
    """Its own search, or everybody's. Its own number of trials with everybody's space is written as a number."""
    if entry.search is None:
        return common
    own = read_search(entry.search, f"entrant {entry.name or 'without a name'}")
    if own is not None and common is not None and isinstance(entry.search, int):
        return common.model_copy(update={"trials": own.trials})
    return own


def _rag(entry: EntrantConfig, kind: TaskKind) -> dict[str, Any] | None:
    """How it answers from documents, checked; None when it does not."""
    if not entry.rag:
        return None
    name = entry.name or "rag"
    if kind != "generate":
        raise InputError(f"entrant {name}: rag answers questions, and the task is of kind {kind}")
    if entry.strategy is not None:
        raise InputError(f"entrant {name}: rag and strategy exclude each other: rag brings its own prompts")
    chosen = RagConfig() if entry.rag is True else entry.rag
    catalog.load("answers", chosen.mode).configure(chosen.options)
    if entry.method is not None and chosen.mode != "stuff":
        raise InputError(f"entrant {name}: an adapter is tuned on the prompts of mode stuff; got mode {chosen.mode}")
    return chosen.model_dump()


def _role(method: str) -> str:
    """Which of ``models`` a method tunes when the entrant names none.

    What is kept as an adapter suits the decoder, whose base many adapters share; what is kept as whole weights or a head, the
    smaller encoder.
    """
    module = catalog.load("methods", method).module
    wanted = "decoder" if module.SAVES == "adapter" else "encoder"
    fitting = tuple(module.DEFAULTS)
    return wanted if wanted in fitting else str(fitting[0])


def _mapping(value: str | dict[str, Any] | None) -> dict[str, Any] | None:
    return {"name": value} if isinstance(value, str) else value


def _named(given: Sequence[str | None], entrants: Sequence[Entrant]) -> tuple[Entrant, ...]:
    """Give each entrant its name: its own, else how it adapts, with the model where that says too little."""
    short = [e.way if (e.method or e.strategy or e.rag is not None) else e.model for e in entrants]
    often = Counter(name for name, own in zip(short, given, strict=True) if own is None)
    names = [
        own or (name if often[name] == 1 and name not in given else f"{name} {entrant.model}")
        for own, name, entrant in zip(given, short, entrants, strict=True)
    ]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{names.count(twice[0])} entrants are called {twice[0]!r}",
            hint=f"give each a name: {{name: {twice[0]}-2, ...}}",
        )
    return tuple(replace(entrant, name=name) for entrant, name in zip(entrants, names, strict=True))


def choose_only(entrants: Sequence[Entrant], only: Sequence[str]) -> tuple[Entrant, ...]:
    """The entrants named in ``only`` (all when it is empty). Raises NotFoundError for a name that none has."""
    known = [entrant.name for entrant in entrants]
    for name in only:
        if name not in known:
            raise NotFoundError(f"entrant {name!r} is not in this tournament. {did_you_mean(name, known)}")
    return tuple(entrant for entrant in entrants if not only or entrant.name in only)
