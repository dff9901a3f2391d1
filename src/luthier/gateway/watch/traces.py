"""Writing traces without making a request wait: a bounded queue and one writer that takes what has come, a batch at a time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from luthier.core.errors import LuthierError, StoreError
from luthier.core.trace import Trace

CAPACITY = 10_000
BATCH = 256
RETRY_S = 2.0

logger = logging.getLogger("luthier.gateway")


class TraceWriter:
    """Hands traces to ``write`` in batches, from its own thread.

    When the store refuses (full disk, locked database) the traces are kept and written later; only when ``capacity`` of them wait
    are new ones dropped. Neither ever fails a request: both are logged and counted in ``state``.
    """

    def __init__(self, write: Callable[[Sequence[Trace]], None], *, capacity: int = CAPACITY) -> None:
        self._write = write
        self._capacity = capacity
        self._waiting: deque[Trace] = deque()
        self._changed = threading.Condition()
        self._taken = 0  # traces accepted so far
        self._settled = 0  # of them, those that are written or given up
        self._attempts_failed = 0
        self._closing = False
        self.written = 0
        self.dropped = 0
        self.error = ""
        self._thread = threading.Thread(target=self._run, name="luthier-traces", daemon=True)
        self._thread.start()

    def put(self, trace: Trace) -> None:
        """Take a trace; returns at once."""
        with self._changed:
            if len(self._waiting) >= self._capacity or self._closing:
                self.dropped += 1
                if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, 8, ...: said, but not once a request
                    logger.error("%d traces were dropped: %s", self.dropped, self.error or "too many wait")
                return
            self._waiting.append(trace)
            self._taken += 1
            self._changed.notify_all()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything taken so far is written. False when the store refuses, or it takes longer than that."""
        with self._changed:
            target, failed = self._taken, self._attempts_failed
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._settled >= target or self._attempts_failed > failed or not self._thread.is_alive(),
                timeout_s,
            )
            return self._settled >= target

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, with one last try when the store refuses, and end. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            lost, self._waiting = len(self._waiting), deque()
        if lost:
            self.dropped += lost
            logger.error("%d traces could not be written before the end: %s", lost, self.error or "no time left")

    def state(self) -> dict[str, Any]:
        """Counts for /health."""
        with self._changed:
            return {
                "written": self.written,
                "waiting": len(self._waiting),
                "dropped": self.dropped,
                "error": self.error or None,
            }

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                closing = self._closing
            if not batch:
                return
            refused = self._attempt(batch)
            if refused and closing:
                return
            if refused:
                with self._changed:  # woken early by a new trace or by a flush: a fresh try is then worth it
                    self._changed.wait(RETRY_S)

    def _attempt(self, batch: list[Trace]) -> bool:
        """Write a batch; True when the store refused it and it waits again."""
        given_up = 0
        try:
            self._write(batch)
        except (StoreError, OSError) as error:
            self._refused(batch, error)
            return True
        except (LuthierError, SQLAlchemyError, ValueError, TypeError) as error:
            if len(batch) > 1:  # one of them cannot be written by any store: find it
                refused = [self._attempt([trace]) for trace in batch]
                return any(refused)
            logger.exception("trace %s cannot be written and is given up", batch[0].id)
            self.error, given_up = _line(error), 1
        with self._changed:
            if not given_up and self.error:
                logger.warning("traces are written again")
                self.error = ""
            self.written += len(batch) - given_up
            self.dropped += given_up
            self._settled += len(batch)
            self._changed.notify_all()
        return False

    def _refused(self, batch: list[Trace], error: Exception) -> None:
        if not self.error:
            logger.error(
                "traces cannot be written; requests go on, and up to %d traces wait: %s", self._capacity, error
            )
        with self._changed:
            self.error = _line(error)
            self._waiting.extendleft(reversed(batch))
            self._attempts_failed += 1
            self._changed.notify_all()


def _line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
