from __future__ import annotations

import numpy as np
import pytest

from luthier.core.errors import InputError
from luthier.core.trace import Trace
from luthier.store.trace_query import TraceFilter
from luthier.store.trace_stats import trace_stats
from luthier.store.traces import record_traces


def trace(number, **changes):
    given = {"model": "ab"[number % 2], "operation": "chat", "latency_s": number / 10, "first_token_s": number / 100}
    day = 1 + number // 100
    return Trace(f"t{number:04d}", f"2026-01-{day:02d}T{number % 24:02d}:00:00.000Z", **given | changes)


def test_quantiles_are_those_of_what_did_not_fail(store):
    record_traces(store, [trace(n, completion_tokens=3, prompt_tokens=2, cost=0.5) for n in range(100)])
    record_traces(store, [trace(100, latency_s=999.0, error="down"), trace(101, cache="exact", first_token_s=None)])
    one, two, three, four = trace_stats(store)
    assert [each.group for each in (one, two, three, four)] == [
        ("a", "2026-01-01"), ("a", "2026-01-02"), ("b", "2026-01-01"), ("b", "2026-01-02"),
    ]  # fmt: skip
    assert one.latency_s == pytest.approx(np.quantile(np.arange(0, 100, 2) / 10, [0.5, 0.95, 0.99]))
    assert one.ttft_s == pytest.approx(np.quantile(np.arange(0, 100, 2) / 100, [0.5, 0.95, 0.99]))
    assert (one.requests, one.prompt_tokens, one.completion_tokens, one.cost) == (50, 100, 150, 25.0)
    assert (two.errors, two.latency_s, two.tokens_per_s) == (1, None, None)
    assert (four.cached, four.ttft_s) == (1, None)
    assert one.as_dict()["latency_s"].keys() == {"p50", "p95", "p99"}


def test_any_columns_and_filters(store):
    record_traces(store, [trace(n) for n in range(4)])
    (whole,) = trace_stats(store, by=())
    assert whole.requests == 4
    assert [s.group for s in trace_stats(store, TraceFilter(model="a"), by=["hour"])] == [
        ("2026-01-01T00",),
        ("2026-01-01T02",),
    ]
    with pytest.raises(InputError, match="by must be one or more of model, day"):
        trace_stats(store, by=["answer"])
