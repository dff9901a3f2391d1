"""What an answer rests on, as clients get it: OpenAI's annotations, and the field ``luthier`` with all that is known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from luthier.core.document import Citation, Hit
from luthier.core.engine import EngineInfo, Generation
from luthier.gateway.databases import answers as databases
from luthier.knowledge.cite import cited_as_dict
from luthier.knowledge.prompt import is_not_found

_MARK = re.compile(r"\[(\d+(?:, \d+)*)\]")


def is_from_documents(answer: Generation) -> bool:
    """Whether a knowledge base or a database answered: there is more to be told than text."""
    return bool(answer.steps)


def extension(answer: Generation) -> dict[str, Any]:
    """The field ``luthier`` of an answer from documents: whether they hold the answer, and each citation with document, place, quote and scores; of one
    from a database, the query and its rows."""
    if databases.is_from_database(answer):
        return databases.extension(answer)
    return {"answered": not is_not_found(answer.text), "citations": [_cited(each) for each in answer.citations]}


def chat_annotations(answer: Generation) -> list[dict[str, Any]]:
    """A ``url_citation`` for each mark and each passage it points to, the only kind that chat completions have. What came from no web address has a URI
    of its own, ``luthier://documents/DOCUMENT#CHUNK``."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": start,
                "end_index": end,
                "title": _seen(each.hit).cited,
                "url": _address(each.hit),
            },
        }
        for start, end, each in _marks(answer)
    ]


def response_annotations(answer: Generation) -> list[dict[str, Any]]:
    """The same for the Responses API: ``url_citation`` for pages of the web, ``file_citation`` for files."""
    out: list[dict[str, Any]] = []
    for start, end, each in _marks(answer):
        hit = _seen(each.hit)
        if _is_url(hit.source):
            out.append(
                {"type": "url_citation", "start_index": start, "end_index": end, "title": hit.cited, "url": hit.source}
            )
        else:
            out.append({"type": "file_citation", "index": start, "file_id": hit.document, "filename": hit.source})
    return out


def traced(answer: Generation, info: EngineInfo | None, *, with_texts: bool) -> dict[str, Any]:
    """What the trace keeps: base, model that writes and mode, the chunks that were shown and cited, and the steps (without what was written on the
    way, unless ``with_texts``)."""
    meta = dict(info.meta) if info is not None else {}
    about: dict[str, Any] = {name: meta[name] for name in ("knowledge_base", "writer", "mode") if name in meta}
    return {
        **about,
        "shown": [{"chunk": hit.chunk.id, "document": hit.document, "score": hit.score} for hit in answer.hits],
        "cited": [{"number": each.number, "chunk": each.hit.chunk.id} for each in answer.citations],
        "answered": not is_not_found(answer.text),
        "calls": answer.calls,
        "steps": [dict(step) if with_texts else _without_texts(step) for step in answer.steps],
    }


def _without_texts(step: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key not in ("query", "written", "said")}


def _marks(answer: Generation) -> Iterator[tuple[int, int, Citation]]:
    """(start, end, citation) of each mark and each number in it; for a citation without a mark, the end of the text."""
    by_number = {each.number: each for each in answer.citations}
    there: set[int] = set()
    for mark in _MARK.finditer(answer.text):
        for number in map(int, mark[1].split(", ")):
            if number in by_number:
                there.add(number)
                yield mark.start(), mark.end(), by_number[number]
    end = len(answer.text)
    for number, each in by_number.items():
        if number not in there:
            yield end, end, each


def _cited(citation: Citation) -> dict[str, Any]:
    return cited_as_dict(replace(citation, hit=_seen(citation.hit)))


def _seen(hit: Hit) -> Hit:
    """Where the server keeps a file is nobody's business: its name is enough."""
    return hit if _is_url(hit.source) else replace(hit, source=PurePath(hit.source).name)


def _address(hit: Hit) -> str:
    return hit.source if _is_url(hit.source) else f"luthier://documents/{hit.document}#{hit.chunk.id}"


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))
