from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from luthier.core.errors import StoreError
from luthier.core.trace import Trace
from luthier.gateway.watch.traces import TraceWriter
from luthier.store.database import open_store
from luthier.store.traces import find_trace, list_traces, record_traces


def trace(name: str) -> Trace:
    return Trace(name, "2026-01-01T00:00:00.000Z", "m", "chat")


Write = Callable[[Sequence[Trace]], None]


@pytest.fixture
def writer() -> Iterator[Callable[..., TraceWriter]]:
    made: list[TraceWriter] = []

    def make(write: Write, **options: int) -> TraceWriter:
        made.append(TraceWriter(write, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_is_put_is_in_the_store_after_a_flush(tmp_path: Path, writer: Callable[..., TraceWriter]) -> None:
    store = open_store(tmp_path)
    traces = writer(lambda batch: record_traces(store, batch))
    for number in range(600):
        traces.put(trace(f"t{number}"))
    assert traces.flush()
    assert len(list_traces(store, limit=1000)) == 600
    assert traces.state() == {"written": 600, "waiting": 0, "dropped": 0, "error": None}


def test_close_writes_what_waits(writer: Callable[..., TraceWriter]) -> None:
    written: list[Trace] = []
    traces = writer(written.extend)
    traces.put(trace("t"))
    traces.close()
    traces.close()
    assert [each.id for each in written] == ["t"]


def test_a_store_that_refuses_is_said_once_and_tried_again(
    writer: Callable[..., TraceWriter], caplog: pytest.LogCaptureFixture
) -> None:
    written: list[Trace] = []
    full = True

    def write(batch: Sequence[Trace]) -> None:
        if full:
            raise StoreError("the disk is full: cannot write luthier.db")
        written.extend(batch)

    traces = writer(write)
    with caplog.at_level(logging.WARNING, "luthier.gateway"):
        traces.put(trace("a"))
        assert not traces.flush()
        traces.put(trace("b"))
        assert not traces.flush()
        assert "disk is full" in traces.state()["error"]
        assert sum("disk is full" in each.getMessage() for each in caplog.records) == 1
        full = False
        while not traces.flush():  # a try that began before the disk had room may still fail
            continue
    assert [each.id for each in written] == ["a", "b"]
    assert traces.state()["error"] is None
    assert any("written again" in each.getMessage() for each in caplog.records)


def test_only_as_many_wait_as_there_is_room_for(
    writer: Callable[..., TraceWriter], caplog: pytest.LogCaptureFixture
) -> None:
    def write(batch: Sequence[Trace]) -> None:
        raise StoreError("the disk is full")

    traces = writer(write, capacity=5)
    traces.put(trace("first"))
    traces.flush()  # it was tried, and waits again
    for number in range(20):
        traces.put(trace(f"t{number}"))
    with caplog.at_level(logging.ERROR, "luthier.gateway"):
        traces.close()
    assert traces.dropped == 21
    assert "could not be written before the end" in caplog.text


def test_a_trace_that_no_store_can_hold_does_not_stop_the_others(writer: Callable[..., TraceWriter]) -> None:
    written: list[str] = []
    held = threading.Event()

    def write(batch: Sequence[Trace]) -> None:
        held.wait(10)  # so that all of them come in one batch
        if any(each.id == "bad" for each in batch):
            raise ValueError("no such character")
        written.extend(each.id for each in batch)

    traces = writer(write)
    for name in ("first", "a", "bad", "b"):
        traces.put(trace(name))
    held.set()
    assert traces.flush()
    assert written == ["first", "a", "b"]
    assert traces.state()["dropped"] == 1


def test_a_lone_surrogate_is_given_up_not_retried(tmp_path: Path, writer: Callable[..., TraceWriter]) -> None:
    store = open_store(tmp_path)
    traces = writer(lambda batch: record_traces(store, batch))
    traces.put(Trace("bad", "2026", "m", "chat", answer="\ud800"))
    traces.put(trace("good"))
    assert traces.flush()
    assert find_trace(store, "good").id == "good"
    assert traces.state()["dropped"] == 1
