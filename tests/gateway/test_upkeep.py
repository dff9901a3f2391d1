from __future__ import annotations

import threading

from luthier.core.errors import StoreError
from luthier.gateway.upkeep import Upkeep


def test_tasks_run_again_and_again_in_one_thread_and_once_more_at_the_end():
    ran, thrice, last = [], threading.Event(), []

    def task():
        ran.append(threading.current_thread().name)
        if len(ran) == 3:
            thrice.set()

    upkeep = Upkeep()
    upkeep.add("task", task, every_s=0.001, last=lambda: last.append(len(ran)))
    assert thrice.wait(20)
    upkeep.close()
    upkeep.close()
    assert last == [len(ran)]
    assert set(ran) == {"luthier-upkeep"}


def test_what_fails_is_tried_again_and_said_once_and_costs_the_others_nothing(caplog):
    failures = [StoreError("full"), StoreError("full"), ValueError("a fault"), None]
    ran = []

    def failing():
        error = failures.pop(0)
        if error is not None:
            raise error

    upkeep = Upkeep()
    upkeep.add("failing", failing, every_s=1000)
    upkeep.add("other", lambda: ran.append(1), every_s=1000)
    for _ in range(4):
        upkeep.now()
    assert len(ran) == 4
    assert caplog.text.count("failing: full") == 1
    assert "failing works again" in caplog.text
    upkeep.close()
    assert len(ran) == 5


def test_a_task_that_comes_later_does_not_wait_for_those_before_it():
    upkeep, ran = Upkeep(), threading.Event()
    upkeep.add("rare", lambda: None, every_s=1000)
    upkeep.add("often", ran.set, every_s=0.001)
    assert ran.wait(20)
    upkeep.close()


def test_an_upkeep_without_tasks_has_no_thread():
    before = threading.active_count()
    upkeep = Upkeep()
    upkeep.close()
    assert threading.active_count() == before
