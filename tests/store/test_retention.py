from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from luthier.core.errors import InputError
from luthier.core.trace import Feedback, Trace
from luthier.store import retention
from luthier.store.feedback import feedback_on, record_feedback, record_inferred
from luthier.store.lineage import Node, lineage, record_edge
from luthier.store.retention import count_traces, purge
from luthier.store.trace_query import TraceFilter, query_traces
from luthier.store.traces import record_traces

NOW = datetime.now(UTC)


def trace(number, days, **changes):
    at = (NOW - timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Trace(f"t{number:05d}", at, **{"model": "m", "operation": "chat"} | changes)


def ids(store):
    return sorted(t.id for t in query_traces(store, limit=10_000))


def test_old_traces_go_and_those_that_somebody_spoke_of_stay(store, monkeypatch):
    monkeypatch.setattr(retention, "AT_ONCE", 3)
    record_traces(store, [trace(n, days=n) for n in range(10)])
    record_feedback(store, "t00008", rating=1)
    record_inferred(store, [Feedback("fb_i", "t00009", "2026", kind="implicit", event="stopped", source="inferred")])
    done = purge(store, days=4.5)
    assert (done.traces, done.feedback, done.kept) == (4, 1, 1)
    assert ids(store) == ["t00000", "t00001", "t00002", "t00003", "t00004", "t00008"]
    assert purge(store, days=4.5).traces == 0
    assert (purge(store, days=4.5, rated_too=True).traces, feedback_on(store, "t00008")) == (1, [])


def test_only_so_many_rows(store):
    record_traces(store, [trace(n, days=n / 1000) for n in range(700)])
    assert purge(store, max_rows=700).traces == 0
    assert purge(store, max_rows=100).traces == 600
    assert ids(store) == [f"t{n:05d}" for n in range(100)]


def test_what_a_filter_fits(store):
    record_traces(store, [trace(n, days=n, tenant="ab"[n % 2]) for n in range(6)])
    assert purge(store, matching=TraceFilter(tenant="a")).traces == 3
    assert purge(store, days=3.5, matching=TraceFilter(tenant="b")).traces == 1
    assert ids(store) == ["t00001", "t00003"]


def test_nothing_chosen_deletes_nothing(store):
    record_traces(store, [trace(1, days=1)])
    for chosen in ({}, {"matching": TraceFilter()}, {"days": -1.0}):
        with pytest.raises(InputError):
            purge(store, **chosen)
    assert count_traces(store) == 1


def test_the_lineage_of_a_dataset_outlives_the_traces_it_was_made_of(store):
    record_traces(store, [trace(1, days=9)])
    said = record_feedback(store, "t00001", rating=1)
    record_edge(store, Node("feedback", said.id), "gave", Node("dataset", "d" * 64, "corrections"))
    assert purge(store, days=1, rated_too=True).feedback == 1
    graph = lineage("corrections", store)
    assert [(e.source.id, e.relation) for e in graph.edges] == [("purged:*", "gave (1)")]


def test_deleted_texts_are_overwritten_in_the_file(store):
    record_traces(store, [trace(n, days=5, answer=f"wombat-{n} " * 50) for n in range(200)])
    database = store.home.root / "luthier.db"
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"wombat-150" in database.read_bytes()
    purge(store, days=1)
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"wombat-" not in database.read_bytes()


def test_it_ends_between_two_transactions_when_told_to(store, monkeypatch):
    monkeypatch.setattr(retention, "AT_ONCE", 10)
    record_traces(store, [trace(n, days=5) for n in range(100)])
    stopped = threading.Event()

    class Once(threading.Event):
        def wait(self, timeout=None):
            stopped.set()
            return True

    assert purge(store, days=1, stopped=Once(), pause_s=0.01).traces == 10


def test_a_writer_waits_milliseconds_while_20_000_traces_go(store):
    for start in range(0, 20_000, 2000):
        record_traces(store, [trace(n, days=5, answer="x" * 300) for n in range(start, start + 2000)])
    done: list[int] = []
    purging = threading.Thread(target=lambda: done.append(purge(store, days=1).traces))
    purging.start()
    slowest, number = 0.0, 50_000
    while purging.is_alive():
        began = time.perf_counter()
        record_traces(store, [trace(number, days=0)])
        slowest, number = max(slowest, time.perf_counter() - began), number + 1
    purging.join()
    assert done == [20_000]
    assert number > 50_003, "some were written between two transactions"
    assert slowest < 2.0
