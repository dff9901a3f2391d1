"""Threads that engine calls run in: started when they are needed, used again, and never waited for by a process that ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

IDLE_S = 30.0


class Workers:
    """Runs each task in a thread of its own; a thread that has nothing to do waits ``IDLE_S`` for another task and then ends."""

    def __init__(self, name: str = "luthier-call") -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._busy: set[threading.Thread] = set()

    def run(self, task: Callable[[], object]) -> None:
        """Begin ``task``; returns at once. It must not raise."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._tasks.put(task)
                return
        threading.Thread(target=self._work, args=(task,), name=self._name, daemon=True).start()

    def join(self, timeout_s: float) -> bool:
        """Wait until no task runs; False when the time was not enough."""
        deadline = threading.TIMEOUT_MAX if timeout_s < 0 else timeout_s
        with self._lock:
            done = threading.Condition(self._lock)
            self._done = done
            return done.wait_for(lambda: not self._busy, deadline)

    _done: threading.Condition | None = None

    def _work(self, task: Callable[[], object] | None) -> None:
        me = threading.current_thread()
        while task is not None:
            with self._lock:
                self._busy.add(me)
            try:
                task()
            finally:
                with self._lock:
                    self._busy.discard(me)
                    self._idle += 1
                    if self._done is not None:
                        self._done.notify_all()
            task = self._next()

    def _next(self) -> Callable[[], object] | None:
        try:
            return self._tasks.get(timeout=IDLE_S)
        except queue.Empty:
            with self._lock:
                if self._idle:  # nobody counts on this thread
                    self._idle -= 1
                    return None
        return self._tasks.get()  # a task was promised to it just now
