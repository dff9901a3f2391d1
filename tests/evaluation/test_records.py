from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from luthier.core.errors import InputError, NotFoundError, StoreError
from luthier.evaluation.records import RECORDS, Record, RecordsLog, find, load_records, read_records, wrong_first
from luthier.store.database import open_store
from luthier.store.runs import start

ONE = Record(
    0, "id0", "f:1", "where is it", "a", "b", {"accuracy": 0.0}, options=(("a", -3.0, 1, False), ("b", -1.0, 1, True))
)


def test_records_survive_the_disk(tmp_path: Path) -> None:
    log = RecordsLog(tmp_path)
    log.append([replace(ONE, index=1), ONE])
    log.close()
    assert read_records(tmp_path) == [ONE, replace(ONE, index=1)]


def test_a_torn_last_line_is_left_out_and_overwritten(tmp_path: Path) -> None:
    log = RecordsLog(tmp_path)
    log.append([ONE, replace(ONE, index=1)])
    log.close()
    path = tmp_path / RECORDS
    path.write_bytes(path.read_bytes()[:-20])
    assert [r.index for r in read_records(tmp_path)] == [0]
    log = RecordsLog(tmp_path)
    log.append([replace(ONE, index=1, answer="a")])
    log.close()
    assert [(r.index, r.answer) for r in read_records(tmp_path)] == [(0, "b"), (1, "a")]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_text("{not json\n{}\n")
    with pytest.raises(StoreError, match=r"records\.jsonl:1"):
        read_records(tmp_path)


def test_keys_of_newer_versions_are_dropped() -> None:
    assert Record.from_dict({**ONE.as_dict(), "later": 1}) == ONE


def test_the_surest_mistake_comes_first() -> None:
    sure = replace(ONE, index=1, options=(("a", -9.0, 1, False), ("b", -0.1, 1, True)))
    right = replace(ONE, index=2, answer="a", scores={"accuracy": 1.0})
    assert wrong_first([ONE, right, sure], "accuracy") == [sure, ONE]


def test_finding_a_run(home: Path) -> None:
    store = open_store()
    with pytest.raises(InputError, match="no run yet"):
        find(store, "latest")
    first = start(store, "eval", "support/one", {}, {})
    second = start(store, "tune", "two", {}, {})
    assert find(store, "latest").id == second.id
    assert find(store, "support").id == first.id
    with pytest.raises(NotFoundError):
        find(store, "nothing like it")
    with pytest.raises(InputError, match="only eval runs"):
        load_records(store, second)
