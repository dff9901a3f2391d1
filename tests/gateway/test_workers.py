from __future__ import annotations

import threading

import pytest

from luthier.gateway.workers import Workers


def test_a_thread_is_used_again() -> None:
    workers, seen = Workers(), []
    for _ in range(20):
        workers.run(lambda: seen.append(threading.get_ident()))
        assert workers.join(20)
    assert len(set(seen)) == 1


def test_tasks_run_at_once() -> None:
    """Each of them waits for all the others: with fewer threads than tasks none would end."""
    workers, barrier, passed = Workers(), threading.Barrier(8), []
    for _ in range(8):
        workers.run(lambda: passed.append(barrier.wait(20)))
    assert workers.join(20)
    assert sorted(passed) == list(range(8))


def test_join_says_when_the_time_was_not_enough() -> None:
    workers, go = Workers(), threading.Event()
    workers.run(lambda: go.wait(20))
    assert not workers.join(0.01)
    go.set()
    assert workers.join(20)


def test_idle_threads_end_and_tasks_that_come_just_then_run() -> None:
    workers = Workers("luthier-test-idle", idle_s=0.001)
    lock, done = threading.Lock(), [0]

    def count() -> None:
        with lock:
            done[0] += 1

    for _ in range(500):
        workers.run(count)
    assert workers.join(20)
    assert done[0] == 500
    for thread in threading.enumerate():
        if thread.name == "luthier-test-idle":
            thread.join(120)
    assert not [thread for thread in threading.enumerate() if thread.name == "luthier-test-idle"]


def test_a_task_that_raises_is_logged_and_costs_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    workers, seen = Workers(), []
    workers.run(lambda: 1 / 0)
    assert workers.join(20)
    workers.run(lambda: seen.append(1))
    assert workers.join(20)
    assert seen == [1]
    assert "must not raise" in caplog.text
