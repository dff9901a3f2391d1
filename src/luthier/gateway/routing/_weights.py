"""Targets with weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _some_weight(targets: dict[str, float]) -> dict[str, float]:
    if not targets:
        raise ValueError("targets must name at least one; got none")
    if any(not 0.0 <= weight < float("inf") for weight in targets.values()) or not sum(targets.values()) > 0.0:
        raise ValueError("weights must not be negative or infinite, and at least one must be above 0")
    return targets


def _some_names(targets: tuple[str, ...]) -> tuple[str, ...]:
    if not targets:
        raise ValueError("targets must name at least one; got none")
    twice = sorted({name for name in targets if targets.count(name) > 1})
    if twice:
        raise ValueError(f"targets names {', '.join(twice)} twice")
    return targets


Weights = Annotated[dict[str, float], AfterValidator(_some_weight)]
"""Target -> weight; only the proportions matter."""

Names = Annotated[tuple[str, ...], AfterValidator(_some_names)]
"""Targets, in order."""
