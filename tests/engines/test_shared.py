from __future__ import annotations

import threading

import pytest

from luthier.core.errors import EngineError, MismatchError, StoreError
from luthier.engines._shared import SharedBase, Turns
from luthier.models.load import load_model
from luthier.store.database import open_store
from luthier.store.models import find


def test_turns_come_in_the_order_they_were_asked_for() -> None:
    turns, order = Turns(), []
    waiting = []

    def ask(number: int) -> None:
        with turns:
            order.append(number)

    with turns:
        for number in range(5):
            thread = threading.Thread(target=ask, args=(number,))
            thread.start()
            while len(turns._waiting) <= number:  # until it stands in the queue
                pass
            waiting.append(thread)
    for thread in waiting:
        thread.join(10)
    assert order == [0, 1, 2, 3, 4]
    with turns:
        order.append(5)


def test_a_tight_loop_lets_others_in() -> None:
    turns, stop, counts = Turns(), threading.Event(), [0, 0]

    def work(own: int) -> None:
        while not stop.is_set():
            with turns:
                counts[own] += 1
                if min(counts) > 50:
                    stop.set()

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    assert stop.wait(30)
    for thread in threads:
        thread.join(10)


def test_an_interrupted_waiter_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()

    class Interrupted:
        """A lock whose second ``acquire`` is hit by Ctrl-C, before or after its turn came."""

        def __init__(self) -> None:
            self.calls = 0

        def acquire(self) -> None:
            self.calls += 1
            if self.calls == 2:
                if late:
                    turns.__exit__()  # the holder gives its turn to this waiter just now
                raise KeyboardInterrupt

        def release(self) -> None: ...

    for late in (False, True):
        turns.__enter__()
        with monkeypatch.context() as patched:
            patched.setattr("luthier.engines._shared.threading.Lock", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                turns.__enter__()
        if not late:
            turns.__exit__()
        with turns:  # free again
            assert turns._held


def test_a_base_lives_as_long_as_somebody_uses_it(tiny_decoder: str) -> None:
    store, loads, forgotten = open_store(), [], []

    def load() -> object:
        loads.append(1)
        return load_model(store, tiny_decoder)

    base = SharedBase(store, load, lambda: forgotten.append(1))  # type: ignore[arg-type]
    base.join(None, None)
    base.join(None, None)
    assert len(loads) == 1
    base.leave(None)
    with base.using(None) as loaded:
        assert loaded.record.name == tiny_decoder
    assert not forgotten
    base.leave(None)
    base.leave(None)
    assert forgotten == [1]
    with pytest.raises(EngineError, match="closed"), base.using(None):
        pass
    with pytest.raises((StoreError, MismatchError)):
        base.join("gone", find(store, tiny_decoder).__class__("gone", "adapter", "decoder", "0" * 64))
    assert base._loaded is None  # a failed first user leaves nothing behind


def test_running_out_of_memory_is_said_in_words(tiny_decoder: str) -> None:
    store = open_store()
    base = SharedBase(store, lambda: load_model(store, tiny_decoder), lambda: None)
    base.join(None, None)
    with pytest.raises(EngineError, match="max_batch_tokens"), base.using(None):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    with pytest.raises(RuntimeError, match="shape"), base.using(None):
        raise RuntimeError("shape mismatch")
