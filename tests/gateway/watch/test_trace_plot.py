from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import InputError
from luthier.gateway.watch.trace_plot import MOST_BINS, bins_of, save, steps_of, text, waterfall
from luthier.store.trace_query import Measured


def row(minute: int, latency_s: float = 1.0, *, failed: bool = False) -> Measured:
    day, rest = divmod(minute, 1440)
    at = f"2026-01-{1 + day:02d}T{rest // 60:02d}:{rest % 60:02d}:00.000Z"
    return Measured(at, "m", "chat", "", "", 0.1, latency_s, 5, 5, 0.0, "stop", failed)


@pytest.mark.parametrize("minutes", [1, 30, 600, 40_000])
def test_bins_are_few_and_hold_every_request_once(minutes: int) -> None:
    rows = [row(minute) for minute in range(0, minutes, max(1, minutes // 500))]
    bins = bins_of(rows)
    assert 1 <= len(bins) <= MOST_BINS + 1
    assert sum(stats.requests for _, stats in bins) == len(rows)
    assert [at for at, _ in bins] == sorted(at for at, _ in bins)
    assert bins_of([]) == []


def test_pictures(tmp_path: Path) -> None:
    bins = bins_of([row(minute, latency_s=1 + minute / 60, failed=minute % 7 == 0) for minute in range(120)])
    drawn = text(bins, width=70, colour=False)
    assert "seconds an answer" in drawn
    assert max(len(line) for line in drawn.splitlines()) <= 70
    save(bins, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="no trace to draw"):
        save([], tmp_path / "t.png")
    with pytest.raises(InputError, match="cannot write"):
        save(bins, tmp_path / "none" / "t.png")


def test_steps_and_their_bars() -> None:
    details = {
        "attempts": [{"model": "a", "began_s": 1.0, "waited_s": 1.0, "took_s": 2.0, "error": "left"}],
        "guardrails": [{"name": "pii", "at_s": 0.5, "took_s": 0.5}],
        "cache": [{"found": "miss", "at_s": 1.0}],
        "otel": [{"trace_id": "x"}],
        "error": [{"kind": "x", "at_s": 3.0}],
    }
    steps = steps_of(details)
    assert steps == [("guardrails pii", 0.0, 0.0, 0.5), ("cache miss", 1.0, 1.0, 1.0), ("a (left)", 1.0, 2.0, 3.0)]
    bars = waterfall(steps, 4.0, width=8)
    assert bars == [("guardrails pii", "█", "0.500"), ("cache miss", "  ▏", "0.000"), ("a (left)", "  ··██", "2.000")]
