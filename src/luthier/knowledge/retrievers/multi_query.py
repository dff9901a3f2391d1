"""The question in several wordings, their answers fused (RAG-Fusion, Rackauckas 2024)."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._fusion import by_rank
from luthier.knowledge.retrievers._query import MOST, Query, Search, SearchTools, is_chinese, lines_of

_ASK = {
    "en": "Write {n} other wordings of the question below, one a line, nothing else. Use different words for the same things.",
    "zh": "请用{n}种不同的说法改写下面的问题,每行一个,不要写别的。",
}


class Config(EntryConfig):
    """``wordings`` besides the question itself; of each, ``candidates`` chunks are fused."""

    wordings: int = Field(default=3, ge=1, le=10)
    candidates: int = Field(default=20, ge=1, le=MOST)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """Reciprocal rank fusion of the inner search's answers to all wordings, which the model writes in one answer."""
    how = _ASK["zh" if is_chinese(query.text) else "en"].format(n=config.wordings)
    written = lines_of(tools.write("multi_query", how, query.text, tokens=64 * config.wordings))
    texts = list(dict.fromkeys([query.text, *written]))[: 1 + config.wordings]
    if len(texts) == 1:
        return inner(query)
    tools.embed_questions(texts)  # at once; the searches below find them done
    most = max(config.candidates, query.k)
    lists = [inner(replace(query, text=text, k=most, vector=None)) for text in texts]
    return by_rank(lists, [1.0] * len(lists), query.k)
