"""Kept answers: in memory, in a SQLite file of the home, or in Redis (``store.redis_cache``). What is lost here is only computed again.

An entry belongs to a tenant and a model and ends after ``ttl_s``. Entries that may be found by meaning have a vector, and a partition: the digest of
all that must be equal besides.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import orjson

from luthier.core.document import Chunk, Citation, Hit
from luthier.core.engine import Generation, TokenLogprob
from luthier.core.errors import InputError, StoreError

FILE_NAME = "cache.db"
_SCHEMA = 1
_OVERHEAD_BYTES = 400  # of an entry in memory, besides its data


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept answer. ``data`` are its generations (``pack``); ``made_at_s`` is Unix time."""

    key: str
    tenant: str
    model: str
    made_at_s: float
    ttl_s: float
    data: bytes
    partition: str = ""
    vector: bytes = b""  # float32

    @property
    def size_bytes(self) -> int:
        """What it takes, about."""
        return len(self.data) + len(self.vector) + _OVERHEAD_BYTES

    def good(self, at_s: float) -> bool:
        """Whether its time is not over."""
        return at_s < self.made_at_s + self.ttl_s


class CacheStore(Protocol):
    """Where entries are kept. Safe from several threads; may raise StoreError when it cannot be reached."""

    local: bool
    """Whether a look takes no longer than a function call, so that an event loop may do it itself."""

    def get(self, key: str, tenant: str, model: str) -> Entry | None:
        """The entry of this key, when it is this tenant's and its time is not over; its ``partition`` and ``vector`` may be left out."""

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep entries, in the place of those with the same keys."""

    def vectors(self, partition: str, after: str) -> tuple[list[tuple[str, bytes]], str]:
        """(key, vector) pairs of a partition that came after the mark ``after`` ("" is the beginning), and the new mark.

        A store that only its own process writes has nothing to tell.
        """

    def clear(self, tenant: str | None = None, model: str | None = None) -> int:
        """Drop all entries, or those of a tenant or a model; returns how many."""

    def stats(self) -> dict[str, Any]:
        """``entries``, ``size_bytes``, ``oldest_s`` and ``by_model``: mappings with ``tenant``, ``model``, ``entries``, ``size_bytes``."""

    def trim(self) -> None:
        """Drop what is over or too much. Called about once a minute."""

    def close(self) -> None:
        """End."""


class MemoryCache:
    """Entries of this process, the least used dropped first."""

    local = True

    def __init__(self, max_entries: int, max_mb: float, *, clock: Callable[[], float] = time.time) -> None:
        self._most = max_entries
        self._most_bytes = int(max_mb * 1e6)
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, tenant: str, model: str) -> Entry | None:
        """The entry of this key, when it is this tenant's and its time is not over."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or (entry.tenant, entry.model) != (tenant, model):
                return None
            if not entry.good(self._clock()):
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep entries; one that is larger than all that may be kept is not."""
        with self._lock:
            for entry in entries:
                self._drop(entry.key)
                if entry.size_bytes > self._most_bytes:
                    continue
                self._entries[entry.key] = entry
                self._bytes += entry.size_bytes
            while self._entries and (len(self._entries) > self._most or self._bytes > self._most_bytes):
                self._drop(next(iter(self._entries)))

    def vectors(self, partition: str, after: str) -> tuple[list[tuple[str, bytes]], str]:
        """Nothing: who put an entry here knows its vector."""
        return [], after

    def clear(self, tenant: str | None = None, model: str | None = None) -> int:
        """Drop all entries, or those of a tenant or a model; returns how many."""
        with self._lock:
            gone = [
                key
                for key, each in self._entries.items()
                if tenant in (None, each.tenant) and model in (None, each.model)
            ]
            for key in gone:
                self._drop(key)
            return len(gone)

    def stats(self) -> dict[str, Any]:
        """Counts."""
        groups: dict[tuple[str, str], list[int]] = {}
        with self._lock:
            for each in self._entries.values():
                group = groups.setdefault((each.tenant, each.model), [0, 0])
                group[0] += 1
                group[1] += each.size_bytes
            oldest = min((each.made_at_s for each in self._entries.values()), default=None)
        by_model = [
            {"tenant": tenant, "model": model, "entries": count, "size_bytes": size}
            for (tenant, model), (count, size) in sorted(groups.items())
        ]
        return _stats(by_model, oldest, self._clock())

    def trim(self) -> None:
        """Drop what is over."""
        at_s = self._clock()
        with self._lock:
            for key in [key for key, each in self._entries.items() if not each.good(at_s)]:
                self._drop(key)

    def close(self) -> None:
        """Nothing to do."""

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size_bytes


class SqliteCache:
    """Entries in a SQLite file beside the database, shared by the processes of this home; the file may be deleted at any time when none runs.

    The oldest are dropped first. A crash of the machine may lose the newest entries, nothing else.
    """

    local = False

    def __init__(
        self, path: Path, max_entries: int | None, max_mb: float | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._most = max_entries
        self._most_bytes = None if max_mb is None else int(max_mb * 1e6)
        self._clock = clock
        self._lock = threading.Lock()
        self._connection = self._open()

    def get(self, key: str, tenant: str, model: str) -> Entry | None:
        """The entry of this key, when it is this tenant's and its time is not over."""
        rows = self._run(
            "SELECT tenant, model, made_at_s, ttl_s, data FROM entries WHERE key = ? AND tenant = ? AND model = ?",
            (key, tenant, model),
        )
        entry = Entry(key, *rows[0]) if rows else None
        return entry if entry is not None and entry.good(self._clock()) else None

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep entries in one transaction."""
        rows = [
            (each.key, each.tenant, each.model, each.made_at_s, each.ttl_s, each.data, each.partition, each.vector)
            for each in entries
        ]
        self._run_many(
            "INSERT OR REPLACE INTO entries (key, tenant, model, made_at_s, ttl_s, data, partition, vector) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )

    def vectors(self, partition: str, after: str) -> tuple[list[tuple[str, bytes]], str]:
        """What was put into a partition, by whom ever, after a mark."""
        rows = self._run(
            "SELECT id, key, vector FROM entries WHERE partition = ? AND id > ? ORDER BY id",
            (partition, int(after or 0)),
        )
        return [(key, vector) for _, key, vector in rows], str(rows[-1][0]) if rows else after

    def clear(self, tenant: str | None = None, model: str | None = None) -> int:
        """Drop all entries, or those of a tenant or a model; returns how many."""
        return self._change(
            "DELETE FROM entries WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR model = ?2)", (tenant, model)
        )

    def stats(self) -> dict[str, Any]:
        """Counts."""
        rows = self._run(
            "SELECT tenant, model, count(*), sum(length(data) + length(vector) + ?) FROM entries GROUP BY tenant, model",
            (_OVERHEAD_BYTES,),
        )
        oldest = self._run("SELECT min(made_at_s) FROM entries", ())[0][0]
        by_model = [dict(zip(("tenant", "model", "entries", "size_bytes"), row, strict=True)) for row in rows]
        return _stats(by_model, oldest, self._clock())

    def trim(self) -> None:
        """Drop what is over, and the oldest of what is too much."""
        self._change("DELETE FROM entries WHERE made_at_s + ttl_s <= ?", (self._clock(),))
        for limit, amount in (
            (self._most, "1"),
            (self._most_bytes, f"length(data) + length(vector) + {_OVERHEAD_BYTES}"),
        ):
            if limit is not None:
                self._change(
                    f"DELETE FROM entries WHERE id IN (SELECT id FROM (SELECT id, sum({amount}) OVER "
                    "(ORDER BY id DESC) AS total FROM entries) WHERE total > ?)",
                    (limit,),
                )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))  # answers are nobody else's business
            connection = sqlite3.connect(self._path, timeout=5.0, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            if connection.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA:
                connection.executescript(_CREATE)
        except (sqlite3.Error, OSError) as error:
            raise self._refused(error) from error
        return connection

    def _run(self, statement: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._refused(error) from error

    def _change(self, statement: str, values: Sequence[Any]) -> int:
        with self._lock:
            try:
                return self._connection.execute(statement, values).rowcount
            except sqlite3.Error as error:
                raise self._refused(error) from error

    def _run_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(statement, rows)
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise self._refused(error) from error

    def _refused(self, error: Exception) -> StoreError:
        return StoreError(
            f"the cache {self._path} refused: {error}",
            hint="delete the file when no server runs: it holds nothing else",
        )


_CREATE = f"""
BEGIN IMMEDIATE;
DROP TABLE IF EXISTS entries;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, model TEXT NOT NULL, made_at_s REAL NOT NULL, ttl_s REAL NOT NULL,
    data BLOB NOT NULL, partition TEXT NOT NULL, vector BLOB NOT NULL
);
CREATE INDEX entries_partition ON entries (partition) WHERE partition != '';
CREATE INDEX entries_end ON entries (made_at_s + ttl_s);
PRAGMA user_version = {_SCHEMA};
COMMIT;
"""


def _stats(by_model: list[dict[str, Any]], oldest: float | None, at_s: float) -> dict[str, Any]:
    return {
        "entries": sum(each["entries"] for each in by_model),
        "size_bytes": sum(each["size_bytes"] for each in by_model),
        "oldest_s": None if oldest is None else round(at_s - oldest, 3),
        "by_model": by_model,
    }


def pack(answers: Sequence[Generation]) -> bytes:
    """Answers as bytes: what a client may see of them. Raises InputError for text that is no valid Unicode."""
    rows = []
    for each in answers:
        tokens = [
            [token.data.hex(), token.logprob, [[data.hex(), logprob] for data, logprob in token.top]]
            for token in each.tokens
        ]
        rows.append(
            [
                each.text,
                each.finish_reason,
                each.prompt_tokens,
                each.completion_tokens,
                each.logprob,
                each.reasoning,
                tokens,
                *([_from_documents(each)] if each.steps else []),
            ]
        )
    try:
        return orjson.dumps(rows)
    except TypeError as error:  # half of a surrogate pair
        raise InputError("an answer that is no valid Unicode is not kept") from error


def unpack(data: bytes) -> tuple[Generation, ...]:
    """The answers that were packed; they took no time."""
    out = []
    for text, reason, prompt_tokens, completion_tokens, logprob, reasoning, tokens, *documents in orjson.loads(data):
        read = tuple(
            TokenLogprob(bytes.fromhex(data), each, tuple((bytes.fromhex(other), value) for other, value in top))
            for data, each, top in tokens
        )
        made = Generation(text, (), (), reason, logprob=logprob, reasoning=reasoning, tokens=read)
        made = replace(made, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        out.append(_with_documents(made, documents[0]) if documents else made)
    return tuple(out)


def _from_documents(answer: Generation) -> dict[str, Any]:
    """What an answer from documents was shown and rests on."""
    cited = [[each.number, _plain_hit(each.hit), each.quote] for each in answer.citations]
    return {
        "hits": [_plain_hit(hit) for hit in answer.hits],
        "citations": cited,
        "steps": [dict(step) for step in answer.steps],
    }


def _plain_hit(hit: Hit) -> dict[str, Any]:
    plain = {each.name: getattr(hit, each.name) for each in fields(Hit)}
    chunk = {each.name: getattr(hit.chunk, each.name) for each in fields(Chunk)}
    return plain | {"chunk": chunk, "scores": dict(hit.scores), "meta": dict(hit.meta)}


def _hit(plain: Mapping[str, Any]) -> Hit:
    chunk = dict(plain["chunk"])
    for name in ("blocks", "headings", "pages"):
        chunk[name] = tuple(chunk[name]) if chunk[name] is not None else None
    return Hit(**{**plain, "chunk": Chunk(**chunk)})


def _with_documents(answer: Generation, plain: Mapping[str, Any]) -> Generation:
    return replace(
        answer,
        hits=tuple(map(_hit, plain["hits"])),
        citations=tuple(Citation(number, _hit(hit), quote) for number, hit, quote in plain["citations"]),
        steps=tuple(plain["steps"]),
    )
