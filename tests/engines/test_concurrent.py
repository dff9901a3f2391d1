"""Many calls at once."""

from __future__ import annotations

import threading

import pytest

from luthier.engines._concurrent import run_all


def silent(stage: str, done: int, total: int) -> None:
    """No progress."""


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_results_keep_the_order(workers: int) -> None:
    seen: list[tuple[str, int, int]] = []
    found = run_all(lambda x: x * 2, range(20), workers=workers, stage="work", progress=lambda *a: seen.append(a))
    assert found == [x * 2 for x in range(20)]
    assert seen[-1] == ("work", 20, 20)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert run_all(lambda x: x, [], workers=workers, stage="work", progress=silent) == []


def test_as_many_at_once_as_allowed() -> None:
    gate, lock = threading.Barrier(3, timeout=20), threading.Lock()
    inside = most = 0

    def call(_: int) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        gate.wait()  # passes only when three are here
        with lock:
            inside -= 1

    run_all(call, range(9), workers=3, stage="work", progress=silent)
    assert most == 3


def test_an_error_is_raised_at_once_and_stops_what_has_not_begun() -> None:
    begun: list[int] = []
    failed, release = threading.Event(), threading.Event()

    def call(x: int) -> None:
        begun.append(x)
        if x == 0:
            failed.set()
            raise ValueError("first")
        release.wait(20)

    try:
        with pytest.raises(ValueError, match="first"):
            run_all(call, range(1000), workers=2, stage="work", progress=silent)
        assert failed.is_set()
        assert len(begun) < 10
    finally:
        release.set()
