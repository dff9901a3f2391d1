"""LanceDB: in files of this machine, nothing to run; exact and approximate vectors, and BM25 with words of Chinese (ICU)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Hit
from luthier.core.engine import Vectors
from luthier.core.errors import InputError, StoreError
from luthier.knowledge.index import Filter, Index, IndexRow, Metric, tag, tags

TABLE = "chunks"
_SHOWN = ("id", "document", "source", "title", "date", "chunk", "meta")
_FIELDS = tuple(each.name for each in fields(Chunk))
_UNINDEXED = 0.05
"""Share of rows outside of the approximate index at which ``optimize`` builds it anew: until then they are compared one by one."""


class Config(EntryConfig):
    """``metric`` of the vectors; ``hamming`` keeps one bit for each dimension. ``stem`` reduces English words to their stems in keyword search.

    ``ann``: how vectors are found once there are ``ann_from`` of them (below that they are all compared): ``hnsw`` (a graph over 8-bit vectors),
    ``ivf_pq`` (cells of compressed vectors: the least memory), ``exact``. ``refine`` times k candidates are compared with the vectors themselves.
    ``probes``: cells that are looked into.
    """

    metric: Metric = "cosine"
    stem: bool = True
    ann: Literal["hnsw", "ivf_pq", "exact"] = "ivf_pq"
    ann_from: int = Field(default=20_000, ge=256)
    refine: int = Field(default=10, ge=1)
    probes: int = Field(default=32, ge=1)


def open(folder: Path, width: int, config: Config) -> Index:  # noqa: A001 - the name of the catalogue's function
    """The index in ``folder`` for vectors of ``width`` dimensions; made when it is not there. Raises StoreError for a damaged one."""
    return LanceIndex(folder, width, config)


class LanceIndex:
    """One table: a row for each chunk."""

    def __init__(self, folder: Path, width: int, config: Config) -> None:
        import lancedb

        self._config, self._width = config, width
        self._lock = threading.Lock()
        try:
            self._db = lancedb.connect(str(folder))
            names = self._db.list_tables().tables
            table = self._db.open_table(TABLE) if TABLE in names else self._create()
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"the index in {folder} cannot be opened: {error}", hint="luthier kb rebuild NAME"
            ) from error
        self._table: Any = table

    def _create(self) -> Any:
        import pyarrow as pa
        from lancedb.index import FTS, LabelList

        table = self._db.create_table(TABLE, schema=_schema(self._width, self._config.metric))
        words = FTS(
            base_tokenizer="icu", stem=self._config.stem, remove_stop_words=False, ascii_folding=True, lower_case=True
        )
        table.create_index("text", config=words)
        for column in ("labels", "tags"):
            table.create_index(column, config=LabelList())
        assert isinstance(table.schema, pa.Schema)
        return table

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Replace or insert, in one transaction of the table."""
        if not rows:
            return
        import pyarrow as pa

        width = {len(row.vector) for row in rows if row.vector is not None}
        if width - {self._width}:
            raise InputError(f"vectors must have {self._width} dimensions here; got {sorted(width)}")
        if not all(np.isfinite(row.vector).all() for row in rows if row.vector is not None):
            raise InputError("vectors must be finite numbers; the embedding model gave others")
        batch = pa.Table.from_pylist([self._row(row) for row in rows], schema=self._table.schema)
        with self._writing():
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            if self._table.count_rows():
                merge.execute(batch, on_bad_vectors="null")  # "bad" is what LanceDB calls a chunk without one
            else:
                self._table.add(batch, on_bad_vectors="null")

    def remove(self, documents: Sequence[str]) -> None:
        """Delete, in one transaction of the table."""
        if documents:
            with self._writing():
                self._table.delete(f"document IN ({', '.join(map(_quoted, documents))})")

    def dense(self, vector: Vectors, k: int, where: Filter | None = None, *, exact: bool = False) -> list[Hit]:
        """Nearest first. Scores: cosine or dot product, 1 / (1 + distance) for l2, share of equal bits for hamming."""
        packed: Any = np.packbits(vector > 0) if self._config.metric == "hamming" else np.asarray(vector, np.float32)
        query = self._table.search(packed, vector_column_name="vector").distance_type(self._config.metric)
        if exact:
            query = query.bypass_vector_index()
        else:
            query = query.nprobes(self._config.probes).refine_factor(self._config.refine)
        query = query.where(_condition(where), prefilter=True).limit(k).select([*_SHOWN, "_distance"])
        return [_hit(row, self._score(row["_distance"]), "dense") for row in self._read(query)]

    def keyword(self, text: str, k: int, where: Filter | None = None) -> list[Hit]:
        """Best first, by BM25 over the words of ``text``."""
        from lancedb.query import MatchQuery

        if not text.strip():
            return []
        query = self._table.search(MatchQuery(text, "text"), query_type="fts")
        query = query.where(_condition(where), prefilter=True).limit(k).select([*_SHOWN, "_score"])
        return [_hit(row, float(row["_score"]), "keyword") for row in self._read(query)]

    def get(self, ids: Sequence[str]) -> list[Hit]:
        """In the order of ``ids``."""
        if not ids:
            return []
        query = (
            self._table.search().where(f"id IN ({', '.join(map(_quoted, ids))})").limit(len(ids)).select(list(_SHOWN))
        )
        found = {row["id"]: _hit(row, 0.0, "") for row in self._read(query)}
        return [found[each] for each in ids if each in found]

    def of_document(self, document: str, first: int = 0, last: int | None = None) -> list[Hit]:
        """By their numbers."""
        condition = f"document = {_quoted(document)} AND number >= {int(first)}"
        condition += f" AND number <= {int(last)}" if last is not None else ""
        query = self._table.search().where(condition).limit(self._table.count_rows()).select(list(_SHOWN))
        return sorted((_hit(row, 0.0, "") for row in self._read(query)), key=lambda hit: hit.chunk.number)

    def documents(self) -> list[str]:
        """Distinct ids."""
        import pyarrow.compute as pc

        column = self._table.search().select(["document"]).limit(max(1, self.count())).to_arrow()["document"]
        return list(pc.unique(column).to_pylist())

    def count(self) -> int:
        """Rows of the table."""
        return int(self._table.count_rows())

    def optimize(self) -> None:
        """Merge small files, index what was added, and build the approximate index when there is enough to find."""
        with self._writing():
            self._table.optimize()
            if self._config.ann == "exact" or self._config.metric == "hamming":
                return
            rows = self._table.count_rows("vector IS NOT NULL")
            built = [each for each in self._table.list_indices() if "vector" in each.columns]
            stale = built and self._table.index_stats(built[0].name).num_unindexed_rows > _UNINDEXED * rows
            if rows >= self._config.ann_from and (not built or stale):
                self._table.create_index("vector", config=self._ann(rows), replace=True)

    def close(self) -> None:
        """Nothing stays open between calls."""

    # ---- inside

    def _ann(self, rows: int) -> Any:
        from lancedb.index import IvfHnswSq, IvfPq

        metric: Any = self._config.metric
        if self._config.ann == "hnsw":
            return IvfHnswSq(distance_type=metric, num_partitions=max(1, rows // 1_000_000))
        cells = max(16, int(rows**0.5))
        return IvfPq(distance_type=metric, num_partitions=cells, num_sub_vectors=max(1, self._width // 8))

    def _row(self, row: IndexRow) -> dict[str, Any]:
        vector: Any = row.vector
        if vector is not None:
            vector = np.packbits(vector > 0) if self._config.metric == "hamming" else np.asarray(vector, np.float32)
        return {
            "id": row.chunk.id,
            "document": row.document,
            "number": row.chunk.number,
            "text": row.chunk.embedded if row.chunk.searched else None,
            "source": row.source,
            "title": row.title,
            "date": row.date,
            "labels": list(row.labels) or None,
            "tags": tags(row.meta),
            "chunk": json.dumps(asdict(row.chunk), ensure_ascii=False),
            "meta": json.dumps(dict(row.meta), ensure_ascii=False, default=str),
            "vector": vector if row.chunk.searched else None,
        }

    def _score(self, distance: float) -> float:
        if self._config.metric in ("cosine", "dot"):
            return 1.0 - distance
        return 1.0 - distance / self._width if self._config.metric == "hamming" else 1.0 / (1.0 + distance)

    def _read(self, query: Any) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = query.to_list()
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(f"the index cannot be searched: {error}") from error
        return rows

    def _writing(self) -> Any:
        return self._lock


def _schema(width: int, metric: Metric) -> Any:
    import pyarrow as pa

    vector = pa.list_(pa.uint8(), (width + 7) // 8) if metric == "hamming" else pa.list_(pa.float32(), width)
    texts = [(name, pa.utf8()) for name in ("id", "document", "text", "source", "title", "date", "chunk", "meta")]
    lists = [(name, pa.list_(pa.utf8())) for name in ("labels", "tags")]
    return pa.schema([*texts, ("number", pa.int32()), *lists, ("vector", vector)])


def _condition(where: Filter | None) -> str:
    """A filter as SQL of DataFusion. Every text is quoted; nothing of a user's is ever syntax."""
    parts = ["text IS NOT NULL"]
    if where is None:
        return parts[0]
    if where.labels is not None:
        listed = ", ".join(map(_quoted, where.labels))
        allowed = f" OR array_has_any(labels, [{listed}])" if where.labels else ""
        parts.append(f"(labels IS NULL{allowed})")
    if where.documents:
        parts.append(f"document IN ({', '.join(map(_quoted, where.documents))})")
    if where.sources:
        parts.append("(" + " OR ".join(f"source LIKE {_pattern(each)} ESCAPE '\\'" for each in where.sources) + ")")
    parts += [f"array_has(tags, {_quoted(tag(name, value))})" for name, value in where.meta.items()]
    if where.after:
        parts.append(f"date >= {_quoted(where.after)}")
    if where.before:
        parts.append(f"date != '' AND date <= {_quoted(where.before)}")
    return " AND ".join(parts)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _pattern(glob: str) -> str:
    escaped = "".join(f"\\{each}" if each in "\\%_" else each for each in glob)
    return _quoted(escaped.replace("*", "%").replace("?", "_"))


def _hit(row: Mapping[str, Any], score: float, by: str) -> Hit:
    values = json.loads(row["chunk"])
    kept: dict[str, Any] = {name: tuple(v) if isinstance(v := values[name], list) else v for name in _FIELDS}
    chunk = Chunk(**kept)
    scores = {by: score} if by else {}
    meta = json.loads(row["meta"]) | ({"date": row["date"]} if row["date"] else {})
    return Hit(chunk, row["document"], row["source"], row["title"], score, scores, meta)
