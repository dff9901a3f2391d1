from __future__ import annotations

from typing import Any

from luthier.core.trace import Trace
from luthier.store.database import open_store
from luthier.store.feedback import record_feedback
from luthier.store.routes import ratings_of_route, read_route_state, write_route_state
from luthier.store.traces import record_trace


def test_a_state_is_kept_for_each_route_and_digest(home: Any) -> None:
    store = open_store()
    assert read_route_state(store, "r", "d1") is None
    with store.write() as connection:
        write_route_state(connection, "r", "d1", {"status": "running"})
        write_route_state(connection, "r", "d1", {"status": "rolled_back", "metric": "errors"})
        write_route_state(connection, "r", "d2", {"status": "running"})
    assert read_route_state(store, "r", "d1") == {"status": "rolled_back", "metric": "errors"}
    assert read_route_state(store, "r", "d2") == {"status": "running"}
    assert read_route_state(store, "other", "d1") is None


def answered(store: Any, name: str, route: str, arm: str) -> None:
    tries = [
        {"target": "x", "outcome": "error", "by": {route: "x"}},
        {"target": arm, "outcome": "ok", "by": {route: arm}},
    ]
    record_trace(store, Trace(name, "2026-11-20T10:00:00.000Z", arm, "chat", route=route, details={"route": tries}))


def test_ratings_know_which_target_gave_the_answer(home: Any) -> None:
    store = open_store()
    for name, route, arm in (("t1", "r", "a"), ("t2", "r", "b"), ("t3", "other", "a"), ("t4", "r", "a")):
        answered(store, name, route, arm)
    for name, rating in (("t1", 1), ("t2", -1), ("t3", -1)):
        record_feedback(store, name, rating=rating)
    record_feedback(store, "t4", comment="no thumb")
    record_feedback(store, "t4", event="stopped")
    found = ratings_of_route(store, "r", "2026-01-01")
    assert [(each.arm, each.bad) for each in found] == [("a", False), ("b", True)]
    assert ratings_of_route(store, "r", "2999-01-01") == []
