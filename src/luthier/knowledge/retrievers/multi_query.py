"""The question in several wordings, their answers fused."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import Query, Search, SearchTools, fused, is_chinese, lines_of

_ASK = {
    "en": "Write {n} other wordings of the question below, one a line, nothing else. Use different words for the same things.",
    "zh": "请用{n}种不同的说法改写下面的问题,每行一个,不要写别的。",
}


class Config(EntryConfig):
    """``wordings`` besides the question itself."""

    wordings: int = Field(default=3, ge=1, le=10)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """Reciprocal rank fusion of the inner search's answers to all wordings."""
    how = _ASK["zh" if is_chinese(query.text) else "en"].format(n=config.wordings)
    written = lines_of(tools.write("multi_query", how, query.text, tokens=64 * config.wordings))
    texts = list(dict.fromkeys([query.text, *written[: config.wordings]]))
    lists = [inner(replace(query, text=text, vector=None)) for text in texts]
    return fused(lists, [1.0] * len(lists), query.k)
