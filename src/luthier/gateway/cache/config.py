"""The section ``cache`` of the gateway's configuration, and opening what it says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from luthier.core.errors import InputError
from luthier.gateway.cache.semantic import Embedder
from luthier.store.cache import FILE_NAME, CacheStore, MemoryCache, SqliteCache

if TYPE_CHECKING:
    from luthier.gateway.targets.served import Served
    from luthier.store.database import Store

DEFAULT_COSINE = {"meaning": 0.95, "words": 0.85}
MAX_ENTRIES = 10_000
MAX_MB = 256.0


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("exact", "semantic", mode="before", check_fields=False)
    @classmethod
    def _switched(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value


class Exact(_Section):
    """The same question, to the letter."""

    ttl_s: float = Field(default=3600.0, gt=0)


class Semantic(_Section):
    """A question whose last turn means the same, everything else being equal. ``match``: ``meaning`` leaves it to the vectors,
    only numbers and denials must be equal; ``words`` lets no more than endings and small words differ. ``threshold`` is the least cosine; left out, it
    is 0.95 for meaning and 0.85 for words (benchmarks/semantic_cache.py)."""

    model: str = "minilm-l6"
    match: Literal["meaning", "words"] = "meaning"
    threshold: float | None = Field(default=None, gt=0, le=1)
    ttl_s: float = Field(default=3600.0, gt=0)
    max_entries: int = Field(default=10_000, ge=1, le=1_000_000)

    @property
    def least_cosine(self) -> float:
        """The threshold, or what is usual for ``match``."""
        return DEFAULT_COSINE[self.match] if self.threshold is None else self.threshold


class SemanticChange(_Section):
    """What a route may say otherwise."""

    match: Literal["meaning", "words"] | None = None
    threshold: float | None = Field(default=None, gt=0, le=1)
    ttl_s: float | None = Field(default=None, gt=0)


class RouteCache(_Section):
    """What holds for one route or model; what it does not say is as for all."""

    exact: Exact | None = None
    semantic: SemanticChange | None = None
    sampled: bool | None = None


@dataclass(frozen=True)
class Policy:
    """What holds for one name that is asked. ``sampled``: drawn answers without a seed are kept, too."""

    exact: Exact | None = None
    semantic: Semantic | None = None
    sampled: bool = False

    def __bool__(self) -> bool:
        return self.exact is not None or self.semantic is not None


class CacheConfig(_Section):
    """``exact`` and ``semantic`` are off unless they are there (``true`` is all defaults). ``store``: ``memory`` of this process, ``sqlite`` in the home folder,
    ``redis`` at the URL in the environment variable ``redis_url_env``, which bounds itself. ``routes`` says otherwise for routes and models by name."""

    exact: Exact | None = None
    semantic: Semantic | None = None
    sampled: bool = False
    store: Literal["memory", "sqlite", "redis"] = "memory"
    max_entries: int | None = Field(default=None, ge=1)
    max_mb: float | None = Field(default=None, gt=0)
    redis_url_env: str = "LUTHIER_REDIS_URL"
    single_flight: bool = True
    routes: Mapping[str, RouteCache] = Field(default_factory=dict)
    _policies: dict[str, Policy] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _bounds(self) -> CacheConfig:
        if self.store == "redis" and (self.max_entries, self.max_mb) != (None, None):
            raise ValueError(
                "max_entries and max_mb are not for store: redis, which bounds itself (maxmemory, maxmemory-policy)"
            )
        return self

    def __bool__(self) -> bool:
        return any(self.policies())

    def policies(self) -> Iterator[Policy]:
        """What holds for all, and for each route that says otherwise."""
        yield self.policy("")
        for name in self.routes:
            yield self.policy(name)

    def policy(self, name: str) -> Policy:
        """What holds for a route or model."""
        if name not in self.routes:
            name = ""
        found = self._policies.get(name)
        if found is None:
            found = self._policies[name] = self._resolved(self.routes.get(name, RouteCache()))
        return found

    def _resolved(self, route: RouteCache) -> Policy:
        said = route.model_fields_set
        semantic = self.semantic
        if "semantic" in said:
            changes = None if route.semantic is None else route.semantic.model_dump(exclude_none=True)
            known = {} if self.semantic is None else self.semantic.model_dump(exclude_none=True)
            semantic = None if changes is None else Semantic(**known | changes)
        return Policy(
            exact=route.exact if "exact" in said else self.exact,
            semantic=semantic,
            sampled=self.sampled if route.sampled is None else route.sampled,
        )


def open_cache_store(config: CacheConfig, store: Store) -> CacheStore:
    """Where entries are kept. Raises InputError when the Redis URL is not set, MissingExtraError without its client."""
    if config.store == "redis":
        from luthier.store.redis_cache import RedisCache

        url = os.environ.get(config.redis_url_env)
        if not url:
            raise InputError(
                f"cache.redis_url_env names the environment variable {config.redis_url_env!r}, which is not set",
                hint=f"export {config.redis_url_env}=redis://localhost:6379/0",
            )
        return RedisCache(url)
    entries, size = config.max_entries or MAX_ENTRIES, config.max_mb or MAX_MB
    if config.store == "sqlite":
        return SqliteCache(store.home.root / FILE_NAME, entries, size)
    return MemoryCache(entries, size)


def open_embedder(config: CacheConfig, served: Mapping[str, Served], store: Store) -> Embedder | None:
    """The embedder that the configuration needs: a served one, or opened once. Raises NotFoundError, and UnsupportedError for a model that embeds nothing."""
    named = [each.semantic.model for each in config.policies() if each.semantic is not None]
    if not named:
        return None
    known = served.get(named[0])
    if known is not None:
        return Embedder(known.engine, owned=False, tokenizer=known.tokenizer)
    from luthier.gateway.targets.served import Price, serve_as
    from luthier.strategies._load import load

    engine = load(named[0], store=store)
    try:
        return Embedder(engine, owned=True, tokenizer=serve_as(named[0], engine, store, Price()).tokenizer)
    except BaseException:
        engine.close()
        raise
