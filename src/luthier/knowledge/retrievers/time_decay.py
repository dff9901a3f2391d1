"""Newer first: a score loses half its worth in each half-life."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import MOST, Query, Search, SearchTools


class Config(EntryConfig):
    """``half_life_days``; ``floor``: the least share of its score that an old chunk keeps. Chunks without a date keep all."""

    half_life_days: float = Field(default=180.0, gt=0.0, allow_inf_nan=False)
    floor: float = Field(default=0.2, ge=0.0, le=1.0)
    candidates: int = Field(default=30, ge=1, le=MOST)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """What the inner search finds, by score x max(floor, 2 ** (-age / half-life)); scores must not be negative."""
    found = inner(replace(query, k=max(config.candidates, query.k)))
    lowest = min((hit.score for hit in found), default=0.0)
    aged = []
    for hit in found:
        days = _age_days(str(hit.meta.get("date") or ""), tools.now)
        share = 1.0 if days is None else max(config.floor, 2.0 ** (-days / config.half_life_days))
        worth = (hit.score - min(lowest, 0.0)) * share
        aged.append(replace(hit, score=worth, scores={**hit.scores, "time": share}))
    return sorted(aged, key=lambda hit: -hit.score)[: query.k]


def _age_days(date: str, now: datetime) -> float | None:
    try:
        then = datetime.fromisoformat(date)
    except ValueError:
        return None
    then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    return max(0.0, (now - then).total_seconds() / 86_400)
