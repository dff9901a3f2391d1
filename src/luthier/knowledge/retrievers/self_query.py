"""Conditions in the question become a filter: "contracts of 2023" looks in documents of 2023."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.core.engine import Constraint
from luthier.knowledge.index import Filter, tag
from luthier.knowledge.retrievers._query import Query, Search, SearchTools, is_chinese

_ASK = {
    "en": "Split the question below into what is searched for and the conditions that it states on documents. Conditions may only use these fields:\n"
    '{fields}\nAnswer with JSON only: {{"query": "...", "conditions": {{"field": "value"}}, "after": "YYYY-MM-DD or empty", '
    '"before": "YYYY-MM-DD or empty"}}. State no condition that the question does not. Today is {today}.',
    "zh": "请把下面的问题分成要查找的内容和它对文档提出的条件。条件只能使用这些字段:\n"
    '{fields}\n只用JSON回答:{{"query": "...", "conditions": {{"字段": "值"}}, "after": "YYYY-MM-DD或空", '
    '"before": "YYYY-MM-DD或空"}}。问题没有提出的条件不要写。今天是{today}。',
}
_NONE = {"en": "- none", "zh": "- 无"}
_LISTED = 20
"""Values of a field that are shown to the model."""


class Config(EntryConfig):
    """``fields``: those of the documents' ``meta`` that a question may name, each with what it means; left out, all that the documents have.

    ``relax``: when nothing fits the conditions, search without them.
    """

    fields: Mapping[str, str] = Field(default_factory=dict)
    relax: bool = True


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """The inner search with the conditions that the model found.

    It can only narrow what the caller may see, never widen it: the caller's own conditions stay, and access labels are no field. A
    condition on a field or a value that no document has is dropped, and noted.
    """
    writer = tools.writer("self_query")
    fields = tools.fields(query.where)
    known = {name: values for name, values in fields.items() if not config.fields or name in config.fields}
    language = "zh" if is_chinese(query.text) else "en"
    told = "\n".join(_line(name, config.fields.get(name, ""), values) for name, values in known.items())
    how = _ASK[language].format(fields=told or _NONE[language], today=tools.now.date().isoformat())
    found = _read(tools.write("self_query", how, query.text, tokens=200, constraint=_constraint(writer, known)))
    conditions, dropped = _checked(found.get("conditions") or {}, known)
    own = query.where or Filter()
    where = replace(
        own,
        meta={**conditions, **own.meta},
        after=max(own.after, _date(found.get("after"))),
        before=min(filter(None, (own.before, _date(found.get("before")))), default=""),
    )
    tools.notes.append({"step": "self_query", "conditions": conditions, "after": where.after, "before": where.before})
    if dropped:
        tools.notes.append({"step": "self_query", "dropped": dropped})
    if where == own:
        return inner(query)
    asked = found.get("query")
    text = asked.strip() if isinstance(asked, str) and asked.strip() else query.text
    hits = inner(replace(query, text=text, where=where, vector=query.vector if text == query.text else None))
    if not hits and config.relax:
        tools.notes.append({"step": "self_query", "relaxed": True})
        return inner(query)
    return hits


def _line(name: str, meaning: str, values: Sequence[str]) -> str:
    listed = ", ".join(map(_json, values[:_LISTED])) + (", ..." if len(values) > _LISTED else "")
    return f"- {name}: " + "; ".join(filter(None, (meaning, listed)))


def _json(value: str) -> str:
    """As JSON, so that nothing in a document's field ends its line."""
    return json.dumps(value[:100], ensure_ascii=False)


def _constraint(writer: Any, known: Mapping[str, Sequence[str]]) -> Constraint | None:
    """What the model's JSON must be, as far as it can be told."""
    can = writer.info.parameters
    if "json_schema" in can:
        values = {
            name: {"type": "string"} | ({"enum": list(each)} if 0 < len(each) <= _LISTED else {})
            for name, each in known.items()
        }
        conditions = {"type": "object", "properties": values, "additionalProperties": False}
        text = {"type": "string"}
        schema = {
            "type": "object",
            "properties": {"query": text, "conditions": conditions, "after": text, "before": text},
            "required": ["query", "conditions", "after", "before"],
            "additionalProperties": False,
        }
        return Constraint("json_schema", json.dumps(schema, ensure_ascii=False))
    return Constraint("json") if "json" in can else None


def _checked(said: Mapping[str, Any], known: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The conditions that documents can fit, and the others."""
    kept: dict[str, Any] = {}
    dropped: dict[str, Any] = {}
    for name, value in said.items():
        plain = isinstance(value, str | int | float | bool) and name in known
        (kept if plain and tag("", value)[1:] in known[name] else dropped)[name] = value
    return kept, dropped


def _read(said: str) -> dict[str, Any]:
    try:
        value = json.loads(said[said.find("{") : said.rfind("}") + 1])
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict) or not isinstance(value.get("conditions") or {}, dict):
        return {}
    return value


def _date(value: object) -> str:
    try:
        return date.fromisoformat(str(value or "")).isoformat()
    except ValueError:
        return ""
