"""Recall of approximate search, on a base and on an index that forgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from luthier.cli import build_app
from luthier.core.document import Chunk, Hit
from luthier.core.engine import Vectors
from luthier.core.errors import InputError
from luthier.engines.fake import Config, FakeEngine
from luthier.knowledge.base import create_base
from luthier.knowledge.index import Filter
from luthier.knowledge.recall import ann_recall, measure


class Forgets:
    """Of ten nearest it finds eight for even queries and ten for odd ones."""

    def dense(self, vector: Vectors, k: int, where: Filter | None = None, *, exact: bool = False) -> list[Hit]:
        numbers = range(k) if exact or int(vector[0]) % 2 else [*range(k - 2), 100, 101]
        return [Hit(Chunk(f"c{n}", "t", n, (0, 0)), "d", "s") for n in numbers]

    def count(self) -> int:
        return 500

    def approximate(self) -> int:
        return 400


def test_the_share_of_exact_hits_that_is_found() -> None:
    found = measure(Forgets(), np.arange(4, dtype=np.float32)[:, None], 10)  # type: ignore[arg-type]
    assert (found.recall, found.worst, found.queries, found.k) == (pytest.approx(0.9), 0.8, 4, 10)
    assert (found.chunks, found.approximate) == (500, 400)
    assert found.ann_ms >= 0 and found.exact_ms >= 0
    with pytest.raises(InputError, match="k must"):
        measure(Forgets(), np.ones((1, 1), np.float32), 0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="queries"):
        measure(Forgets(), np.ones((0, 1), np.float32))  # type: ignore[arg-type]


def documents(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        lines = [f"{name} sentence {n} of file {number}. 第{n}句说的是{name}。" for n in range(60)]
        (folder / f"{number}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return folder


def test_of_a_base(home: Path, tmp_path: Path) -> None:
    index = {"name": "lancedb", "ann_from": 256, "ann": "hnsw", "ef": 200}
    chunker = {"name": "fixed", "tokens": 12, "overlap": 0}
    names = ["apple", "violin", "delivery", "river", "stone", "cloud"]
    with create_base(
        "b", embedder="fake", engine=FakeEngine("fake", Config(width=16)), index=index, chunker=chunker
    ) as base:
        with pytest.raises(InputError, match="no chunks"):
            ann_recall(base)
        base.add([documents(tmp_path / "files", names)])
        found = ann_recall(base, 30, 5)
        assert found.approximate == found.chunks > 256 and found.queries == 30
        assert found.recall > 0.9
        same = ann_recall(base, 30, 5)
        assert (same.recall, same.worst) == (found.recall, found.worst)  # the same draw
        assert ann_recall(base, questions=["violin sentence", "第3句"], k=3).queries == 2
        with pytest.raises(InputError, match="sample"):
            ann_recall(base, 0)


def test_the_command(home: Path, tmp_path: Path) -> None:
    app = build_app()
    with create_base("b", embedder="fake", chunker={"name": "fixed", "tokens": 12, "overlap": 0}) as base:
        base.add([documents(tmp_path / "files", ["apple"])])
    said = CliRunner().invoke(app, ["kb", "recall", "b"])
    assert said.exit_code == 0 and "no approximate index" in said.stdout
    said = CliRunner().invoke(app, ["kb", "recall", "b", "--json", "--sample", "5", "-k", "3"])
    found = json.loads(said.stdout)
    assert (found["name"], found["recall"], found["approximate"], found["k"]) == ("b", 1.0, 0, 3)
    assert CliRunner().invoke(app, ["kb", "recall", "nobody"]).exit_code != 0
