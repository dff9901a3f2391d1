"""Qdrant: a server for many machines; exact and HNSW vectors, and BM25 as sparse vectors of our own words, English and Chinese."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.core.engine import Vectors
from luthier.core.errors import MissingExtraError, StoreError
from luthier.knowledge.index import Filter, Index, IndexRow, Metric, fits, tag, tags
from luthier.knowledge.indexes._rows import check_rows, check_vector, chunk_json, hit_of, meta_json
from luthier.knowledge.indexes._words import words

_AT_ONCE = 256
_COLLECTION = "collection"
_K1, _B = 1.2, 0.75
_PUBLIC = ""
"""Kept for a document without access labels; labels are kept with a ``=`` before them."""
_NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")
_SHOWN = ["document", "source", "title", "date", "chunk", "meta"]


class Config(EntryConfig):
    """``url`` of the server (``http://host:6333``) and the environment variable that holds its key. ``local`` keeps all in this machine's files
    instead, searched by the client in Python: to try it, up to some thousand chunks and one process at a time.

    ``metric`` of the vectors; ``hamming`` keeps the sign of each dimension, one byte; with ``rescore`` the vectors are kept, too (float16), and
    ``refine`` times k candidates are compared with them. ``stem`` reduces English words to their stems in keyword search, whose BM25
    takes ``average_words`` for the mean length of a chunk (Qdrant does not count it). Of the graph (HNSW): ``m`` neighbours a vector,
    ``ef_construction`` candidates while it is built, ``ef`` while it is searched (0: the server's choice). ``on_disk`` keeps vectors out of memory.
    """

    url: str = ""
    api_key_env: str = "QDRANT_API_KEY"
    local: bool = False
    timeout_s: int = Field(default=30, ge=1)
    metric: Metric = "cosine"
    rescore: bool = False
    refine: int = Field(default=10, ge=1)
    stem: bool = True
    average_words: float = Field(default=100.0, gt=0)
    m: int = Field(default=16, ge=4, le=128)
    ef_construction: int = Field(default=100, ge=8)
    ef: int = Field(default=0, ge=0)
    on_disk: bool = False

    @model_validator(mode="after")
    def _checked(self) -> Config:
        if self.rescore and self.metric != "hamming":
            raise ValueError(f"rescore goes with metric hamming; {self.metric} compares the vectors themselves")
        if self.local == bool(self.url):
            raise ValueError("url must be that of the server, like http://localhost:6333 (or local=true, to try it)")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must look like http://host:6333; got {self.url!r}")
        return self


def open(folder: Path, width: int, config: Config) -> Index:  # noqa: A001 - the name of the catalogue's function
    """The index for vectors of ``width`` dimensions whose collection ``folder`` names; made when it is not there.

    Raises MissingExtraError without the client, StoreError for a server that cannot be reached or a collection of other vectors.
    """
    try:
        import qdrant_client  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "index 'qdrant' needs the package 'qdrant-client', which is not installed.",
            hint="pip install 'luthier[qdrant]'",
        ) from error
    return QdrantIndex(folder, width, config)


class QdrantIndex:
    """One collection: a point for each chunk, with the vectors ``vector`` (and ``full``), ``words`` (sparse). Its name is in the folder."""

    def __init__(self, folder: Path, width: int, config: Config) -> None:
        from qdrant_client import QdrantClient

        self._config, self._width, self._folder = config, width, folder
        self._bits = config.metric == "hamming"
        self._lock, self._client = threading.Lock(), None
        with self._explained("opened"):
            folder.mkdir(parents=True, exist_ok=True)
            if config.local:
                self._client = QdrantClient(path=str(folder / "qdrant"), force_disable_check_same_thread=True)
            else:
                key = os.environ.get(config.api_key_env) or None
                self._client = QdrantClient(
                    url=config.url, api_key=key, timeout=config.timeout_s, check_compatibility=False
                )
            self._name = self._collection()

    def _collection(self) -> str:
        """The collection's name: made up once and kept in the folder, so that a folder that is renamed keeps it."""
        place = self._folder / _COLLECTION
        if not place.is_file():
            aside = place.with_suffix(".new")
            aside.write_text(f"luthier-{self._folder.parent.name[:40]}-{uuid.uuid4().hex}", encoding="utf-8")
            aside.replace(place)
        name = place.read_text(encoding="utf-8").strip()
        if not name.startswith("luthier-"):
            raise ValueError(f"{place} does not name a collection")
        if not self._db.collection_exists(name):
            self._create(name)
        sizes = {key: each.size for key, each in self._db.get_collection(name).config.params.vectors.items()}
        if sizes.get("vector") != self._width:
            raise ValueError(f"it was made for vectors of {sizes.get('vector')} dimensions, not of {self._width}")
        return name

    def _create(self, name: str) -> None:
        from qdrant_client import models as m

        config = self._config
        distance = {
            "cosine": m.Distance.COSINE,
            "dot": m.Distance.DOT,
            "l2": m.Distance.EUCLID,
            "hamming": m.Distance.MANHATTAN,  # of zeros and ones it is the number of those that differ
        }[config.metric]
        kind = m.Datatype.UINT8 if self._bits else m.Datatype.FLOAT32
        vectors = {"vector": m.VectorParams(size=self._width, distance=distance, datatype=kind, on_disk=config.on_disk)}
        if config.rescore:
            graph = m.HnswConfigDiff(m=0)  # only compared with the candidates
            vectors["full"] = m.VectorParams(
                size=self._width,
                distance=m.Distance.COSINE,
                datatype=m.Datatype.FLOAT16,
                on_disk=True,
                hnsw_config=graph,
            )
        self._db.create_collection(
            name,
            vectors_config=vectors,
            sparse_vectors_config={"words": m.SparseVectorParams(modifier=m.Modifier.IDF)},
            hnsw_config=m.HnswConfigDiff(m=config.m, ef_construct=config.ef_construction),
        )
        if not config.local:  # the local mode has no indexes of fields, and says so loudly
            for field in ("document", "source", "labels", "tags", "date"):
                self._db.create_payload_index(name, field, m.PayloadSchemaType.KEYWORD)
            self._db.create_payload_index(name, "number", m.PayloadSchemaType.INTEGER)

    @property
    def _db(self) -> Any:
        if self._client is None:
            raise StoreError(f"the index in {self._folder} is closed")
        return self._client

    # ---- changes

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Replace or insert, some hundred rows a request; a server that fails midway has kept the first ones."""
        rows = check_rows(rows, self._width)
        for start in range(0, len(rows), _AT_ONCE):
            points = [self._point(row) for row in rows[start : start + _AT_ONCE]]
            with self._lock, self._explained("written"):
                self._db.upsert(self._name, points=points, wait=True)

    def remove(self, documents: Sequence[str]) -> None:
        """Delete, in one request."""
        if documents:
            with self._lock, self._explained("written"):
                self._db.delete(self._name, points_selector=_any("document", documents), wait=True)

    def optimize(self) -> None:
        """The server does it by itself."""

    def drop(self) -> None:
        """Delete the collection, and close."""
        with self._lock, self._explained("deleted"):
            self._db.delete_collection(self._name)
        self.close()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    # ---- searches

    def dense(self, vector: Vectors, k: int, where: Filter | None = None, *, exact: bool = False) -> list[Hit]:
        """Nearest first. Scores: cosine or dot product, 1 / (1 + distance) for l2, share of equal bits for hamming (cosine after ``rescore``)."""
        from qdrant_client import models as m

        vector = check_vector(vector, self._width)
        asked = m.SearchParams(exact=exact, hnsw_ef=self._config.ef or None)
        params = None if self._config.local else asked  # the local mode compares all, and warns that it does
        query, using, prefetch = self._kept(vector).tolist(), "vector", None
        if self._config.rescore:
            if not exact:
                most = k * self._config.refine
                found = self._filter(where)
                prefetch = m.Prefetch(query=query, using="vector", filter=found, params=params, limit=most)
            query, using = vector.tolist(), "full"
        points = self._query(query, using, k, where, prefetch=prefetch, search_params=params)
        return [hit_of(point.payload, self._score(point.score), "dense") for point in points]

    def keyword(self, text: str, k: int, where: Filter | None = None) -> list[Hit]:
        """Best first, by BM25 over the words of ``text``."""
        from qdrant_client import models as m

        counts = Counter(words(text, stem=self._config.stem))
        if not counts:
            return []
        numbers = {_number(word): float(count) for word, count in counts.items()}
        query = m.SparseVector(indices=list(numbers), values=list(numbers.values()))
        return [hit_of(each.payload, each.score, "keyword") for each in self._query(query, "words", k, where)]

    def get(self, ids: Sequence[str]) -> list[Hit]:
        """In the order of ``ids``."""
        if not ids:
            return []
        with self._explained("read"):
            points = self._db.retrieve(self._name, ids=[_point_id(each) for each in ids], with_payload=_SHOWN)
        found = {str(point.id): hit_of(point.payload) for point in points}
        return [found[key] for key in map(_point_id, ids) if key in found]

    def of_document(self, document: str, first: int = 0, last: int | None = None) -> list[Hit]:
        """By their numbers."""
        from qdrant_client import models as m

        number = m.FieldCondition(key="number", range=m.Range(gte=first, lte=last))
        where = m.Filter(must=[m.FieldCondition(key="document", match=m.MatchValue(value=document)), number])
        hits: list[Hit] = []
        offset: Any = None
        with self._explained("read"):
            while True:
                points, offset = self._db.scroll(
                    self._name, scroll_filter=where, limit=1000, offset=offset, with_payload=_SHOWN
                )
                hits += [hit_of(point.payload) for point in points]
                if offset is None:
                    return sorted(hits, key=lambda hit: hit.chunk.number)

    def documents(self) -> list[str]:
        """Distinct ids."""
        return self._distinct("document")

    def count(self) -> int:
        """Points of the collection."""
        with self._explained("read"):
            return int(self._db.count(self._name, exact=True).count)

    def approximate(self) -> int:
        """Vectors that the graph holds (the server builds it when there are some ten thousand)."""
        with self._explained("read"):
            return int(self._db.get_collection(self._name).indexed_vectors_count or 0)

    # ---- inside

    def _query(self, query: Any, using: str, k: int, where: Filter | None, **more: Any) -> list[Any]:
        found = self._filter(where)
        with self._explained("searched"):
            answer = self._db.query_points(
                self._name, query=query, using=using, query_filter=found, limit=k, with_payload=_SHOWN, **more
            )
        return list(answer.points)

    def _filter(self, where: Filter | None) -> Any:
        """A filter in Qdrant's terms. It has no patterns and compares no texts: sources and dates that fit are listed first."""
        from qdrant_client import models as m

        if where is None:
            return None
        must: list[Any] = []
        if where.labels is not None:
            must.append(_any("labels", [_PUBLIC, *(f"={each}" for each in where.labels)]))
        if where.documents:
            must.append(_any("document", where.documents))
        if where.sources:
            some = [each for each in self._distinct("source") if any(fits(each, one) for one in where.sources)]
            must.append(_any("source", some))
        for name, value in where.meta.items():
            must.append(m.FieldCondition(key="tags", match=m.MatchValue(value=tag(name, value))))
        if where.after or where.before:
            must.append(_any("date", [each for each in self._distinct("date") if _between(each, where)]))
        return m.Filter(must=must) if must else None

    def _distinct(self, field: str) -> list[str]:
        with self._explained("read"):
            most = max(1, int(self._db.count(self._name, exact=True).count))
            return [str(each.value) for each in self._db.facet(self._name, key=field, limit=most, exact=True).hits]

    def _kept(self, vector: Vectors) -> Vectors:
        return np.asarray(vector > 0, np.float32) if self._bits else vector

    def _point(self, row: IndexRow) -> Any:
        from qdrant_client import models as m

        vectors: dict[str, Any] = {}
        if row.chunk.searched:
            vectors["words"] = self._words(row.chunk.embedded)
            if row.vector is not None:
                vectors["vector"] = self._kept(row.vector).tolist()
                vectors |= {"full": row.vector.tolist()} if self._config.rescore else {}
        payload = {
            "document": row.document,
            "number": row.chunk.number,
            "source": row.source,
            "title": row.title,
            "date": row.date,
            "labels": [f"={each}" for each in row.labels] or [_PUBLIC],
            "tags": tags(row.meta),
            "chunk": chunk_json(row.chunk),
            "meta": meta_json(row),
        }
        return m.PointStruct(id=_point_id(row.chunk.id), vector=vectors, payload=payload)

    def _words(self, text: str) -> Any:
        """What BM25 gives each word before its rarity (Robertson and Zaragoza 2009, eq. 3.15), which the server counts."""
        from qdrant_client import models as m

        found = words(text, stem=self._config.stem)
        long = _K1 * (1 - _B + _B * len(found) / self._config.average_words)
        values = {_number(word): n * (_K1 + 1) / (n + long) for word, n in Counter(found).items()}
        return m.SparseVector(indices=list(values), values=list(values.values()))

    def _score(self, score: float) -> float:
        if self._config.metric == "l2":
            return 1.0 / (1.0 + score)
        return 1.0 - score / self._width if self._bits and not self._config.rescore else score

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """The client's errors as StoreError."""
        import httpx
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (QdrantException, ApiException, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
            place = self._config.url or str(self._folder)
            raise StoreError(f"the index at {place} cannot be {what}: {str(error)[:500]}") from error


def _any(field: str, values: Sequence[str]) -> Any:
    from qdrant_client import models as m

    return m.Filter(must=[m.FieldCondition(key=field, match=m.MatchAny(any=list(values)))])


def _between(date: str, where: Filter) -> bool:
    return date >= where.after and (not where.before or (bool(date) and date <= where.before))


def _point_id(chunk: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, chunk))


def _number(word: str) -> int:
    """A word's place in the sparse vectors: 32 bits of its digest."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big")
