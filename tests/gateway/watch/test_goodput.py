from __future__ import annotations

import pytest

from luthier.gateway.watch.goodput import Goodput
from luthier.gateway.watch.watch import SloConfig


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_what_counts_and_what_meets_every_bound() -> None:
    goodput = Goodput(SloConfig(ttft_s=1.0, tpot_s=0.1, latency_s=10.0), now=Clock())
    for status, first, per_token, latency in (
        (200, 0.5, 0.05, 5.0),
        (200, 1.0, None, 10.0),  # at the bound, and without a figure
        (200, 2.0, 0.2, 5.0),
        (200, 0.5, 0.05, 20.0),
        (503, None, None, 0.1),
        (429, None, None, 0.1),
        (400, None, None, 0.1),  # the client's own
        (404, None, None, 0.1),
        (499, None, None, 0.1),
    ):
        goodput.count(status, first, per_token, latency)
    assert (goodput.counted, goodput.met) == (6, 2)
    assert goodput.missed == {"ttft_s": 1, "tpot_s": 1, "latency_s": 1, "answered": 2}
    assert goodput.share(300) == pytest.approx(2 / 6)


def test_windows_forget() -> None:
    clock = Clock()
    goodput = Goodput(SloConfig(latency_s=1.0), now=clock)
    for minute in range(100):
        clock.now = 1_000_000.0 + 60 * minute
        goodput.count(200, None, None, 2.0 if minute < 90 else 0.5)
    assert goodput.share(300) == 1.0
    assert goodput.share(20 * 60) == pytest.approx(0.5)
    assert goodput.share(3600) == pytest.approx(10 / 60)
    clock.now += 4 * 86_400
    assert goodput.share(259_200) is None
    goodput.count(200, None, None, 0.5)  # takes the place of what was there four days ago
    assert goodput.share(259_200) == 1.0
    assert goodput.counted == 101
