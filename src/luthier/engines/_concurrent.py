"""Many requests at once, answers in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TypeVar

from luthier.core.run import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_all(
    call: Callable[[Item], Result], items: Sequence[Item], *, workers: int, stage: str, progress: Progress
) -> list[Result]:
    """``call`` of every item in up to ``workers`` threads, results in the items' order.

    The first error stops what has not begun and is raised at once.
    """
    if workers <= 1 or len(items) <= 1:
        results = []
        for done, item in enumerate(items, 1):
            results.append(call(item))
            progress(stage, done, len(items))
        return results
    pool = ThreadPoolExecutor(min(workers, len(items)), thread_name_prefix=f"luthier-{stage}")
    try:
        futures = [pool.submit(call, item) for item in items]
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            progress(stage, len(items) - len(waiting), len(items))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
