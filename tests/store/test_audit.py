from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, exc, update

from luthier.core.errors import InputError, StoreError
from luthier.store.audit import FIRST, audit, list_audit, verify
from luthier.store.tables import audit_log


def test_rows_are_chained_by_hashes_that_anybody_can_compute(store):
    first = audit(
        store, "user:ann", "key.create", "key_1", {"limits": {"cost_per_day": 1.5}, "naïve": None}, tenant="acme"
    )
    second = audit(store, "key_1", "model.load", "tickets", address="10.0.0.7")
    assert (first.number, first.previous, second.number, second.previous) == (1, FIRST, 2, first.hash)
    plain = {
        "number": 1, "at": first.at, "actor": "user:ann", "tenant": "acme", "address": "", "action": "key.create",
        "target": "key_1", "detail": {"limits": {"cost_per_day": 1.5}, "naïve": None}, "previous": FIRST,
    }  # fmt: skip
    assert first.hash == hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    assert verify(store) == second
    assert list_audit(store) == [second, first]
    assert list_audit(store, action="key.*") == [first]
    assert list_audit(store, action="key_") == []
    assert list_audit(store, actor="key_1", target="tickets") == [second]
    assert list_audit(store, since="9999") == []


def test_an_empty_log_is_whole(store):
    assert verify(store) is None


def test_the_database_itself_refuses_to_change_or_remove_rows(store):
    audit(store, "a", "x", "t")
    for statement in (update(audit_log).values(actor="b"), delete(audit_log)):
        with pytest.raises((exc.IntegrityError, StoreError), match="append-only"), store.write() as connection:
            connection.execute(statement)
    assert list_audit(store)[0].actor == "a"


def tampered(store, *statements):
    """As somebody would who has the file: triggers off, rows changed."""
    for _ in range(4):
        audit(store, "a", "x", "t", {"n": 1})
    raw = sqlite3.connect(store.home.root / "luthier.db")
    raw.execute("DROP TRIGGER audit_log_no_update")
    raw.execute("DROP TRIGGER audit_log_no_delete")
    for statement in statements:
        raw.execute(statement)
    raw.commit()
    raw.close()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE audit_log SET actor = 'b' WHERE number = 2", "row 2"),
        ("UPDATE audit_log SET detail = '{\"n\": 2}' WHERE number = 3", "row 3"),
        ("UPDATE audit_log SET at = '2020' WHERE number = 4", "row 4"),
        ("DELETE FROM audit_log WHERE number = 1", "row 1 is missing"),
        ("DELETE FROM audit_log WHERE number = 3", "row 3 is missing"),
    ],
)
def test_a_changed_or_removed_row_is_found(store, statement, said):
    tampered(store, statement)
    with pytest.raises(StoreError, match=said):
        verify(store)


def test_rows_renumbered_after_a_removal_are_found(store):
    tampered(
        store, "DELETE FROM audit_log WHERE number = 2", "UPDATE audit_log SET number = number - 1 WHERE number > 2"
    )
    with pytest.raises(StoreError, match="row 2"):
        verify(store)


def test_a_cut_end_is_found_by_the_hash_that_was_kept_elsewhere(store):
    tampered(store)
    kept = verify(store).hash
    assert verify(store, kept[:16]).hash == kept
    with pytest.raises(InputError, match="12 to 64"):
        verify(store, "abc")
    with sqlite3.connect(store.home.root / "luthier.db") as raw:
        raw.execute("DELETE FROM audit_log WHERE number = 4")
    assert verify(store).number == 3  # the chain by itself cannot tell
    with pytest.raises(StoreError, match="was cut"):
        verify(store, kept)


def test_writers_in_threads_and_processes_make_one_chain(store):
    code = "from luthier.store.audit import audit\nfrom luthier.store.database import open_store\n"
    code += "for n in range(20): audit(open_store(), 'other', 'x', str(n))"
    other = subprocess.Popen([sys.executable, "-c", code])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: audit(store, "here", "x", str(n)), range(40)))
    assert other.wait() == 0
    assert verify(store).number == 60
