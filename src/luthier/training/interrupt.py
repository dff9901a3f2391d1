"""Ctrl-C that waits for the end of the step, so that training stops with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Halt(Exception):  # noqa: N818  no error: somebody decided
    """Raised by a metric sink to end a training there, as a search does with a trial that is not worth its time.

    The run is then ``interrupted``: the same work asked for again goes on, or begins anew. ``run`` is its id.
    """

    run = ""


class Interruption:
    """While entered, the first SIGINT or SIGTERM only sets ``asked``; a second one raises KeyboardInterrupt at once.

    In a thread other than the main one (where Python delivers no signals) it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
