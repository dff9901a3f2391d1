"""What routes remember: the verdict on a canary, and what people said of the answers of a route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from luthier.store.database import Store
from luthier.store.home import now
from luthier.store.tables import feedback, route_states, traces

_MOST_RATINGS = 5_000  # read at once


@dataclass(frozen=True)
class Rating:
    """A thumb up or down. ``arm``: which of the route's targets gave the answer."""

    id: str
    at: str
    arm: str
    bad: bool


def read_route_state(store: Store, route: str, digest: str) -> dict[str, Any] | None:
    """What was written of a route with this ``digest``; None when nothing was."""
    mine = (route_states.c.route == route) & (route_states.c.digest == digest)
    with store.read() as connection:
        found = connection.execute(select(route_states.c.state).where(mine)).scalar_one_or_none()
    return dict(found) if found is not None else None


def write_route_state(connection: Connection, route: str, digest: str, state: Mapping[str, Any]) -> None:
    """Write the state of a route, in place of an earlier one of the same ``digest``."""
    mine = (route_states.c.route == route) & (route_states.c.digest == digest)
    connection.execute(delete(route_states).where(mine))
    connection.execute(insert(route_states).values(route=route, digest=digest, state=dict(state), updated_at=now()))


def ratings_of_route(store: Store, route: str, since: str) -> list[Rating]:
    """Ratings that were given from ``since`` on to answers of a route, oldest first, at most 5,000."""
    query = (
        select(feedback.c.id, feedback.c.created_at, feedback.c.rating, traces.c.details)
        .join(traces, feedback.c.trace_id == traces.c.id)
        .where(feedback.c.kind == "explicit", feedback.c.created_at >= since, feedback.c.rating.is_not(None))
        .where(traces.c.route == route)
        .order_by(feedback.c.created_at, feedback.c.id)
        .limit(_MOST_RATINGS)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    found = [(row, _arm(row.details, route)) for row in rows]
    return [Rating(row.id, row.created_at, arm, row.rating < 0) for row, arm in found if arm]


def _arm(details: Mapping[str, Any] | None, route: str) -> str:
    """What a route chose for a trace, as the router noted it with the attempt that answered."""
    for said in reversed((details or {}).get("route") or []):
        if said.get("outcome") == "ok":
            return str((said.get("by") or {}).get(route) or "")
    return ""
