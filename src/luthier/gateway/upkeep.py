"""What a server does about once a second besides answering: look for changed keys, write what was used."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from luthier.core.errors import LuthierError

logger = logging.getLogger("luthier.gateway")


@dataclass
class _Task:
    name: str
    run: Callable[[], object]
    every_s: float
    last: Callable[[], object] | None
    due_s: float = 0.0
    failing: bool = False


class Upkeep:
    """Runs tasks one after another in a thread of its own, which begins with the first of them.

    A task that fails is tried again when it is due the next time; that it fails, and that it no longer does, is logged once.
    """

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._closing = False
        self._wake = threading.Event()
        self._lock = threading.Lock()  # one task at a time, whoever runs it
        self._thread: threading.Thread | None = None

    def add(
        self, name: str, run: Callable[[], object], *, every_s: float = 1.0, last: Callable[[], object] | None = None
    ) -> None:
        """Run a task every ``every_s`` seconds from now on; ``last`` (or once more the task itself) is run at the end."""
        with self._lock:
            self._tasks.append(_Task(name, run, every_s, last, time.monotonic() + every_s))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="luthier-upkeep", daemon=True)
                self._thread.start()
        self._wake.set()

    def now(self) -> None:
        """Run every task at once, in this thread."""
        with self._lock:
            for task in self._tasks:
                self._attempt(task, task.run)

    def close(self, timeout_s: float = 10.0) -> None:
        """Run every task for the last time and end. Safe to call twice."""
        if self._thread is None or self._closing:
            return
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        with self._lock:
            for task in self._tasks:
                self._attempt(task, task.last or task.run)

    def _loop(self) -> None:
        while True:
            self._wake.wait(self._wait_s())
            self._wake.clear()
            if self._closing:
                return
            with self._lock:
                for task in self._tasks:
                    if time.monotonic() >= task.due_s:
                        self._attempt(task, task.run)
                        task.due_s = time.monotonic() + task.every_s

    def _wait_s(self) -> float:
        with self._lock:
            return max(0.01, min(task.due_s for task in self._tasks) - time.monotonic())

    def _attempt(self, task: _Task, run: Callable[[], object]) -> None:
        try:
            run()
        except LuthierError as error:
            if not task.failing:
                logger.error("%s: %s; it is tried again every %g s", task.name, error, task.every_s)
            task.failing = True
        except Exception:  # a fault of ours must not end the other tasks
            logger.exception("%s failed", task.name)
            task.failing = True
        else:
            if task.failing:
                logger.warning("%s works again", task.name)
            task.failing = False
