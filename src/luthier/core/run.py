"""Runs: one piece of long work, its state and where its files are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

RunKind = Literal["tune", "eval", "tournament", "continual", "scaling"]
RunStatus = Literal["running", "done", "failed", "interrupted"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (stage, done, total) while long work goes on. The caller draws it."""

MetricSink: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Called with one flat record of metrics (also a line of ``metrics.jsonl``)."""


def no_progress(stage: str, done: int, total: int) -> None:
    """A Progress that draws nothing."""


@dataclass(frozen=True)
class Run:
    """A row of the runs table. ``key`` identifies equal work, so that an interrupted command finds what it did before."""

    id: str
    kind: RunKind
    status: RunStatus
    name: str = ""
    key: str = ""
    created_at: str = ""
    finished_at: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
