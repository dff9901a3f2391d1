"""Figures of traces by model, day or another column: how many, how fast, how much, how often they failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from luthier.core.errors import InputError
from luthier.store.database import Store
from luthier.store.trace_query import Measured, TraceFilter, measure_traces

Group = Literal["model", "day", "hour", "route", "operation", "cache", "finish_reason"]
GROUPS: tuple[Group, ...] = get_args(Group)
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class TraceStats:
    """Figures of one group. Times are (p50, p95, p99) in seconds, of requests that did not fail, linear between two of them; None without any.

    ``tokens_per_s`` is the median of an answer's tokens over its seconds after the first token. ``cached`` are answers out of a cache.
    """

    group: tuple[str, ...]
    requests: int
    errors: int
    cached: int
    ttft_s: tuple[float, ...] | None
    latency_s: tuple[float, ...] | None
    tokens_per_s: float | None
    prompt_tokens: int
    completion_tokens: int
    cost: float

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        named = [f"p{q:.0%}".rstrip("%") for q in QUANTILES]
        times = {
            name: dict(zip(named, value, strict=True)) if value is not None else None
            for name, value in (("ttft_s", self.ttft_s), ("latency_s", self.latency_s))
        }
        return asdict(self) | {"group": list(self.group)} | times


def trace_stats(
    store: Store, wanted: TraceFilter | None = None, by: Sequence[str] = ("model", "day")
) -> list[TraceStats]:
    """Figures of the traces that ``wanted`` fits, one row for each group, sorted. Raises InputError for a column that one cannot group by."""
    for each in by:
        if each not in GROUPS:
            raise InputError(f"by must be one or more of {', '.join(GROUPS)}; got {each!r}")
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for row in measure_traces(store, wanted or TraceFilter()):
        groups.setdefault(tuple(_value(row, each) for each in by), []).append(row)
    return [summarise(groups[key], key) for key in sorted(groups)]


def summarise(rows: Sequence[Measured], group: tuple[str, ...] = ()) -> TraceStats:
    """Figures of these rows together."""
    fine = [row for row in rows if not row.failed]
    first = [row.first_token_s for row in fine if row.first_token_s is not None]
    rates = [
        (row.completion_tokens - 1) / (row.latency_s - row.first_token_s)
        for row in fine
        if row.first_token_s is not None and row.completion_tokens > 1 and row.latency_s > row.first_token_s
    ]
    return TraceStats(
        group=group,
        requests=len(rows),
        errors=len(rows) - len(fine),
        cached=sum(bool(row.cache) for row in rows),
        ttft_s=_quantiles(first),
        latency_s=_quantiles([row.latency_s for row in fine]),
        tokens_per_s=float(np.median(rates)) if rates else None,
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        completion_tokens=sum(row.completion_tokens for row in rows),
        cost=sum(row.cost for row in rows),
    )


def _value(row: Measured, by: str) -> str:
    if by in ("day", "hour"):
        return row.created_at[: 10 if by == "day" else 13]
    return str(getattr(row, by))


def _quantiles(values: Sequence[float]) -> tuple[float, ...] | None:
    return tuple(float(each) for each in np.quantile(values, QUANTILES)) if values else None
