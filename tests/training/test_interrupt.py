"""The first signal asks, the second one insists; threads are left alone."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from luthier.training.interrupt import Interruption


def test_first_asks_second_raises_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        assert not interruption.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_it_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    inside: list[object] = []

    def work() -> None:
        with Interruption() as interruption:
            inside.append(signal.getsignal(signal.SIGINT))
            inside.append(interruption.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before, False]
