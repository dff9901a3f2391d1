"""Kept answers in Redis, shared by servers on several machines. Redis itself drops what is over (each key's TTL) or too much (``maxmemory``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import orjson

from luthier.core.errors import InputError, MissingExtraError, StoreError
from luthier.store.cache import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

_PREFIX = "luthier:cache"
_SLOWEST_S = 0.5
_MOST_VECTORS = 10_000
_SCAN = 1_000


class RedisCache:
    """Entries under ``luthier:cache:TENANT:MODEL:KEY`` (tenant and model as digests), vectors in one stream a partition."""

    local = False

    def __init__(self, url: str, *, client: Redis | None = None, clock: Callable[[], float] = time.time) -> None:
        """Opens nothing yet. Raises MissingExtraError without the package, InputError for a URL that is none."""
        self._clock = clock
        self._redis: Any = client if client is not None else _connect(url)

    def get(self, key: str, tenant: str, model: str) -> Entry | None:
        """The entry of this key, when it is this tenant's and its time is not over."""
        with _errors():
            data = self._redis.get(_name(tenant, model, key))
        if data is None:
            return None
        length = int.from_bytes(data[:4], "big")
        whose, which, made_at_s, ttl_s = orjson.loads(data[4 : 4 + length])
        entry = Entry(key, whose, which, made_at_s, ttl_s, data[4 + length :])
        return entry if (whose, which) == (tenant, model) and entry.good(self._clock()) else None

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep entries."""
        with _errors():
            pipeline = self._redis.pipeline(transaction=False)
            for each in entries:
                ttl_ms = max(1, round(each.ttl_s * 1000))
                head = orjson.dumps([each.tenant, each.model, each.made_at_s, each.ttl_s])
                name = _name(each.tenant, each.model, each.key)
                pipeline.set(name, len(head).to_bytes(4, "big") + head + each.data, px=ttl_ms)
                if each.partition:
                    stream = f"{_PREFIX}:vectors:{each.partition}"
                    pipeline.xadd(stream, {b"k": each.key, b"v": each.vector}, maxlen=_MOST_VECTORS, approximate=True)
                    pipeline.pexpire(stream, ttl_ms)
            pipeline.execute()

    def vectors(self, partition: str, after: str) -> tuple[list[tuple[str, bytes]], str]:
        """What was put into a partition, by whom ever, after a mark."""
        with _errors():
            rows = self._redis.xrange(f"{_PREFIX}:vectors:{partition}", min=f"({after}" if after else "-")
        found = [(fields[b"k"].decode(), fields[b"v"]) for _, fields in rows]
        return found, rows[-1][0].decode() if rows else after

    def clear(self, tenant: str | None = None, model: str | None = None) -> int:
        """Drop all entries, or those of a tenant or a model; returns how many."""
        gone = 0
        with _errors():
            for names in self._names(tenant, model):
                gone += self._redis.delete(*names)
            if tenant is None and model is None:
                for stream in self._redis.scan_iter(match=f"{_PREFIX}:vectors:*", count=_SCAN):
                    self._redis.delete(stream)
        return gone

    def stats(self) -> dict[str, Any]:
        """Counts. Redis is walked through, so this takes its time."""
        groups: dict[tuple[str, str], list[int]] = {}
        oldest: float | None = None
        with _errors():
            for names in self._names(None, None):
                for data in self._redis.mget(names):
                    if data is None:
                        continue
                    tenant, model, made_at_s, _ = orjson.loads(data[4 : 4 + int.from_bytes(data[:4], "big")])
                    group = groups.setdefault((tenant, model), [0, 0])
                    group[0] += 1
                    group[1] += len(data)
                    oldest = made_at_s if oldest is None else min(oldest, made_at_s)
        by_model = [
            {"tenant": tenant, "model": model, "entries": count, "size_bytes": size}
            for (tenant, model), (count, size) in sorted(groups.items())
        ]
        return {
            "entries": sum(each["entries"] for each in by_model),
            "size_bytes": sum(each["size_bytes"] for each in by_model),
            "oldest_s": None if oldest is None else round(self._clock() - oldest, 3),
            "by_model": by_model,
        }

    def trim(self) -> None:
        """Redis does it."""

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _names(self, tenant: str | None, model: str | None) -> Iterator[list[bytes]]:
        """The names of entries, some hundreds at a time."""
        parts = ["*" if each is None else _short(each) for each in (tenant, model)]
        batch: list[bytes] = []
        for name in self._redis.scan_iter(match=f"{_PREFIX}:{parts[0]}:{parts[1]}:*", count=_SCAN):
            batch.append(name)
            if len(batch) == _SCAN:
                yield batch
                batch = []
        if batch:
            yield batch


def _name(tenant: str, model: str, key: str) -> str:
    return f"{_PREFIX}:{_short(tenant)}:{_short(model)}:{key}"


def _short(name: str) -> str:
    return sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _connect(url: str) -> Any:
    try:
        import redis
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the cache is to be kept in Redis, whose client is not installed", hint="pip install 'luthier[redis]'"
        ) from error
    try:
        return redis.Redis.from_url(url, socket_timeout=_SLOWEST_S, socket_connect_timeout=_SLOWEST_S)
    except ValueError as error:
        raise InputError(
            "the Redis URL must be like redis://host:6379/0 or rediss://user:password@host:6379/0"
        ) from error


@contextmanager
def _errors() -> Iterator[None]:
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise StoreError(
            f"the cache in Redis cannot be used: {type(error).__name__}: {error}", hint="look at the Redis server"
        ) from error
