"""Keys and tenants: who may ask what, and how much of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from luthier.core.errors import InputError, did_you_mean

SCOPES = ("inference", "feedback", "traces", "batch", "admin")
"""What a key may be allowed: ask models, say something of answers, read traces, files and batches, and run the server."""

LOCAL = "local"
"""The tenant of this machine: of a server without keys, and of the keys in an environment variable."""


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Access labels (of documents, and of keys that may see these), sorted, each once. Raises InputError for what is none."""
    out = []
    for each in [labels] if isinstance(labels, str) else labels:
        label = each.strip() if isinstance(each, str) else ""
        if not label or len(label) > 64 or not label.isprintable() or "," in label:
            raise InputError(f"a label must be 1 to 64 printable characters without commas; got {each!r}")
        out.append(label)
    return tuple(sorted(set(out)))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a key, or a tenant with all its keys, may use; None is no limit.

    Requests and tokens of a minute flow through token buckets (a full bucket is one minute's worth). Days and months are those of UTC.
    ``cost`` is in the currency of the price list. Tokens are of prompts and answers together.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None
    cost_per_day: float | None = None
    cost_per_month: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                continue
            whole = not each.name.startswith("cost")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise InputError(f"{each.name} must be a {'whole ' if whole else ''}number; got {value!r}")
            if not (0 < value < math.inf):
                raise InputError(
                    f"{each.name} must be above 0 (leave it out, or say none, for no limit); got {value!r}"
                )

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) is not None for each in fields(self))

    def as_dict(self) -> dict[str, int | float]:
        """The limits that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def changed(self, values: Mapping[str, Any]) -> Limits:
        """A copy with ``values`` (None lifts a limit). Raises InputError for an unknown name or an impossible value."""
        known = [each.name for each in fields(self)]
        for name in values:
            if name not in known:
                raise InputError(f"limit {name!r} is not known. {did_you_mean(name, known)}")
        return replace(self, **values)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as the store knows it: everything but the key itself, of which only the sha256 (``digest``) is kept.

    ``hint`` is its first characters, by which its owner recognises it. After a rotation the key before it (``old_digest``) works until
    ``old_until``. ``models`` are shell patterns of the models it may ask, ``labels`` access labels of documents that it may see beside its tenant's. Times are UTC, ISO-8601.
    """

    id: str
    tenant: str
    name: str
    hint: str
    digest: bytes = field(repr=False)
    created_at: str
    scopes: tuple[str, ...] = ("inference", "feedback")
    models: tuple[str, ...] = ("*",)
    labels: tuple[str, ...] = ()
    limits: Limits = Limits()
    created_by: str = ""
    expires_at: str | None = None
    revoked_at: str | None = None
    last_used_at: str | None = None
    old_digest: bytes | None = field(default=None, repr=False)
    old_until: str | None = None

    def state(self, at: datetime | None = None) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        expires = self.expires_at and datetime.fromisoformat(self.expires_at)
        return "expired" if expires and expires <= (at or datetime.now(UTC)) else "active"

    def as_dict(self) -> dict[str, Any]:
        """What may be shown of it."""
        return {
            "id": self.id,
            "object": "key",
            "tenant": self.tenant,
            "name": self.name,
            "hint": self.hint,
            "state": self.state(),
            "scopes": list(self.scopes),
            "models": list(self.models),
            "labels": list(self.labels),
            "limits": self.limits.as_dict(),
            "created_at": self.created_at,
            "created_by": self.created_by,
            "expires_at": self.expires_at,
            "revoked_at": self.revoked_at,
            "last_used_at": self.last_used_at,
            "old_until": self.old_until,
        }
