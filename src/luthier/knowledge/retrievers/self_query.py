"""Conditions in the question become a filter: "contracts of 2023" looks in documents of 2023."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.core.engine import Constraint, Sampling
from luthier.core.errors import InputError
from luthier.core.message import Message
from luthier.knowledge.index import Filter
from luthier.knowledge.retrievers._query import Query, Search, SearchTools

_ASK = (
    "Split the question in <text> into what is searched for and the conditions it states on documents. Conditions may only use these fields:\n"
    '{fields}\nAnswer with JSON only: {{"query": "...", "conditions": {{"field": "value"}}, "after": "YYYY-MM-DD or empty", '
    '"before": "YYYY-MM-DD or empty"}}. State no condition that the question does not.'
)


class Config(EntryConfig):
    """``fields``: those of the documents' ``meta`` that a question may name, each with what it means (and its values, where they are few).

    ``relax``: when nothing fits the conditions, search without them.
    """

    fields: Mapping[str, str] = Field(default_factory=dict)
    relax: bool = True


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """The inner search with the conditions that the model found; it can only narrow what the caller may see, never widen it."""
    if tools.ask is None:
        raise InputError("retrieval step self_query has a model write; none was given", hint="--writer MODEL")
    listed = "\n".join(f"- {name}: {meaning}" for name, meaning in config.fields.items()) or "- none"
    text = f"{_ASK.format(fields=listed)}\n\n<text>\n{query.text}\n</text>"
    constraint = Constraint("json") if "json" in tools.ask.info.parameters else None
    sampling = Sampling(max_new_tokens=200, constraint=constraint)
    said = tools.ask.generate([(Message("user", text),)], sampling)[0].text
    found = _read(said)
    conditions = {name: value for name, value in found.get("conditions", {}).items() if name in config.fields}
    own = query.where or Filter()
    where = replace(
        own,
        meta={**conditions, **own.meta},
        after=max(own.after, _date(found.get("after"))),
        before=min(filter(None, (own.before, _date(found.get("before")))), default=""),
    )
    asked = str(found.get("query") or "").strip() or query.text
    hits = inner(replace(query, text=asked, where=where, vector=None))
    if not hits and config.relax and where != own:
        return inner(query)
    return hits


def _read(said: str) -> dict[str, Any]:
    start, end = said.find("{"), said.rfind("}")
    try:
        value = json.loads(said[start : end + 1])
    except ValueError:
        return {}
    if not isinstance(value, dict) or not isinstance(value.get("conditions", {}), dict):
        return {}
    return value


def _date(value: object) -> str:
    from datetime import date

    try:
        return date.fromisoformat(str(value or "")).isoformat()
    except ValueError:
        return ""
