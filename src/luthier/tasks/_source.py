"""Where a benchmark comes from, and what its rows look like."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """``paper`` defines the benchmark, ``licence`` is what its dataset states. ``hub`` names the dataset as ``data=`` takes it
    (empty: it needs none), ``fields`` are those of a row in a local file. ``matches`` is the task of lm-evaluation-harness 0.4.13 with the
    same prompt and metric, or says that there is none."""

    paper: str
    licence: str
    fields: str
    hub: str = ""
    matches: str = ""

    def __str__(self) -> str:
        parts = (self.paper, self.hub, f"licence: {self.licence}", f"lm-evaluation-harness: {self.matches or 'none'}")
        return "; ".join(part for part in parts if part)
