"""Examples on disk are those in memory: the same rows, ids and digests; what is half written is never used."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, UnsupportedError
from luthier.data import stream as streams
from luthier.data.read import read
from luthier.data.stream import split_streamed, stream
from luthier.store.database import Store, open_store

LABELLED = [{"text": f"note {i % 5}", "label": "ab"[i % 2], "n": i % 3} for i in range(50)]
CHATS = [
    {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"it is {i} ünd"}]}
    for i in range(20)
]


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def written(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind.startswith("jsonl"):
        return lines(path, LABELLED)
    if kind == "csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, ["text", "label", "n"])
            table.writeheader()
            table.writerows(LABELLED)
        return path
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(LABELLED), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_the_same_examples_as_in_memory(store: Store, tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    whole, found = read(path), stream(store, path)
    assert tuple(found.examples) == whole.examples
    assert (found.name, found.kind, found.format) == (whole.name, whole.kind, whole.format)
    assert (found.digest, found.labels, found.label_counts()) == (whole.digest, whole.labels, whole.label_counts())
    assert list(found.ids()) == list(whole.ids())
    assert any(name.endswith("-2") for name in found.ids()), "copies have names of their own"
    assert found.examples[3:5] == whole.examples[3:5]
    assert found.examples[-1] == whole.examples[-1]


def test_chats_and_renamed_columns(store: Store, tmp_path: Path) -> None:
    chats = lines(tmp_path / "chats.jsonl", CHATS)
    assert tuple(stream(store, chats).examples) == read(chats).examples
    own = lines(tmp_path / "own.jsonl", [{"body": row["text"], "label": row["label"]} for row in LABELLED])
    renames = {"text": "body"}
    assert tuple(stream(store, own, columns=renames, limit=7).examples) == read(own, columns=renames, limit=7).examples


def test_read_once_and_again_when_the_file_changed(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    path = lines(tmp_path / "rows.jsonl", LABELLED)
    first = stream(store, path)
    with monkeypatch.context() as patch:
        patch.setattr(streams, "rows_of", lambda path: pytest.fail("read twice"))
        assert stream(store, path).digest == first.digest
    lines(path, LABELLED[1:])
    assert len(stream(store, path)) == 49


def test_nothing_half_written_is_used(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    path = lines(tmp_path / "rows.jsonl", LABELLED)

    def stops(path: Path) -> Any:
        yield 1, LABELLED[0]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(streams, "rows_of", stops)
        with pytest.raises(KeyboardInterrupt):
            stream(store, path)
    assert not list((store.home.root / "streams").glob("*")) and not list(store.home.staging.iterdir())
    folder = stream(store, path).folder
    (folder / "rows.json").write_bytes(b"{")
    assert tuple(stream(store, path).examples) == read(path).examples, "damaged: read anew"


def test_broken_rows_are_named_or_left_out(store: Store, tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", LABELLED)
    path.write_text(path.read_text() + '{"text": "x"\n{"text": "y"}\n{"other": 1}\n')
    with pytest.raises(DataError) as ours:
        stream(store, path)
    with pytest.raises(DataError) as theirs:
        read(path)
    assert [line.split(" (fields")[0] for line in str(ours.value).splitlines()[:2]] == [
        line.split(" (fields")[0] for line in str(theirs.value).splitlines()[:2]
    ]
    kept = stream(store, path, skip_bad=True)
    assert len(kept) == 50 and len(kept.problems) == 3


@pytest.mark.parametrize("name", ["rows.json", "book.txt"])
def test_files_that_are_read_as_a_whole_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[]")
    with pytest.raises(UnsupportedError, match="JSON Lines"):
        stream(store, tmp_path / name)


def test_a_missing_or_empty_file_is_refused_as_ever(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        stream(store, tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        stream(store, tmp_path / "rows.jsonl")


def test_a_split_follows_from_content_and_seed(store: Store, tmp_path: Path) -> None:
    rows = [{"text": f"note {i}", "label": "ab"[i % 2]} for i in range(400)]
    rows += rows[:40]
    shares = {"train": 0.7, "validation": 0.2, "test": 0.1}
    whole = stream(store, lines(tmp_path / "rows.jsonl", rows))
    cut = split_streamed(whole, **shares)
    sides = {e.text: name for name in shares for e in getattr(cut, name).examples}
    assert sum(len(getattr(cut, name)) for name in shares) == len(rows), "copies on one side"
    assert 250 < len(cut.train) < 360
    assert cut.train.label_counts().total() == len(cut.train)
    turned = split_streamed(stream(store, lines(tmp_path / "turned.jsonl", rows[::-1])), **shares)
    assert {e.text: name for name in shares for e in getattr(turned, name).examples} == sides
    assert split_streamed(whole, **shares, seed=1).train.digest != cut.train.digest
    names = {e.id for e in whole.examples}
    assert {e.id for name in shares for e in getattr(cut, name).examples} == names
    with pytest.raises(DataError, match="none falls to validation"):
        split_streamed(whole.part("few", whole.rows[:2]), train=0.98, validation=0.01, test=0.01)
