"""The quality-cost frontier: who cannot be had better without paying more (Pareto optimality)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from luthier.tournament.board import Standing

COSTS: Mapping[str, Callable[[Standing], float | None]] = {
    "latency": lambda s: s.latency_p50_s,
    "memory": lambda s: s.weights_mb,
    "trained parameters": lambda s: s.trainable_parameters,
    "price": lambda s: s.price_per_1000,
}


def frontier(points: Sequence[tuple[str, float, float | None]], *, lower_is_better: bool = False) -> tuple[str, ...]:
    """Names of the (name, score, cost) points that no other beats in one and equals in the other, cheapest first.

    What has no known cost is left out: it can neither be on the frontier nor push others off it.
    """
    sign = -1.0 if lower_is_better else 1.0
    known = sorted(
        ((cost, -sign * score, name) for name, score, cost in points if cost is not None), key=lambda p: p[:2]
    )
    out: list[str] = []
    best = float("inf")
    last: tuple[float, float] | None = None
    for cost, loss, name in known:
        if loss < best or (cost, loss) == last:  # equal in both is not beaten
            out.append(name)
            best, last = loss, (cost, loss)
    return tuple(out)


def frontiers(standings: Sequence[Standing], *, lower_is_better: bool = False) -> dict[str, list[str]]:
    """The frontier of each cost that is known of at least two entrants."""
    done = [s for s in standings if s.status == "done"]
    out = {}
    for cost, read in COSTS.items():
        points = [(s.name, float(s.score["value"]), read(s)) for s in done]
        if sum(known is not None for *_, known in points) > 1:
            out[cost] = list(frontier(points, lower_is_better=lower_is_better))
    return out
