"""Who gets what, the same each time: a share of all users, sessions or keys, by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from luthier.gateway.exchange import Exchange

By = Literal["session", "user", "key", "request"]


def unit_of(exchange: Exchange, by: Sequence[By]) -> tuple[str, str]:
    """(what is told apart, which one this is): the first of ``by`` that the request has; else the request itself."""
    caller = exchange.caller
    known = {"session": exchange.session, "user": str(exchange.parameters.get("user") or ""), "key": caller.key_id}
    for kind in by:
        if known.get(kind):
            return kind, f"{caller.tenant}/{known[kind]}"
    return "request", exchange.id


def place_of(salt: str, unit: str) -> float:
    """A number from 0 to 1, evenly spread over units and always the same for one; other salts give independent ones."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{unit}".encode()).digest()[:8]) / 2**64


def share_at(shares: Mapping[str, float], place: float) -> str:
    """The name whose part of the line from 0 to 1 holds ``place``; parts are as long as ``shares`` say, in their order."""
    left = place * sum(shares.values())
    name = ""
    for name, share in shares.items():  # noqa: B007 - the last one also gets what rounding leaves
        left -= share
        if left < 0:
            break
    return name
