"""What the indexes share: rows checked, kept as JSON, and read back as hits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.core.document import Chunk, Hit
from luthier.core.engine import Vectors
from luthier.core.errors import InputError
from luthier.knowledge.index import IndexRow

_FIELDS = tuple(each.name for each in fields(Chunk))
_TUPLES = ("blocks", "headings", "pages")


def check_rows(rows: Sequence[IndexRow], width: int) -> list[IndexRow]:
    """The rows, of equal chunk ids the last one. Raises InputError for vectors of another width or with what is no number."""
    widths = {len(row.vector) for row in rows if row.vector is not None}
    if widths - {width}:
        raise InputError(f"vectors must have {width} dimensions here; got {', '.join(map(str, sorted(widths)))}")
    if not all(np.isfinite(row.vector).all() for row in rows if row.vector is not None):
        raise InputError("vectors must be finite numbers; the embedding model gave others")
    return list({row.chunk.id: row for row in rows}.values())


def check_vector(vector: Vectors, width: int) -> Vectors:
    """A question's vector as float32. Raises InputError for another width or what is no number."""
    out = np.asarray(vector, np.float32)
    if out.shape != (width,):
        raise InputError(f"the question's vector must have {width} dimensions; got {list(out.shape)}")
    if not np.isfinite(out).all():
        raise InputError("the question's vector must hold finite numbers; the embedding model gave others")
    return out


def packed(vector: Vectors) -> npt.NDArray[np.uint8]:
    """One bit a dimension: whether it is positive."""
    return np.packbits(vector > 0)


def chunk_json(chunk: Chunk) -> str:
    """A chunk as JSON."""
    return json.dumps({name: getattr(chunk, name) for name in _FIELDS}, ensure_ascii=False)


def meta_json(row: IndexRow) -> str:
    """What is known about its document, as JSON."""
    return json.dumps(dict(row.meta), ensure_ascii=False, default=str)


def hit_of(row: Mapping[str, Any], score: float = 0.0, by: str = "") -> Hit:
    """What was kept, as a hit; ``by`` names the search that gave the score."""
    values = json.loads(row["chunk"])
    values |= {name: tuple(values[name]) for name in _TUPLES if values[name] is not None}
    meta = json.loads(row["meta"]) | ({"date": row["date"]} if row["date"] else {})
    return Hit(Chunk(**values), row["document"], row["source"], row["title"], score, {by: score} if by else {}, meta)


def rescored(vector: Vectors, rows: Sequence[Mapping[str, Any]], k: int) -> list[Hit]:
    """The ``k`` best of candidates by the cosine of their whole vectors (``full``)."""
    if not rows:
        return []
    kept = np.asarray([row["full"] for row in rows], np.float32)
    lengths = np.linalg.norm(kept, axis=1) * np.linalg.norm(vector)
    scores = kept @ vector / np.maximum(lengths, 1e-12)
    best = np.argsort(-scores, kind="stable")[:k]
    return [hit_of(rows[place], float(scores[place]), "dense") for place in best]
