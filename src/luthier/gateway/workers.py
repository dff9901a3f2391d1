"""Threads that engine calls run in: started when they are needed, used again, and never waited for by a process that ends."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

IDLE_S = 30.0

Task = Callable[[], object]

logger = logging.getLogger("luthier.gateway")


class Workers:
    """Runs each task in a thread of its own; a thread that has nothing to do waits ``idle_s`` for another task and then ends."""

    def __init__(self, name: str = "luthier-call", idle_s: float = IDLE_S) -> None:
        self._name, self._idle_s = name, idle_s
        # no SimpleQueue: its get waits for ever when another thread took the item and the time is over (CPython 3.11)
        self._tasks: queue.Queue[Task] = queue.Queue()
        self._changed = threading.Condition()
        self._idle = 0  # threads that wait for a task that nobody has promised them yet
        self._busy = 0

    def run(self, task: Task) -> None:
        """Begin ``task``; returns at once. It must not raise."""
        with self._changed:
            self._busy += 1
            if self._idle:
                self._idle -= 1
                self._tasks.put(task)
                return
        threading.Thread(target=self._work, args=(task,), name=self._name, daemon=True).start()

    def join(self, timeout_s: float) -> bool:
        """Wait until no task runs; False when the time was not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout_s)

    def _work(self, first: Task) -> None:
        task: Task | None = first
        while task is not None:
            try:
                task()
            except Exception:
                logger.exception("a task that must not raise did")
            task = None  # what it holds is not kept while the thread waits
            with self._changed:
                self._busy -= 1
                self._idle += 1
                self._changed.notify_all()
            task = self._next()

    def _next(self) -> Task | None:
        while True:
            try:
                return self._tasks.get(timeout=self._idle_s)
            except queue.Empty:
                with self._changed:
                    if self._idle:  # else a task is on its way to one of those who wait
                        self._idle -= 1
                        return None
