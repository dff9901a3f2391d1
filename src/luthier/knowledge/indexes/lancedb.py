"""LanceDB: in files of this machine, nothing to run; exact and approximate vectors, and BM25 with words of Chinese (ICU)."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.core.engine import Vectors
from luthier.core.errors import StoreError
from luthier.knowledge.index import Filter, Index, IndexRow, Metric, tag, tags
from luthier.knowledge.indexes._rows import (
    check_rows,
    check_vector,
    chunk_json,
    hit_of,
    meta_json,
    packed,
    rescored,
)

TABLE = "chunks"
_SHOWN = ["id", "document", "source", "title", "date", "chunk", "meta"]
_CACHE_BYTES = 1 << 30
_OLD = timedelta(minutes=10)
"""Versions of the table older than this are deleted by ``optimize``; a reader takes the newest one for each search."""
_UNINDEXED = 2_000
"""Rows outside of the search structures, which are compared one by one, at which ``optimize`` takes them in (or 2% of all rows)."""
_REFINED = 20
"""Of long lists, which other steps cut, so many hits are worth ``refine`` candidates each."""
_CANDIDATES = 200
_CELL = 4096
_GROWN = 2
"""The approximate index is trained anew when there are so many times the vectors that it was trained on."""


class Config(EntryConfig):
    """``metric`` of the vectors; ``hamming`` compares one bit of each dimension (its sign); with ``rescore`` the vectors are kept, too (float16),
    and ``refine`` times k candidates are compared with them. ``stem`` reduces English words to their stems in keyword search.

    ``ann``: how vectors are found once there are ``ann_from`` of them (below that all are compared): in cells of vectors of a bit a dimension
    (``ivf_rq``: RaBitQ, Gao and Long 2024; built the fastest; widths that 8 divides, others take ``ivf_pq``) or of product codes (``ivf_pq``: Jegou, Douze and Schmid 2011), by a graph over
    8-bit vectors (``hnsw``: Malkov and Yashunin 2016), or never (``exact``). ``refine`` times k candidates (k up to 20), at least 200, are compared with the
    vectors themselves. ``partitions``: cells (0: one for 4,096 vectors), ``probes``: those looked into. Of the graph: ``m`` neighbours a vector,
    ``ef_construction`` candidates while it is built, ``ef`` while it is searched (0: 1.5 times those compared; never less than these).
    """

    metric: Metric = "cosine"
    stem: bool = True
    rescore: bool = False
    ann: Literal["ivf_rq", "ivf_pq", "hnsw", "exact"] = "ivf_rq"
    ann_from: int = Field(default=20_000, ge=256)
    refine: int = Field(default=10, ge=1)
    partitions: int = Field(default=0, ge=0)
    probes: int = Field(default=64, ge=1)
    m: int = Field(default=20, ge=4, le=128)
    ef_construction: int = Field(default=150, ge=8)
    ef: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _checked(self) -> Config:
        if self.rescore and self.metric != "hamming":
            raise ValueError(f"rescore goes with metric hamming; {self.metric} compares the vectors themselves")
        return self


def open(folder: Path, width: int, config: Config) -> Index:  # noqa: A001 - the name of the catalogue's function
    """The index in ``folder`` for vectors of ``width`` dimensions; made when it is not there. Raises StoreError for a damaged one."""
    return LanceIndex(folder, width, config)


class LanceIndex:
    """One table: a row for each chunk. A row that is not searched has neither words nor a vector."""

    def __init__(self, folder: Path, width: int, config: Config) -> None:
        os.environ.setdefault("LANCE_LOG", "error")  # it warns once for each search
        import lancedb

        self._config, self._width, self._folder = config, width, folder
        self._bits = config.metric == "hamming"
        self._lock = threading.Lock()
        with self._explained("opened"):
            session = lancedb.Session(index_cache_size_bytes=_CACHE_BYTES, metadata_cache_size_bytes=_CACHE_BYTES >> 2)
            # what another process has added is seen by the next search
            self._db = lancedb.connect(str(folder), read_consistency_interval=timedelta(0), session=session)
            names = self._db.list_tables().tables
            self._table: Any = self._db.open_table(TABLE) if TABLE in names else self._create()
            self._check_schema()

    def _create(self) -> Any:
        from lancedb.index import FTS, BTree, LabelList

        table = self._db.create_table(TABLE, schema=_schema(self._width, self._config))
        words = FTS(
            base_tokenizer="icu", stem=self._config.stem, remove_stop_words=False, ascii_folding=True, lower_case=True
        )
        table.create_index("text", config=words)
        for column in ("labels", "tags"):
            table.create_index(column, config=LabelList())
        for column in ("id", "document"):
            table.create_index(column, config=BTree())
        return table

    def _check_schema(self) -> None:
        if self._table.schema != _schema(self._width, self._config):
            raise ValueError(
                f"it was made for other vectors than of {self._width} dimensions and {self._config.metric}"
            )

    # ---- changes

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Replace or insert, in one transaction of the table."""
        import pyarrow as pa

        rows = check_rows(rows, self._width)
        if not rows:
            return
        batch = pa.Table.from_pylist([self._row(row) for row in rows], schema=self._table.schema)
        with self._lock, self._explained("written"):
            listed = ", ".join(_quoted(row.chunk.id) for row in rows)
            if self._table.count_rows(f"id IN ({listed})"):
                merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(batch, on_bad_vectors="null")  # "bad" is what LanceDB calls a chunk without one
            else:
                self._table.add(batch, on_bad_vectors="null")

    def remove(self, documents: Sequence[str]) -> None:
        """Delete, in one transaction of the table."""
        if documents:
            with self._lock, self._explained("written"):
                self._table.delete(f"document IN ({', '.join(map(_quoted, documents))})")

    def optimize(self) -> None:
        """Merge small files and index what was added, when it is much; build the approximate index when there is enough to find."""
        with self._lock, self._explained("optimized"):
            rows = self._table.count_rows()
            words = next(each.name for each in self._table.list_indices() if "text" in each.columns)
            waiting = self._table.index_stats(words).num_unindexed_rows
            if waiting > min(_UNINDEXED, rows // 50):
                self._table.optimize(cleanup_older_than=_OLD)
            if self._config.ann == "exact" or rows < self._config.ann_from:
                return
            built = self._approximate()
            if built is None or rows > _GROWN * int(built.rpartition("_")[2]):
                # the name says how many rows it was trained on
                self._table.create_index("vector", config=self._ann(rows), name=f"vector_{rows}")
                if built is not None:
                    self._table.drop_index(built)

    def drop(self) -> None:
        """All that it keeps is in its folder."""
        self.close()

    def close(self) -> None:
        """Nothing stays open between calls."""

    # ---- searches

    def dense(self, vector: Vectors, k: int, where: Filter | None = None, *, exact: bool = False) -> list[Hit]:
        """Nearest first. Scores: cosine or dot product, 1 / (1 + distance) for l2, share of equal bits for hamming (cosine after ``rescore``)."""
        vector = check_vector(vector, self._width)
        rescore = self._bits and self._config.rescore
        if rescore and exact:
            rows = self._nearest(vector, "full", "cosine", k, where, exact=True)
            return [hit_of(row, 1.0 - row["_distance"], "dense") for row in rows]
        query: Any = packed(vector) if self._bits else vector
        most = k * self._config.refine if rescore else k
        rows = self._nearest(query, "vector", self._config.metric, most, where, exact=exact, full=rescore)
        if rescore:
            return rescored(vector, rows, k)
        return [hit_of(row, self._score(row["_distance"]), "dense") for row in rows]

    def _nearest(
        self, vector: Any, column: str, metric: str, k: int, where: Filter | None, *, exact: bool, full: bool = False
    ) -> list[dict[str, Any]]:
        query = self._table.search(vector, vector_column_name=column).distance_type(metric)
        if exact:
            query = query.bypass_vector_index()
        else:
            candidates = max(_CANDIDATES, self._config.refine * min(k, _REFINED), k)
            refine = -(-candidates // k)
            query = query.nprobes(self._config.probes)
            query = query if self._bits else query.refine_factor(refine)
            query = query.ef(max(self._config.ef, refine * k)) if self._config.ef else query
        return self._read(query.limit(k), where, [*_SHOWN, "_distance", *(["full"] if full else [])])

    def keyword(self, text: str, k: int, where: Filter | None = None) -> list[Hit]:
        """Best first, by BM25 over the words of ``text``."""
        from lancedb.query import MatchQuery

        if not text.strip():
            return []
        query = self._table.search(MatchQuery(text, "text"), query_type="fts").limit(k)
        return [hit_of(row, float(row["_score"]), "keyword") for row in self._read(query, where, [*_SHOWN, "_score"])]

    def get(self, ids: Sequence[str]) -> list[Hit]:
        """In the order of ``ids``."""
        if not ids:
            return []
        rows = self._rows(f"id IN ({', '.join(map(_quoted, ids))})", len(ids))
        found = {row["id"]: hit_of(row) for row in rows}
        return [found[each] for each in ids if each in found]

    def of_document(self, document: str, first: int = 0, last: int | None = None) -> list[Hit]:
        """By their numbers."""
        condition = f"document = {_quoted(document)} AND number >= {int(first)}"
        condition += f" AND number <= {int(last)}" if last is not None else ""
        rows = self._rows(condition, self._table.count_rows())
        return sorted((hit_of(row) for row in rows), key=lambda hit: hit.chunk.number)

    def documents(self) -> list[str]:
        """Distinct ids."""
        import pyarrow.compute as pc

        with self._explained("read"):
            column = self._table.search().select(["document"]).limit(max(1, self.count())).to_arrow()["document"]
        return list(pc.unique(column).to_pylist())

    def count(self) -> int:
        """Rows of the table."""
        with self._explained("read"):
            return int(self._table.count_rows())

    def approximate(self) -> int:
        """Vectors that the approximate index holds."""
        with self._explained("read"):
            built = self._approximate()
            return int(self._table.index_stats(built).num_indexed_rows) if built else 0

    # ---- inside

    def _approximate(self) -> str | None:
        return next((each.name for each in self._table.list_indices() if "vector" in each.columns), None)

    def _ann(self, rows: int) -> Any:
        from lancedb.index import IvfFlat, IvfHnswSq, IvfPq, IvfRq

        config, metric = self._config, self._config.metric
        cells = config.partitions or max(1, rows // _CELL)
        if metric == "hamming":
            return IvfFlat(distance_type=metric, num_partitions=cells)
        made: dict[str, Callable[[], Any]] = {
            "ivf_rq": lambda: IvfRq(distance_type=metric, num_partitions=cells),
            "ivf_pq": lambda: IvfPq(
                distance_type=metric, num_partitions=cells, num_sub_vectors=_sub_vectors(self._width), max_iterations=20
            ),
            "hnsw": lambda: IvfHnswSq(
                distance_type=metric, num_partitions=config.partitions or max(1, rows // 1_000_000), m=config.m,
                ef_construction=config.ef_construction,
            ),
        }  # fmt: skip
        # a bit a dimension goes by whole bytes
        return made["ivf_pq" if config.ann == "ivf_rq" and self._width % 8 else config.ann]()

    def _row(self, row: IndexRow) -> dict[str, Any]:
        vector: Any = row.vector if row.chunk.searched else None
        full = {"full": None if vector is None else vector.astype(np.float16)} if self._config.rescore else {}
        return full | {
            "id": row.chunk.id,
            "document": row.document,
            "number": row.chunk.number,
            "text": row.chunk.embedded if row.chunk.searched else None,
            "source": row.source,
            "title": row.title,
            "date": row.date,
            "labels": [f"={each}" for each in row.labels] or [_PUBLIC],
            "tags": tags(row.meta),
            "chunk": chunk_json(row.chunk),
            "meta": meta_json(row),
            "vector": packed(vector) if self._bits and vector is not None else vector,
        }

    def _score(self, distance: float) -> float:
        if self._config.metric in ("cosine", "dot"):
            return 1.0 - distance
        if self._config.metric == "l2":
            return 1.0 / (1.0 + math.sqrt(max(0.0, distance)))  # LanceDB gives the square
        return 1.0 - distance / self._width

    def _rows(self, condition: str, most: int) -> list[dict[str, Any]]:
        with self._explained("read"):
            rows: list[dict[str, Any]] = (
                self._table.search().where(condition).limit(max(1, most)).select(_SHOWN).to_list()
            )
        return rows

    def _read(self, query: Any, where: Filter | None, shown: list[str]) -> list[dict[str, Any]]:
        condition = _condition(where)
        query = query.where(condition, prefilter=True) if condition else query
        with self._explained("searched"):
            rows: list[dict[str, Any]] = query.select(shown).to_list()
        return rows

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """LanceDB's errors as StoreError."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            full = "No space left" in str(error)
            raise StoreError(
                f"the index in {self._folder} cannot be {what}: {str(error)[:500]}",
                hint=None if full else f"luthier kb rebuild {self._folder.parent.name}",
            ) from error


_PUBLIC = ""
"""Kept for a document without access labels; labels are kept with a ``=`` before them."""


def _sub_vectors(width: int) -> int:
    """Pieces that a vector is compressed in: of 8 dimensions where that divides the width (LanceDB asks for equal ones)."""
    return next(width // each for each in (8, 4, 2, 1) if width % each == 0)


def _schema(width: int, config: Config) -> Any:
    import pyarrow as pa

    bits = config.metric == "hamming"
    vector = pa.list_(pa.uint8(), (width + 7) // 8) if bits else pa.list_(pa.float32(), width)
    texts = [(name, pa.utf8()) for name in ("id", "document", "text", "source", "title", "date", "chunk", "meta")]
    lists = [(name, pa.list_(pa.utf8())) for name in ("labels", "tags")]
    full = [("full", pa.list_(pa.float16(), width))] if config.rescore else []
    return pa.schema([*texts, ("number", pa.int32()), *lists, ("vector", vector), *full])


def _condition(where: Filter | None) -> str:
    """A filter as SQL of DataFusion. Every text is quoted; nothing of a user's is ever syntax."""
    parts: list[str] = []
    if where is None:
        return ""
    if where.labels is not None:
        listed = ", ".join([_quoted(_PUBLIC), *(_quoted(f"={each}") for each in where.labels)])
        parts.append(f"array_has_any(labels, [{listed}])")
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
