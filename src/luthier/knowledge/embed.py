"""Texts into vectors for an index: by a model of the store or of a server, each text once."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.engine import EMBED, Engine, Vectors, require
from luthier.core.run import Progress, no_progress

if TYPE_CHECKING:
    from luthier.knowledge.chunkers._spans import Span

AT_ONCE = 512


class Embedder:
    """An engine that embeds, with a cache of what it has embedded in a SQLite file (vectors as float16: half the bytes, equal to 3 digits).

    ``digest`` names the weights: vectors of different ones are never mixed. Safe from several threads and processes.
    """

    def __init__(self, engine: Engine, cache: Path | None = None) -> None:
        require(engine, EMBED)
        self.engine = engine
        info = engine.info
        self.digest = info.model_digest or hashlib.sha256(info.model.encode()).hexdigest()
        self._lock = threading.Lock()
        self._width = 0
        self._cache = _open(cache) if cache is not None else None

    @property
    def width(self) -> int:
        """Dimensions of its vectors."""
        if not self._width:
            self._width = int(self.engine.embed(["width"]).shape[1])
        return self._width

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Unit vectors, (texts, width) float32."""
        keys = [hashlib.sha256(f"{self.digest}\0{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
        known = self._known(keys)
        missing = [number for number, key in enumerate(keys) if key not in known]
        first = {keys[number]: number for number in reversed(missing)}  # equal texts are embedded once
        todo = sorted(first.values())
        for start in range(0, len(todo), AT_ONCE):
            part = todo[start : start + AT_ONCE]
            vectors = self.engine.embed([texts[number] for number in part])
            known |= {keys[number]: vector for number, vector in zip(part, vectors, strict=True)}
            self._keep([(keys[number], known[keys[number]]) for number in part])
            progress("embed", len(texts) - len(todo) + start + len(part), len(texts))
        if not texts:
            return np.zeros((0, self.width), np.float32)
        return np.stack([known[key] for key in keys]).astype(np.float32)

    def close(self) -> None:
        """Close the cache; the engine stays open. Safe to call twice."""
        with self._lock:
            if self._cache is not None:
                self._cache.close()
                self._cache = None

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        if self._cache is None:
            return {}
        found: dict[bytes, Vectors] = {}
        with self._lock:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ", ".join("?" * len(part))
                for key, data in self._cache.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part):
                    found[key] = _unit(np.frombuffer(data, np.float16).astype(np.float32))
        return found

    def _keep(self, rows: Sequence[tuple[bytes, Vectors]]) -> None:
        if self._cache is None:
            return
        with self._lock, self._cache:
            values = [(key, vector.astype(np.float16).tobytes()) for key, vector in rows]
            self._cache.executemany("INSERT OR IGNORE INTO vectors (key, vector) VALUES (?, ?)", values)


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # it is a cache: what a power cut loses is computed again
    connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID")
    connection.commit()
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
