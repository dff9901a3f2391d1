"""Rewards of sampled answers: scorers of the catalogue and stored reward models, each with a weight, added up.

    rewards:
      - {name: number}                                        # any scorer, with its options
      - {name: regex, pattern: "^#### \\d+", expect: match, weight: 0.2}
      - {model: my-reward-model, weight: 0.5}                 # what objective reward made

A scorer where less is better counts with the other sign. A part that cannot say (a judge that was not understood) adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from luthier.core import catalog
from luthier.core.catalog import Entry
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, MismatchError, UnsupportedError
from luthier.core.message import Conversation, Message
from luthier.core.score import Answer, Reward, Score, Target, asked_of
from luthier.store.models import find

if TYPE_CHECKING:
    from luthier.core.model import ModelRecord
    from luthier.models.load import LoadedModel
    from luthier.store.database import Store

_SHOWN = 10
_PROBE = Answer("0")


@dataclass(frozen=True)
class Part:
    """One reward: a scorer with its options, or a stored reward model (``entry`` is None then)."""

    label: str
    weight: float
    spec: Mapping[str, Any]
    entry: Entry | None = None
    config: Any = None
    model: str = ""

    @property
    def needs_target(self) -> bool:
        """Whether rows must have a right answer."""
        if self.entry is None:
            return False
        asks = self.entry.optional("needs_target")
        return True if asks is None else bool(asks(self.config))

    @property
    def sign(self) -> float:
        """-1 where less is better."""
        return -1.0 if self.entry is not None and self.entry.optional("LOWER_IS_BETTER") else 1.0


def parse(specs: Sequence[Any]) -> tuple[Part, ...]:
    """The parts of the option ``rewards``.

    Raises InputError (NotFoundError for an unknown scorer, with near names) that says which part is wrong.
    """
    if not specs:
        raise InputError(
            "rewards must name at least one scorer or reward model; got none",
            hint="for example rewards: [{name: exact}], or [{model: MY-REWARD-MODEL}]",
        )
    parts: list[Part] = []
    for number, spec in enumerate(specs, 1):
        part = _part(spec, f"rewards, part {number}")
        if part.label in {other.label for other in parts}:
            raise InputError(f"rewards, part {number}: {part.label!r} occurs twice; tell them apart with as: NAME")
        parts.append(part)
    return tuple(parts)


def plain(value: Any) -> tuple[dict[str, Any], ...]:
    """The option ``rewards`` as a Config keeps it: one part or a list of them, checked; raises as ``parse`` does."""
    return tuple(dict(part.spec) for part in parse(value if isinstance(value, list | tuple) else (value,)))


def _part(spec: Any, where: str) -> Part:
    if isinstance(spec, str):  # ``rewards: [exact]``
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or ("name" in spec) == ("model" in spec):
        raise InputError(f"{where}: must have either name (a scorer) or model (a stored reward model); got {spec!r}")
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or not weight:
        raise InputError(f"{where}: weight must be a number other than 0; got {weight!r}")
    options = {key: value for key, value in spec.items() if key not in ("name", "weight", "as")}
    label = str(spec.get("as") or spec.get("name") or spec["model"])
    if "model" in spec:
        extra = sorted(set(options) - {"model"})
        if extra:
            raise InputError(f"{where}: a reward model takes weight and as; got {', '.join(extra)}")
        return Part(label, float(weight), dict(spec), model=str(spec["model"]))
    entry = catalog.load("scorers", str(spec["name"]))
    if entry.optional("score_many") is not None and not hasattr(entry.module, "Resources"):
        raise UnsupportedError(
            f"{where}: scorer {entry.name} does not say what it needs beside answers, so it is no reward"
        )
    return Part(label, float(weight), dict(spec), entry, entry.configure(options))


def models_of(store: Store, parts: Sequence[Part], base: ModelRecord | None = None) -> dict[str, ModelRecord]:
    """The reward models among ``parts``, by label, without reading a weight.

    Raises NotFoundError, UnsupportedError for a model without such a head, MismatchError where ``base``, which is trained on them, has
    another tokenizer. An encoder reads prompt and answer as texts, whatever the tokens of ``base`` are.
    """
    found = {}
    for part in parts:
        if part.entry is None:
            record = find(store, part.model)
            if record.kind != "adapter" or not record.meta.get("scores"):
                raise UnsupportedError(
                    f"{record.name} is no reward model: it has no head that scores an answer",
                    hint="tune one on preferences: objective: reward",
                )
            if base is not None and record.architecture != "encoder":
                _require_same_tokens(store, record, base)
            found[part.label] = record
    return found


def _require_same_tokens(store: Store, reward: ModelRecord, policy: ModelRecord) -> None:
    from luthier.objectives._teacher import tokens_apart

    apart = tokens_apart(store, reward, policy)
    if apart is not None:
        raise MismatchError(
            f"the reward model {reward.name} has another tokenizer than {policy.name} ({apart[0]} and {apart[1]} tokens, {apart[2]} of them "
            "not shared), so that it would read other tokens than were sampled",
            hint="tune a reward model on a base of the same family, or on an encoder, which reads texts",
        )


def check_rows(parts: Sequence[Part], dataset: Dataset) -> None:
    """Raise DataError, naming rows, where one lacks what a scorer compares an answer with."""
    bad: list[str] = []
    for example in dataset.examples:
        reason = _lacks(parts, example)
        if reason:
            bad.append(f"{example.source or example.id}: {reason}")
    if bad:
        shown = "\n  ".join(bad[:_SHOWN]) + (f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
        raise DataError(
            f"{len(bad)} rows of {dataset.name} cannot be rewarded:\n  {shown}",
            hint="give them an answer to compare with, leave them out, or take rewards that read the answer alone",
        )


def _lacks(parts: Sequence[Part], example: Example) -> str:
    """Why an answer to this row could not be scored; "" when it can. Scorers that work on one text are tried out."""
    _, target = asked_of(example)
    for part in parts:
        if part.needs_target and not any(text.strip() for text in target.accepted):
            return f"{part.label} compares with a right answer, and the row has none"
        if part.entry is not None and part.entry.optional("score_many") is None:
            try:
                tried: Score = part.entry(_PROBE, target, part.config)
            except DataError as error:
                return f"{part.label}: {error.message}"
            if tried.value is None:
                return f"{part.label}: {tried.detail.get('reason') or 'it cannot score a written answer'}"
    return ""


class Rewards:
    """Gives rewards (``core.score.Rewarding``). Reward models are loaded, and engines of scorers opened, when they are first needed."""

    def __init__(
        self, specs: Sequence[Any], store: Store | None = None, *, dtype: str = "auto", device: str = "auto"
    ) -> None:
        self.parts = parse(specs)
        self._store, self._dtype, self._device = store, dtype, device
        self._models: dict[str, LoadedModel] = {}
        self._resources: dict[str, Any] = {}

    @property
    def spec(self) -> list[dict[str, Any]]:
        """The parts as they were given; of a model its digest too."""
        records = models_of(self.store, [part for part in self.parts if part.entry is None])
        digests = {label: {"digest": record.digest} for label, record in records.items()}
        return [{**part.spec, **digests.get(part.label, {})} for part in self.parts]

    @property
    def store(self) -> Store:
        """Where models are found."""
        if self._store is None:
            from luthier.store.database import open_store

            self._store = open_store()
        return self._store

    def __call__(
        self, prompts: Sequence[Conversation], targets: Sequence[Target], answers: Sequence[str]
    ) -> list[Reward]:
        """The reward of each answer, in order."""
        columns = [self._column(part, prompts, targets, answers) for part in self.parts]
        out = []
        for row in zip(*columns, strict=True):
            values = {part.label: value for part, value in zip(self.parts, row, strict=True)}
            told = [
                part.weight * part.sign * value
                for part, value in zip(self.parts, row, strict=True)
                if value is not None
            ]
            out.append(Reward(math.fsum(told), values))
        return out

    def _column(
        self, part: Part, prompts: Sequence[Conversation], targets: Sequence[Target], answers: Sequence[str]
    ) -> list[float | None]:
        if part.entry is None:
            from luthier.models.reward import rewards as rewards_of

            talks = [(*prompt, Message("assistant", answer)) for prompt, answer in zip(prompts, answers, strict=True)]
            return list(rewards_of(self.model(part.model), talks, cut=True))  # an answer that went on too long
        given = [Answer(text) for text in answers]
        many = part.entry.optional("score_many")
        if many is not None:
            scores = many(given, list(targets), part.config, self._resource(part))
        else:
            scores = [part.entry(one, target, part.config) for one, target in zip(given, targets, strict=True)]
        return [None if s.value is None or not math.isfinite(s.value) else float(s.value) for s in scores]

    def model(self, name: str) -> LoadedModel:
        """The reward model called ``name``, in memory once a process."""
        if name not in self._models:
            self._models[name] = _load(self.store, name, self._dtype, self._device)
        return self._models[name]

    def _resource(self, part: Part) -> Any:
        if part.label not in self._resources:
            assert part.entry is not None
            self._resources[part.label] = part.entry.module.Resources(self.store)
        return self._resources[part.label]

    def close(self) -> None:
        """Let models and engines go. Safe to call twice."""
        self._models.clear()
        while self._resources:
            self._resources.popitem()[1].close()


_loaded: WeakValueDictionary[tuple[str, str, str, str], LoadedModel] = WeakValueDictionary()


def _load(store: Store, name: str, dtype: str, device: str) -> LoadedModel:
    from luthier.models.load import load_model
    from luthier.models.reward import require_reward_model

    record = find(store, name)
    key = (str(store.home.root), record.digest, dtype, device)
    model = _loaded.get(key)
    if model is None:
        model = load_model(store, record, dtype=dtype, device=device)
        require_reward_model(model)
        model.module.eval().requires_grad_(False)
        _loaded[key] = model
    return model


def rewards(specs: Sequence[Any], *, store: Store | None = None) -> Rewards:
    """What gives the rewards of ``specs``, a list as in the option ``rewards``: for ``luthier.answers`` and for trying them out.

    Raises InputError for a part that cannot be one, NotFoundError for an unknown scorer or model, UnsupportedError for a model that is no reward model.
    """
    made = Rewards(specs, store)
    models_of(made.store, [part for part in made.parts if part.entry is None])
    return made
