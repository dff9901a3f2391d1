"""Indexes of every entry of the catalogue, with rows made by a few words of code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core import catalog
from luthier.core.document import Chunk
from luthier.core.engine import Vectors
from luthier.knowledge.index import Index, IndexRow

WIDTH = 16
OPTIONS: Mapping[str, Mapping[str, Any]] = {"qdrant": {"local": True}}
"""What an entry needs where no server runs."""

OpenIndex = Callable[..., Index]


def unit(seed: int, width: int = WIDTH) -> Vectors:
    """A random direction."""
    vector = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def row(number: int, text: str = "", *, document: str = "doc", vector: Any = ..., **more: Any) -> IndexRow:
    """Chunk ``c<number>`` with a vector that follows from its number."""
    kept = {name: more.pop(name) for name in ("source", "title", "labels", "date", "meta") if name in more}
    chunk = Chunk(f"c{number}", text or f"text {number}", number, (0, 0), **more)
    found = unit(number) if vector is ... else vector
    return IndexRow(chunk, document, kept.pop("source", "/docs/a.txt"), vector=found, **kept)


@pytest.fixture(params=catalog.names("indexes"))
def entry(request: pytest.FixtureRequest) -> str:
    """Each index of the catalogue."""
    return str(request.param)


@pytest.fixture
def opened(entry: str, tmp_path: Path) -> Iterator[OpenIndex]:
    """Opens the entry's index in a folder of this test (``again`` under the same name)."""
    made: list[Index] = []

    def open_one(name: str = "index", width: int = WIDTH, **options: Any) -> Index:
        found = catalog.load("indexes", entry)
        config = found.configure({**OPTIONS.get(entry, {}), **options})
        made.append(found(tmp_path / name, width, config))
        return made[-1]

    yield open_one
    for each in made:
        each.close()
