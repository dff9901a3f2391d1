"""What clients and traces get of an answer from a database, beside its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.digest import digest_text
from luthier.core.engine import EngineInfo, Generation


def is_from_database(answer: Generation) -> bool:
    """Whether a database answered."""
    return any(step.get("step") == "sql" for step in answer.steps)


def extension(answer: Generation) -> dict[str, Any]:
    """The field ``luthier``: the query that ran, its columns and rows, and the attempts before it; without ``sql`` when none ran."""
    tried = [{"sql": step["sql"], "error": step["error"]} for step in answer.steps if "error" in step]
    ran = next((step for step in answer.steps if "error" not in step), None)
    if ran is None:
        return {"answered": False, "attempts": tried}
    shown = {name: ran[name] for name in ("sql", "columns", "rows", "cut", "tables") if name in ran}
    return {"answered": True, **shown, "attempts": tried}


def traced(answer: Generation, info: EngineInfo | None, *, with_texts: bool) -> dict[str, Any]:
    """What the trace keeps: database, model that writes, and each query with its error or the number of its rows, never the rows. Where texts are not
    kept, queries (which hold what was asked for) are kept as their digests."""
    meta = dict(info.meta) if info is not None else {}
    about: dict[str, Any] = {name: meta[name] for name in ("database", "writer", "dialect") if name in meta}
    return {**about, "calls": answer.calls, "queries": [_query(step, with_texts=with_texts) for step in answer.steps]}


def _query(step: Mapping[str, Any], *, with_texts: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"sql": step["sql"]} if with_texts else {"sql_digest": digest_text(step["sql"])}
    if "error" in step:
        return shown | ({"error": step["error"]} if with_texts else {"failed": True})
    return shown | {"rows": len(step.get("rows", ())), "cut": step["cut"], "seconds": step["seconds"]}


def without_rows(answer: Generation) -> tuple[Mapping[str, Any], ...]:
    """The steps without what a guardrail has not seen: rows, and the queries and errors that name what was asked for."""
    if not is_from_database(answer):
        return answer.steps
    hidden = {"rows": [], "sql": "", "error": ""}
    return tuple({key: hidden.get(key, value) for key, value in step.items()} for step in answer.steps)
