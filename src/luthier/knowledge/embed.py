"""Texts into vectors for an index: by a model of the store or of a server, each text once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.engine import EMBED, Engine, Vectors, require
from luthier.core.errors import DataError, EngineError, MismatchError, StoreError
from luthier.core.run import Progress, no_progress

if TYPE_CHECKING:
    from luthier.knowledge.chunkers._spans import Span

AT_ONCE = 512
_FEW = 64
_AGAIN = (1.0, 4.0)
"""Seconds before a part is asked for again that failed and may succeed a moment later (the engine has tried for itself before)."""


@dataclass(frozen=True)
class Prompts:
    """What a model was trained to see before a question and before a passage (E5: Wang et al. 2022; BGE: Xiao et al. 2023); "" for nothing."""

    query: str = ""
    passage: str = ""


class Embedder:
    """An engine that embeds, with a cache of what it has embedded in a SQLite file (vectors as float16: half the bytes, equal to 3 digits).

    ``digest`` names the weights: vectors of different ones are never mixed. ``width`` is what its vectors are known to have, if it is.
    Safe from several threads and processes.
    """

    def __init__(
        self,
        engine: Engine,
        cache: Path | None = None,
        *,
        prompts: Prompts | None = None,
        width: int = 0,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        require(engine, EMBED)
        self.engine, self.prompts = engine, prompts or Prompts()
        info = engine.info
        self.digest = info.model_digest or hashlib.sha256(info.model.encode()).hexdigest()
        self._lock = threading.Lock()
        self._width, self._wait = width, wait
        self._path = cache
        self._cache = _open(cache) if cache is not None else None

    @property
    def width(self) -> int:
        """Dimensions of its vectors."""
        if not self._width:
            self._asked(["width"])
        return self._width

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Unit vectors of passages, (texts, width) float32.

        An engine that fails for a moment is asked again, and what it has embedded until it fails for good is kept. Raises what the engine
        raises, MismatchError for vectors of another width than before, StoreError for a full disk.
        """
        texts = [self.prompts.passage + text for text in texts]
        keys = [hashlib.sha256(f"{self.digest}\0{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
        known = self._known(keys)
        missing = [number for number, key in enumerate(keys) if key not in known]
        first = {keys[number]: number for number in reversed(missing)}  # equal texts are embedded once
        todo = sorted(first.values())
        for start in range(0, len(todo), AT_ONCE):
            part = todo[start : start + AT_ONCE]
            for some, vectors in self._parts([texts[number] for number in part]):
                numbers = part[some]
                known |= {keys[number]: vector for number, vector in zip(numbers, vectors, strict=True)}
                self._keep([(keys[number], known[keys[number]]) for number in numbers])
            progress("embed", len(texts) - len(todo) + start + len(part), len(texts))
        if not texts:
            return np.zeros((0, self.width), np.float32)
        return np.stack([known[key] for key in keys]).astype(np.float32)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of questions, (texts, width) float32. They are not kept."""
        if not texts:
            return np.zeros((0, self.width), np.float32)
        asked = [self.prompts.query + text for text in texts]
        return np.concatenate([vectors for _, vectors in self._parts(asked)])

    def close(self) -> None:
        """Close the cache; the engine stays open. Safe to call twice."""
        with self._lock:
            if self._cache is not None:
                self._cache.close()
                self._cache = None

    def _parts(self, texts: Sequence[str]) -> Iterator[tuple[slice, Vectors]]:
        """All at once; when the engine fails for a moment, a few at a time, so that little is lost when it fails again."""
        try:
            yield slice(0, len(texts)), self._asked(texts)
            return
        except EngineError as error:
            if not error.retryable:
                raise
            self._wait(error.retry_after_s or _AGAIN[0])
        for start in range(0, len(texts), _FEW):
            some = slice(start, min(start + _FEW, len(texts)))
            yield some, self._insisted(texts[some])

    def _insisted(self, texts: Sequence[str]) -> Vectors:
        for pause_s in _AGAIN:
            try:
                return self._asked(texts)
            except EngineError as error:
                if not error.retryable:
                    raise
                self._wait(error.retry_after_s or pause_s)
        return self._asked(texts)

    def _asked(self, texts: Sequence[str]) -> Vectors:
        """What the engine says, checked."""
        vectors = np.asarray(self.engine.embed(texts), np.float32)
        name = self.engine.info.model
        if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.shape[1]:
            raise EngineError(f"{name} gave vectors of the shape {list(vectors.shape)} for {len(texts)} texts")
        if not np.isfinite(vectors).all():
            raise EngineError(f"{name} gave vectors with what is no number")
        if self._width and vectors.shape[1] != self._width:
            raise MismatchError(
                f"{name} gives vectors of {vectors.shape[1]} dimensions now; it gave {self._width} before",
                hint="luthier kb rebuild NAME embeds everything anew",
            )
        self._width = int(vectors.shape[1])
        return vectors

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        if self._cache is None:
            return {}
        found: dict[bytes, Vectors] = {}
        with self._lock, self._explained():
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ", ".join("?" * len(part))
                for key, data in self._cache.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part):
                    vector = np.frombuffer(data, np.float16).astype(np.float32)
                    if len(vector) == self._width or not self._width:
                        found[key] = _unit(vector)
        return found if len({len(vector) for vector in found.values()}) < 2 else {}

    def _keep(self, rows: Sequence[tuple[bytes, Vectors]]) -> None:
        if self._cache is None:
            return
        values = [(key, vector.astype(np.float16).tobytes()) for key, vector in rows]
        with self._lock, self._explained(), self._cache:
            self._cache.executemany("INSERT OR REPLACE INTO vectors (key, vector) VALUES (?, ?)", values)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"the cache of vectors {self._path} cannot be used: {error}",
                hint=f"rm {self._path} (nothing else is lost)",
            ) from error


def read_prompts(folder: Path | None) -> Prompts:
    """The prompts in a model's ``config_sentence_transformers.json``, chosen as sentence-transformers' ``encode_query`` and ``encode_document`` do.

    Raises DataError for a damaged file.
    """
    path = folder / "config_sentence_transformers.json" if folder is not None else None
    if path is None or not path.is_file():
        return Prompts()
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        prompts, default = stated.get("prompts") or {}, stated.get("default_prompt_name")
        usual = str(prompts.get(default) or "")
        passage = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), usual)
        return Prompts(str(prompts.get("query", usual)), str(passage))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    """The cache; one that is damaged is made anew, for nothing in it cannot be computed again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connected(path)
    except sqlite3.OperationalError as error:
        raise StoreError(f"the cache of vectors {path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError:
        for each in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            each.unlink(missing_ok=True)
        return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # it is a cache: what a power cut loses is computed again
        table = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
        connection.execute(table)
        connection.commit()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _unit(vector: Vectors) -> Vectors:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


def token_offsets(folder: Path) -> Callable[[str], Sequence[Span]]:
    """(start, end) of the tokens of a text, by the tokenizer in ``folder``."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def offsets(text: str) -> Sequence[Span]:
        found: Sequence[Span] = tokenizer.encode(text, add_special_tokens=False).offsets
        return found

    return offsets
