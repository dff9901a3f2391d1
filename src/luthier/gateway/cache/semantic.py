"""Answers by meaning: the last turn of a conversation as a vector, and the nearest kept one among those of which everything else is equal."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.engine import EMBED, Engine, Vectors, require
from luthier.core.errors import EngineError, LuthierError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_AT_ONCE = 32
_MOST_WAITING = 256
_LONGEST = 2_000
_ADDED_TOKENS = 2

logger = logging.getLogger("luthier.gateway")


class Embedder:
    """One embedding engine for all requests: texts that come while it works go in together next time.

    ``owned``: it was opened for this and is closed with it. ``tokenizer``: its tokenizer.json, where that is on this machine.
    """

    def __init__(self, engine: Engine, *, owned: bool, tokenizer: Path | None = None) -> None:
        """Raises UnsupportedError for a model that embeds nothing."""
        require(engine, EMBED)
        self.engine = engine
        self._owned = owned
        self._tokenizer_path = tokenizer
        self._waiting: queue.Queue[tuple[str, asyncio.Future[Vectors], asyncio.AbstractEventLoop] | None] = (
            queue.Queue()
        )
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="luthier-embedder", daemon=True)
        self._thread.start()

    def reads(self, text: str) -> bool:
        """Whether the model sees all of ``text``: not if it is cut off at the context's end, or has words that it does not know.

        Two texts that differ only there would have one vector.
        """
        most = self.engine.info.context_length or _LONGEST
        if self._tokenizer is None:
            return len(text) + _ADDED_TOKENS <= min(most, _LONGEST)
        if len(text) > 16 * most:
            return False
        encoded = self._tokenizer.encode(text)
        unknown = self._unknown
        return len(encoded.ids) <= most and (unknown is None or unknown not in encoded.ids)

    async def embed(self, text: str) -> Vectors:
        """The unit vector of a text, shape (width,). Raises EngineError when it cannot be had, or too many wait."""
        loop = asyncio.get_running_loop()
        made: asyncio.Future[Vectors] = loop.create_future()
        with self._lock:
            if self._closed:
                raise EngineError("the embedder is closed")
            if self._waiting.qsize() >= _MOST_WAITING:
                raise EngineError("too many texts wait for the embedder")
            self._waiting.put((text, made, loop))
        return await made

    def close(self) -> None:
        """Answer what waits, end the thread, and close the engine when it is ours. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(None)
        self._thread.join(10.0)
        if self._owned:
            self.engine.close()

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        if self._tokenizer_path is None or not (self._tokenizer_path / "tokenizer.json").is_file():
            return None
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._tokenizer_path / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def _unknown(self) -> int | None:
        tokenizer = self._tokenizer
        token = getattr(tokenizer.model, "unk_token", None) if tokenizer is not None else None
        return tokenizer.token_to_id(token) if tokenizer is not None and token else None

    def _run(self) -> None:
        while True:
            asked = [self._waiting.get()]
            while len(asked) < _AT_ONCE and not self._waiting.empty():
                asked.append(self._waiting.get())
            texts = [each for each in asked if each is not None]
            if texts:
                self._answer(texts)
            if len(texts) < len(asked):
                return

    def _answer(self, asked: Sequence[tuple[str, asyncio.Future[Vectors], asyncio.AbstractEventLoop]]) -> None:
        vectors: Vectors | None = None
        failure: Exception = EngineError("the embedder failed")
        try:
            vectors = np.asarray(self.engine.embed([text for text, _, _ in asked]), dtype=np.float32)
        except LuthierError as error:
            failure = error
        except Exception:  # whatever is wrong with it, requests go on without
            logger.exception("the embedder failed in a way that it should not")
        for place, (_, made, loop) in enumerate(asked):
            result = failure if vectors is None else vectors[place]
            try:
                loop.call_soon_threadsafe(_settle, made, result)
            except RuntimeError:  # the loop has ended, and who waited with it
                continue


def _settle(made: asyncio.Future[Vectors], result: Vectors | Exception) -> None:
    if made.done():
        return
    if isinstance(result, Exception):
        made.set_exception(result)
    else:
        made.set_result(result)


@dataclass
class _Partition:
    keys: list[str] = field(default_factory=list)
    rows: Vectors = field(default_factory=lambda: np.empty((0, 0), np.float32))
    mark: str = ""

    def put(self, key: str, vector: Vectors) -> int:
        """Keep a vector; returns by how many rows this is larger now."""
        if key in self.keys:
            self.rows[self.keys.index(key)] = vector
            return 0
        count = len(self.keys)
        if count == len(self.rows):
            grown = np.zeros((max(4, 2 * count), len(vector)), np.float32)
            grown[:count] = self.rows[:count] if count else 0.0
            self.rows = grown
        self.rows[count] = vector
        self.keys.append(key)
        return 1

    def drop(self, places: Sequence[int]) -> None:
        """Forget rows."""
        gone = set(places)
        kept = [place for place in range(len(self.keys)) if place not in gone]
        self.rows = self.rows[kept].copy()
        self.keys = [self.keys[place] for place in kept]


class SemanticIndex:
    """Vectors by partition, at most ``most`` in all: the partition that was least used loses its oldest half first. Safe from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._lock = threading.Lock()
        self._partitions: OrderedDict[str, _Partition] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def mark(self, partition: str) -> str:
        """How far the store's vectors of a partition are known here."""
        with self._lock:
            found = self._partitions.get(partition)
            return found.mark if found is not None else ""

    def add(self, partition: str, vectors: Sequence[tuple[str, bytes]], mark: str | None = None) -> None:
        """Keep vectors (float32 bytes) of a partition; those of another width than the ones before take their place."""
        with self._lock:
            kept = self._partitions.setdefault(partition, _Partition())
            self._partitions.move_to_end(partition)
            for key, data in vectors:
                vector = np.frombuffer(data, np.float32)
                if kept.keys and kept.rows.shape[1] != len(vector):
                    self._count -= len(kept.keys)
                    kept.keys, kept.rows = [], np.empty((0, 0), np.float32)
                self._count += kept.put(key, vector)
            kept.mark = kept.mark if mark is None else mark
            while self._count > self._most:
                self._shrink()

    def near(self, partition: str, vector: Vectors, threshold: float) -> Iterator[tuple[str, float]]:
        """Keys whose vectors have at least this cosine to ``vector``, the nearest first."""
        with self._lock:
            kept = self._partitions.get(partition)
            if kept is None or not kept.keys or kept.rows.shape[1] != len(vector):
                return
            self._partitions.move_to_end(partition)
            cosines = kept.rows[: len(kept.keys)] @ vector
            places = np.flatnonzero(cosines >= threshold)
            found = [(kept.keys[place], float(cosines[place])) for place in places[np.argsort(-cosines[places])]]
        yield from found

    def drop(self, partition: str, key: str) -> None:
        """Forget a vector whose entry is gone."""
        with self._lock:
            kept = self._partitions.get(partition)
            if kept is not None and key in kept.keys:
                kept.drop([kept.keys.index(key)])
                self._count -= 1

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._partitions.clear()
            self._count = 0

    def _shrink(self) -> None:
        name, least = next(iter(self._partitions.items()))
        half = -(-len(least.keys) // 2)
        self._count -= half
        if half == len(least.keys):
            del self._partitions[name]
        else:
            least.drop(range(half))
