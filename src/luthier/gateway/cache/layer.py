"""The cache layer: the answer to the same question, or to one that means the same, is given again instead of being computed again.

It stands between routes and the engine, so that it knows exactly what would answer. An answer is kept only after its request has ended well: not one
that failed, was cut off, calls a tool, lacks the form that was asked for, or was stopped by a guardrail.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from luthier.core.engine import Generation, Vectors
from luthier.core.errors import InputError, LuthierError, StoreError
from luthier.gateway.api.wire import RequestError
from luthier.gateway.cache.config import CacheConfig, Policy, open_cache_store, open_embedder
from luthier.gateway.cache.key import Control, fixed, keepable, key_of, partition_of, repeatable
from luthier.gateway.cache.semantic import Embedder, SemanticIndex
from luthier.gateway.calls import Piece
from luthier.gateway.exchange import Exchange
from luthier.gateway.layers import Ask, Layer, Question
from luthier.gateway.targets.gate import SHADOW
from luthier.store.cache import CacheStore, Entry, pack, unpack

if TYPE_CHECKING:
    from luthier.gateway.targets.served import Served
    from luthier.store.database import Store

Result = TypeVar("Result")

COUNTS = ("exact", "semantic", "miss", "bypass", "shared", "kept", "not_kept", "dropped", "errors")
_MOST_PENDING = 1_000
_PAUSE_S = 5.0
_BIG_INDEX = 2_000

logger = logging.getLogger("luthier.gateway")


@dataclass(slots=True)
class Plan:
    """What is done about one question. ``partition`` and ``text`` are there when it may be answered by meaning, ``vector`` once it is known."""

    question: Question
    policy: Policy
    control: Control
    key: str
    partition: str = ""
    text: str = ""
    vector: Vectors | None = None

    @property
    def whose(self) -> tuple[str, str]:
        """(tenant, model) that an entry belongs to."""
        served = self.question.served
        return self.question.exchange.caller.tenant, served.name if served is not None else ""


@dataclass(frozen=True, slots=True)
class Hit:
    """An answer that was found. ``how``: ``exact`` or ``semantic``, with the cosine."""

    how: str
    age_s: float
    answers: tuple[Generation, ...]
    cosine: float | None = None


@dataclass
class Cache:
    """A server's cache. ``counts`` are of questions: answered ``exact`` or ``semantic`` (``shared`` of them by one that was just being answered),
    ``miss``, ``bypass``; and of answers ``kept``, ``not_kept``, ``dropped`` (they came faster than the store takes them). Belongs to the event
    loop; what it does in threads is safe there.
    """

    config: CacheConfig
    store: CacheStore
    embedder: Embedder | None = None
    run: Callable[[Callable[[], object]], object] = lambda task: task()
    clock: Callable[[], float] = time.time
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    flights: dict[str, asyncio.Future[tuple[Generation, ...] | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        semantic = [each.semantic for each in self.config.policies() if each.semantic is not None]
        self.index = SemanticIndex(max((each.max_entries for each in semantic), default=1))
        self._pending: dict[str, Entry] = {}
        self._flushing = False
        self._down_until = 0.0

    def plan(self, question: Question) -> Plan | None:
        """What to do about a question; None when the cache has nothing to do with it."""
        exchange = question.exchange
        policy, control = self.config.policy(exchange.model), Control.of(exchange.cache_control)
        drawn = not (policy.sampled or control.sampled or repeatable(question.sampling))
        if not policy or not (control.read or control.keep) or drawn:
            return None
        if exchange.priority == SHADOW or not fixed(question.prompts):
            return None
        plan = Plan(question, policy, control, key_of(question))
        if any(each.get("key") == plan.key[:16] for each in exchange.details.get("cache", ())):
            return None  # asked again because the answer was not good enough
        if policy.semantic is not None and self.embedder is not None:
            found = partition_of(question, words=policy.semantic.match == "words")
            if found is not None and self.embedder.reads(found[1]):
                plan.partition, plan.text = found
        return plan

    async def find(self, plan: Plan) -> Hit | None:
        """The kept answer to a question. Whatever fails here is as if nothing was found."""
        if not plan.control.read:
            return None
        try:
            return await self._exact(plan) or await self._semantic(plan)
        except LuthierError as error:
            self._failed(error)
            return None

    async def _exact(self, plan: Plan) -> Hit | None:
        exact = plan.policy.exact
        entry = await self._get(plan.key, plan) if exact is not None else None
        return None if exact is None or entry is None else self._hit(plan, entry, "exact", exact.ttl_s)

    async def _semantic(self, plan: Plan) -> Hit | None:
        semantic = plan.policy.semantic
        if semantic is None or not plan.partition or self.embedder is None:
            return None
        plan.vector = await self.embedder.embed(plan.text)
        if not self.store.local:
            mark = self.index.mark(plan.partition)
            self.index.add(plan.partition, *await self._in_thread(partial(self.store.vectors, plan.partition, mark)))
        look = partial(self.index.near, plan.partition, plan.vector, semantic.least_cosine)
        near = list(look()) if len(self.index) < _BIG_INDEX else await asyncio.to_thread(lambda: list(look()))
        for key, cosine in near:
            entry = await self._get(key, plan)
            if entry is None:
                self.index.drop(plan.partition, key)
                continue
            hit = self._hit(plan, entry, "semantic", semantic.ttl_s, cosine)
            if hit is not None:
                return hit
        return None

    def _hit(self, plan: Plan, entry: Entry, how: str, ttl_s: float, cosine: float | None = None) -> Hit | None:
        age_s = max(0.0, self.clock() - entry.made_at_s)
        oldest = ttl_s if plan.control.max_age_s is None else min(ttl_s, plan.control.max_age_s)
        return Hit(how, age_s, unpack(entry.data), cosine) if age_s <= oldest else None

    async def _get(self, key: str, plan: Plan) -> Entry | None:
        pending = self._pending.get(key)
        if pending is not None:
            return pending
        if self.store.local:
            return self.store.get(key, *plan.whose)
        return await self._in_thread(partial(self.store.get, key, *plan.whose))

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        if time.monotonic() < self._down_until:
            raise StoreError("the cache is left alone for a moment after it failed")
        return await asyncio.to_thread(work)

    def keep(self, plan: Plan, answers: tuple[Generation, ...], ended: Exchange) -> None:
        """Keep answers of a request that has ended, if it ended well."""
        if ended.error or _stopped_by_guardrails(ended) or not plan.control.keep:
            self.counts["not_kept"] += 1
            return
        policy = plan.policy
        ttls = [
            each.ttl_s
            for each in (policy.exact, policy.semantic if plan.vector is not None else None)
            if each is not None
        ]
        if not ttls:
            return
        try:
            data = pack(answers)
        except InputError:
            self.counts["not_kept"] += 1
            return
        vector = b"" if plan.vector is None else np.asarray(plan.vector, np.float32).tobytes()
        partition = plan.partition if vector else ""
        entry = Entry(plan.key, *plan.whose, self.clock(), max(ttls), data, partition, vector)
        if self.store.local:
            self.store.put([entry])
        elif len(self._pending) >= _MOST_PENDING:
            self.counts["dropped"] += 1
            return
        else:
            self._pending[entry.key] = entry
            if not self._flushing:
                self._flushing = True
                self.run(self._flush)
        if partition:
            self.index.add(partition, [(entry.key, vector)])
        self.counts["kept"] += 1

    def _flush(self) -> None:
        """Write what waits, in a thread."""
        while True:
            batch = list(self._pending.values())
            if not batch:
                self._flushing = False
                if not self._pending:  # else one came in between, and nobody was told to write it
                    return
                self._flushing = True
                continue
            try:
                self.store.put(batch)
            except LuthierError as error:
                self.counts["dropped"] += len(batch)
                self._failed(error)
            except Exception:  # a fault of ours must not end the writing of all that comes after
                self.counts["dropped"] += len(batch)
                logger.exception("answers could not be written to the cache")
            for each in batch:
                if self._pending.get(each.key) is each:
                    del self._pending[each.key]

    def _failed(self, error: LuthierError) -> None:
        self.counts["errors"] += 1
        if isinstance(error, StoreError) and time.monotonic() >= self._down_until:
            self._down_until = time.monotonic() + _PAUSE_S
            logger.error("requests go on without the cache for %g s: %s", _PAUSE_S, error)

    def clear(self, tenant: str | None = None, model: str | None = None) -> int:
        """Forget everything, or what belongs to a tenant or a model; returns how many entries. Blocks."""
        self._pending.clear()
        if tenant is None and model is None:
            self.index.clear()
        return self.store.clear(tenant, model)

    def state(self) -> dict[str, Any]:
        """Counts for /health."""
        looked = self.counts["exact"] + self.counts["semantic"] + self.counts["miss"]
        rate = (looked - self.counts["miss"]) / looked if looked else 0.0
        return {**self.counts, "hit_rate": round(rate, 4), "vectors": len(self.index)}

    def close(self) -> None:
        """Write what waits and end. Safe to call twice."""
        if self._pending and not self._flushing:
            self._flush()
        if self.embedder is not None:
            self.embedder.close()
            self.embedder = None
        self.store.close()


def open_cache(
    config: CacheConfig, served: Mapping[str, Served], store: Store, run: Callable[[Callable[[], object]], object]
) -> Cache:
    """The cache of a configuration; ``run`` begins a task in a thread. Loads the embedder, when there is to be one and it is not served.

    Raises InputError, NotFoundError or StoreError for what cannot be opened.
    """
    embedder = open_embedder(config, served, store)
    try:
        return Cache(config, open_cache_store(config, store), embedder, run)
    except BaseException:
        if embedder is not None:
            embedder.close()
        raise


def cached(cache: Cache) -> Layer:
    """The layer."""

    async def layer(question: Question, ask: Ask) -> AsyncIterator[Piece]:
        exchange = question.exchange
        plan = cache.plan(question)
        if plan is None:
            _tell(cache, exchange, "bypass")
            async for piece in ask(question):
                yield piece
            return
        hit = await _found_or_shared(cache, plan)
        if hit is None:
            async with aclosing(cast(Any, _asked(cache, plan, ask))) as pieces:
                async for piece in pieces:
                    yield piece
            return
        _tell(cache, exchange, hit.how, hit, plan.key)
        for index, answer in enumerate(hit.answers):
            yield Piece(index, answer.text, answer, answer.tokens)

    return layer


async def _found_or_shared(cache: Cache, plan: Plan) -> Hit | None:
    """A kept answer, or that of the same question which is being answered now; None when this one is to be asked."""
    while True:
        hit = await cache.find(plan)
        flight = cache.flights.get(plan.key)
        if hit is not None or flight is None or not plan.control.read or not cache.config.single_flight:
            break
        await asyncio.wait([flight])
        if flight.cancelled():  # who asked left in the middle: perhaps another one asks now, or this one does
            continue
        answers = flight.result()
        if answers is None:  # it failed, or its answer is not to be used again
            return None
        cache.counts["shared"] += 1
        return Hit("exact", 0.0, answers)
    if hit is None and plan.control.only_cached:
        raise RequestError(
            "no answer to this is kept, and only-if-cached asks for no other", status=504, code="not_cached"
        )
    return hit


async def _asked(cache: Cache, plan: Plan, ask: Ask) -> AsyncIterator[Piece]:
    """The pieces of an answer that is not kept yet."""
    question = plan.question
    _tell(cache, question.exchange, "miss", key=plan.key)
    made: dict[int, Generation] = {}
    flight: asyncio.Future[tuple[Generation, ...] | None] = asyncio.get_running_loop().create_future()
    if cache.config.single_flight and plan.key not in cache.flights:
        cache.flights[plan.key] = flight
    try:
        async with aclosing(cast(Any, ask(question))) as pieces:
            async for piece in pieces:
                if piece.generation is not None:
                    made[piece.index] = piece.generation
                    if (
                        len(made) == len(question.prompts) * question.n
                    ):  # now: who reads may not come back after the last piece
                        flight.set_result(_to_keep(cache, plan, made))
                yield piece
    except LuthierError:
        if not flight.done():
            flight.set_result(None)
        raise
    finally:
        flight.cancel()  # does nothing to one that has its result
        if cache.flights.get(plan.key) is flight:
            del cache.flights[plan.key]


def _to_keep(cache: Cache, plan: Plan, made: Mapping[int, Generation]) -> tuple[Generation, ...] | None:
    """Whole answers in their order, kept when the request has ended well; None of those that must not be used again."""
    question, answers = plan.question, tuple(made[index] for index in sorted(made))
    if not keepable(question, answers):
        cache.counts["not_kept"] += 1
        return None
    question.exchange.finishers.append(partial(cache.keep, plan, answers))
    return answers


def _tell(cache: Cache, exchange: Exchange, how: str, hit: Hit | None = None, key: str = "") -> None:
    cache.counts[how] += 1
    exchange.cache = how if hit is not None else ""
    exchange.headers["X-Luthier-Cache"] = f"hit {how}" if hit is not None else how
    exchange.headers.pop("Age", None)
    if how == "bypass":
        return
    said: dict[str, Any] = {"found": how} | ({"key": key[:16]} if key else {})
    if hit is not None:
        exchange.headers["Age"] = str(int(hit.age_s))
        said |= {"age_s": round(hit.age_s, 3)} | ({} if hit.cosine is None else {"cosine": round(hit.cosine, 4)})
    exchange.say("cache", **said)


def _stopped_by_guardrails(ended: Exchange) -> bool:
    """Whether a guardrail did more than to mask or flag something."""
    return any(each.get("action") not in ("mask", "flag") for each in ended.details.get("guardrails", ()))
