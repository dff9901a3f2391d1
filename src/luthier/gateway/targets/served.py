"""One model as it is served: its engine, its price, what holds when a request does not say, and who is using it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.core.engine import Engine, Generation
from luthier.core.errors import InputError, NotFoundError, did_you_mean
from luthier.core.message import Prompt
from luthier.core.model import ModelRecord
from luthier.gateway.targets.gate import Gate
from luthier.store.database import Store
from luthier.store.models import find
from luthier.strategies._labels import Counter, answer_with_labels, labels_of, prompt_counter, tokenizer_folder

_BYTES_PER_TOKEN = 4
_TEMPLATE_TOKENS = 64  # what a chat template may put around a conversation, and around each of its turns
_TURN_TOKENS = 16


@dataclass(frozen=True)
class Price:
    """Per million tokens, in whatever currency the operator thinks in."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, answer: Generation, *, with_prompt: bool = True) -> float:
        """The cost of an answer; the prompt of several choices is paid once."""
        return self.of_tokens(answer.prompt_tokens if with_prompt else 0, answer.completion_tokens)

    def of_tokens(self, prompt: int, completion: int = 0) -> float:
        """The cost of so many tokens."""
        return (prompt * self.prompt + completion * self.completion) / 1e6


def read_price(text: str) -> Price:
    """A price from ``IN,OUT``. Raises InputError."""
    try:
        prompt, completion = (float(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(
            f"price must be IN,OUT or MODEL=IN,OUT per million tokens, for example 0.10,0.40; got {text!r}"
        ) from error
    if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
        raise InputError(f"price must not be negative or infinite; got {text!r}")
    return Price(prompt, completion)


def read_prices(texts: Iterable[str], models: Sequence[str]) -> dict[str, Price]:
    """Prices from ``IN,OUT`` (every model) or ``MODEL=IN,OUT`` texts. Raises InputError."""
    out: dict[str, Price] = {}
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        if equals and name not in models:
            raise InputError(f"price: {name!r} is not among the served models. {did_you_mean(name, models)}")
        price = read_price(numbers)
        for model in [name] if equals else models:
            out[model] = price
    return out


@dataclass(eq=False)
class Use:
    """How many hold an engine at the moment; ``on_idle`` is called when the last one lets go. Belongs to the event loop."""

    count: int = 0
    on_idle: Callable[[], object] | None = None

    def begin(self) -> None:
        """One more."""
        self.count += 1

    def end(self) -> None:
        """One less."""
        self.count -= 1
        if not self.count and self.on_idle is not None:
            self.on_idle()


@dataclass(frozen=True)
class Served:
    """One model under the name that requests say.

    ``temperature`` and ``max_new_tokens`` hold when a request does not say: greedy for a model that is bound to a task (a
    promoted endpoint, weights tuned with a task prompt, a closed set of labels), OpenAI's 1.0 for the rest. ``count`` gives a prompt's
    tokens as the engine reads it (None: its tokenizer is not on this machine). ``gate`` is this model's own, when it has one.
    """

    name: str
    engine: Engine
    record: ModelRecord | None = None
    labels: tuple[str, ...] = ()
    price: Price = Price()
    temperature: float = 1.0
    max_new_tokens: int = 256
    tokenizer: Path | None = None
    count: Counter | None = None
    most_tokens: int = 0
    gate: Gate | None = None
    use: Use = field(default_factory=Use, compare=False, repr=False)

    @property
    def context_length(self) -> int:
        """Tokens that it reads at once, as the operator or else the engine says; 0 when neither does."""
        return self.most_tokens or self.engine.info.context_length

    def as_dict(self) -> dict[str, Any]:
        """An entry of /v1/models: OpenAI's four fields, and exactly what answers."""
        info = self.engine.info
        return {
            "id": self.name,
            "object": "model",
            "created": _unix(self.record.created_at if self.record else ""),
            "owned_by": "luthier",
            "kind": self.record.kind
            if self.record
            else next((kind for kind in ("knowledge_base", "database") if kind in dict(info.meta)), ""),
            "engine": info.engine,
            "capabilities": sorted(info.capabilities),
            "parameters": sorted(info.parameters),
            "context_length": self.context_length,
            "labels": list(self.labels),
            "model_digest": info.model_digest,
            "base_digest": info.base_digest,
            "template_digest": info.template_digest,
            "prompt_digest": info.prompt_digest,
            "default_temperature": self.temperature,
        }


def serve_as(name: str, engine: Engine, store: Store, price: Price, *, stored: str = "") -> Served:
    """The Served for an open engine; ``stored`` is the model's name in the store when it is served under another.

    A name that the store does not know (``fake``, ``openai:...``) has no record.
    """
    try:
        record = find(store, stored or name)
    except NotFoundError:
        record = None
    labels, count = engine.info.labels, getattr(engine, "count_tokens", None)
    if record is not None:
        count = count or prompt_counter(store, record, _rewriting(engine))
        labels = labels or labels_of(store, record)
        engine = answer_with_labels(engine, labels, count)
    bound = bool(
        labels or engine.info.answers or engine.info.prompt_digest or (record is not None and record.kind == "endpoint")
    )
    most = record.meta.get("max_new_tokens") if record is not None else None
    return Served(
        name=name,
        engine=engine,
        record=record,
        labels=labels,
        price=price,
        temperature=0.0 if bound else 1.0,
        max_new_tokens=most if isinstance(most, int) and most > 0 else 256,
        tokenizer=tokenizer_folder(store, record) if record is not None else None,
        count=count,
    )


def _rewriting(engine: Engine) -> Engine:
    """The strategy in ``engine`` that changes prompts, or ``engine``."""
    inner: Engine | None = engine
    while inner is not None and not hasattr(inner, "rewrite"):
        inner = getattr(inner, "inner", None)
    return inner or engine


def size_of(prompt: Prompt) -> int:
    """Bytes of a prompt's text."""
    if isinstance(prompt, str):
        return len(prompt.encode("utf-8", "surrogatepass"))
    return sum(len(message.content.encode("utf-8", "surrogatepass")) for message in prompt)


def most_tokens_of(prompt: Prompt) -> int:
    """More tokens than a prompt can have in any tokenizer (none makes more of a text than it has bytes), for next to nothing."""
    turns = 0 if isinstance(prompt, str) else len(prompt)
    return size_of(prompt) + _TEMPLATE_TOKENS + _TURN_TOKENS * turns


def count_or_estimate(served: Served, prompt: Prompt) -> tuple[int, bool]:
    """(tokens of a prompt, whether they were counted). Without its tokenizer, a token is taken to be four bytes."""
    counted = served.count(prompt) if served.count is not None else 0
    if counted:
        return counted, True
    return math.ceil(size_of(prompt) / _BYTES_PER_TOKEN), False


def _unix(iso: str) -> int:
    try:
        return int(datetime.fromisoformat(iso).timestamp())
    except ValueError:
        return 0
