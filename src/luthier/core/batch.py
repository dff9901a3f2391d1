"""Files that tenants own, and batches of requests over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
"""What a line of a batch may ask."""

OPEN = ("validating", "in_progress", "finalizing", "cancelling")
"""States in which there is something to do."""


@dataclass(frozen=True)
class FileRecord:
    """A file as its owner sees it; ``digest`` names the artifact that holds the bytes. Times are UTC, ISO-8601."""

    id: str
    tenant: str
    name: str
    purpose: str
    size_bytes: int
    digest: str
    created_at: str
    key_id: str = ""
    expires_at: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's file object."""
        out: dict[str, Any] = {
            "id": self.id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": unix(self.created_at),
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }
        return out | ({"expires_at": unix(self.expires_at)} if self.expires_at else {})


@dataclass(frozen=True)
class BatchRecord:
    """A batch. ``status`` is OpenAI's: validating, in_progress, finalizing, completed, failed, expired, cancelling, cancelled; ``times`` when it came
    to each. ``errors`` say why it failed as a whole: mappings of code, line, message, param. ``about`` is the client's metadata.
    """

    id: str
    tenant: str
    endpoint: str
    input_file: str
    window: str
    status: str
    created_at: str
    expires_at: str
    key_id: str = ""
    times: Mapping[str, str] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file: str | None = None
    error_file: str | None = None
    errors: Sequence[Mapping[str, Any]] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    worker: str | None = None
    lease_until_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        times = {
            f"{name}_at": unix(self.times.get(name))
            for name in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        }
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": list(self.errors)} if self.errors else None,
            "input_file_id": self.input_file,
            "completion_window": self.window,
            "status": self.status,
            "output_file_id": self.output_file,
            "error_file_id": self.error_file,
            "created_at": unix(self.created_at),
            **times,
            "expires_at": unix(self.expires_at),
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": dict(self.about) or None,
        }


def unix(iso: str | None) -> int | None:
    """Seconds since 1970 of an ISO-8601 time."""
    return int(datetime.fromisoformat(iso).timestamp()) if iso else None
