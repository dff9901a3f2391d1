from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import StoreError
from luthier.store.database import Store, open_store
from luthier.tournament.entrant import Entrant
from luthier.tournament.entry import Entry, Planned
from luthier.tournament.memory import STATE, Memory


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


def entry() -> Entry:
    return Entry(Planned(Entrant("mine", "fake"), None))


def test_nothing_known_is_nothing_recalled(store: Store, tmp_path: Path) -> None:
    found = entry()
    Memory(store, tmp_path).recall([found])
    assert (found.trained, found.results) == ([], {})


def test_a_damaged_file_is_told_with_what_to_do(store: Store, tmp_path: Path) -> None:
    (tmp_path / STATE).write_text("{half")
    with pytest.raises(StoreError, match="damaged") as error:
        Memory(store, tmp_path).recall([entry()])
    assert error.value.hint == f"remove it: {tmp_path / STATE}"


def test_a_file_of_an_earlier_version_recalls_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / STATE).write_text('{"mine": {"target": "x", "digest": "y", "tune_run": "z", "eval_run": "gone"}}')
    found = entry()
    Memory(store, tmp_path).recall([found])
    assert found.results == {}


def test_an_evaluation_that_was_removed_is_asked_again(store: Store, tmp_path: Path) -> None:
    (tmp_path / STATE).write_text('{"mine": {"evaluations": {"fake": "run_gone"}}}')
    found = entry()
    Memory(store, tmp_path).recall([found])
    assert found.scored == []
