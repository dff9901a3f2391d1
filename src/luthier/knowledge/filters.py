"""What users say of what a search may find, as a ``Filter``; days and times of documents as texts that compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from luthier.core.errors import InputError
from luthier.knowledge.index import Filter

_DAY = len("2026-11-20")


def read_filter(
    *,
    labels: Sequence[str] | None = None,
    documents: Sequence[str] = (),
    sources: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
    after: str = "",
    before: str = "",
) -> Filter | None:
    """A filter, None when nothing is stated. ``sources`` without a slash are patterns of file names; ``before`` a day means its end.

    Raises InputError for what is no date.
    """
    made = Filter(
        labels=tuple(labels) if labels is not None else None,
        documents=tuple(documents),
        sources=tuple(each if "/" in each or each.startswith("*") else f"*/{each}" for each in sources),
        meta=dict(meta or {}),
        after=_date("after", after),
        before=_date("before", before) + ("T23:59:59.999999+00:00" if len(before.strip()) == _DAY else ""),
    )
    return None if made == Filter() else made


def date_of(said: Any, modified_ns: int = 0) -> str:
    """The date of a document as it is kept: what is ``said`` of it (ISO 8601 or a mail's), else when its file was modified, else ""."""
    text = str(said or "")
    try:
        return _date("date", text) or _modified(modified_ns)
    except InputError:
        try:
            return parsedate_to_datetime(text).astimezone(UTC).isoformat()
        except (ValueError, TypeError, OverflowError):
            return _modified(modified_ns)


def _modified(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat() if ns else ""


def _date(name: str, text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"{name} must be a day or a time such as 2026-11-20 or 2026-11-20T09:00; got {text!r}"
        ) from error
    if len(text) == _DAY:
        return text
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
