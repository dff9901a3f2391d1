"""The LanceDB index: approximate search, other processes, damaged files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.knowledge.indexes.conftest import WIDTH, row, unit

from luthier.core.document import Chunk
from luthier.core.errors import InputError, StoreError
from luthier.knowledge.index import Filter, Index, IndexRow
from luthier.knowledge.indexes.lancedb import Config
from luthier.knowledge.indexes.lancedb import open as open_lancedb


def filled(folder: Path, rows: int, width: int = WIDTH, **options: object) -> tuple[Index, np.ndarray]:
    """An index of vectors in clusters, and the vectors."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, width))
    vectors = centres[rng.integers(0, 20, rows)] + 0.4 * rng.standard_normal((rows, width))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = open_lancedb(folder, width, Config.model_validate(options))
    index.add(
        [IndexRow(Chunk(f"c{n}", f"text {n}", n, (0, 0)), f"d{n % 10}", "s", vector=vectors[n]) for n in range(rows)]
    )
    index.optimize()
    return index, vectors


@pytest.mark.parametrize(
    "options",
    [
        {"ann": "ivf_rq"},
        {"ann": "ivf_rq", "metric": "l2"},
        {"ann": "ivf_rq", "metric": "dot", "partitions": 8, "probes": 8},
        {"ann": "ivf_pq", "partitions": 8, "probes": 8},
        {"ann": "hnsw"},
        {"ann": "hnsw", "m": 8, "ef_construction": 64, "ef": 100},
        {"ann": "hnsw", "metric": "l2"},
    ],
)
def test_approximate_search_finds_what_exact_search_finds(tmp_path: Path, options: dict[str, object]) -> None:
    index, vectors = filled(tmp_path / "index", 1200, 96, ann_from=500, **options)
    assert index.approximate() == 1200
    found = 0
    for seed in range(20):
        query = vectors[seed * 50] + 0.5 * unit(seed + 5000, 96)
        query /= np.linalg.norm(query)
        best = [hit.chunk.number for hit in index.dense(query, 10, exact=True)]
        if options.get("metric") != "l2":
            assert best == np.argsort(-(vectors @ query))[:10].tolist()
        found += len(set(best) & {hit.chunk.number for hit in index.dense(query, 10)})
    assert found >= 170, found  # of 200; 96 dimensions are few for a bit each
    only = index.dense(vectors[3], 10, Filter(documents=("d7",)))
    assert len(only) == 10 and {hit.document for hit in only} == {"d7"}


def test_few_probes_find_less(tmp_path: Path) -> None:
    """The options reach LanceDB: with one cell of many and no second look the answer is another."""
    index, _vectors = filled(tmp_path / "index", 1200, ann_from=500, ann="ivf_pq", partitions=64, probes=1, refine=1)
    found = sum(
        len({h.chunk.id for h in index.dense(unit(n), 10)} & {h.chunk.id for h in index.dense(unit(n), 10, exact=True)})
        for n in range(20)
    )
    assert found < 170


def test_exact_never_builds(tmp_path: Path) -> None:
    index, _ = filled(tmp_path / "index", 600, ann="exact", ann_from=256)
    assert index.approximate() == 0


def test_what_is_added_after_the_approximate_index_is_found_at_once(tmp_path: Path) -> None:
    index, _ = filled(tmp_path / "index", 600, ann_from=500)
    index.add([row(9000, "brand new")])
    assert index.dense(unit(9000), 1)[0].chunk.id == index.keyword("brand", 1)[0].chunk.id == "c9000"
    index.optimize()
    assert index.dense(unit(9000), 1)[0].chunk.id == index.keyword("brand", 1)[0].chunk.id == "c9000"


def test_the_approximate_index_is_trained_anew_when_there_is_much_more(tmp_path: Path) -> None:
    index, _ = filled(tmp_path / "index", 600, ann_from=500)
    index.add([row(n) for n in range(10_000, 10_700)])
    index.optimize()
    assert index.approximate() == 1300
    assert index.dense(unit(10_005), 1)[0].chunk.id == "c10005"


def test_binary_vectors_in_cells(tmp_path: Path) -> None:
    index, vectors = filled(tmp_path / "index", 600, ann_from=500, metric="hamming", partitions=4, probes=4)
    assert index.approximate() == 600
    query = unit(1)
    want = np.sort(((vectors > 0) == (query > 0)).mean(axis=1))[::-1][:10]
    assert np.allclose([hit.score for hit in index.dense(query, 10)], want)


WRITER = """
import sys
from pathlib import Path
from luthier.knowledge.indexes.lancedb import Config, open
from tests.knowledge.indexes.conftest import WIDTH, row
index = open(Path(sys.argv[1]), WIDTH, Config())
for start in range(0, 100, 10):
    index.add([row(n, f"word{n}") for n in range(start, start + 10)])
    index.remove(["nobody"])
    index.optimize()
    print(index.count(), flush=True)
"""


def test_two_readers_see_whole_additions_of_a_writing_process(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    readers = [open_lancedb(folder, WIDTH, Config()) for _ in range(2)]
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            for reader in readers:
                count = reader.count()
                assert count >= int(line) and count % 10 == 0
                assert len(reader.dense(unit(3), 200)) % 10 == 0
    assert writer.returncode == 0
    assert [reader.count() for reader in readers] == [100, 100]
    assert readers[0].keyword("word99", 1)[0].chunk.id == "c99"


def test_other_vectors_than_it_was_made_for(tmp_path: Path) -> None:
    open_lancedb(tmp_path / "index", WIDTH, Config()).add([row(0)])
    with pytest.raises(StoreError, match="24 dimensions") as error:
        open_lancedb(tmp_path / "index", 24, Config())
    assert error.value.hint == f"luthier kb rebuild {tmp_path.name}"


@pytest.mark.parametrize("what", ["_versions", "data", "_indices"])
@pytest.mark.parametrize("how", ["emptied", "garbled", "deleted"])
def test_damaged_files_are_an_error_that_says_what_to_do(tmp_path: Path, what: str, how: str) -> None:
    index, _ = filled(tmp_path / "index", 40)
    index.close()
    files = [path for path in (tmp_path / "index" / "chunks.lance" / what).rglob("*") if path.is_file()]
    assert files
    for path in files:
        if how == "deleted":
            path.unlink()
        else:
            path.write_bytes(b"" if how == "emptied" else b"not what it was" * 20)
    with pytest.raises(StoreError, match="cannot be") as error:
        again = open_lancedb(tmp_path / "index", WIDTH, Config())
        again.dense(unit(1), 3)
        again.get(["c1"])
        again.keyword("text", 3)
    assert "luthier kb rebuild" in str(error.value)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be opened"):
        open_lancedb(tmp_path / "file" / "index", WIDTH, Config())


def test_wrong_options() -> None:
    for options in ({"ann": "magic"}, {"m": 1}, {"ann_from": 3}, {"metric": "cosine", "rescore": True}):
        with pytest.raises((InputError, ValueError)):
            Config.model_validate(options)
