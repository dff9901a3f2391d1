"""Ask a more general question, too (step-back prompting, Zheng et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import Query, Search, SearchTools, fused, is_chinese, lines_of

_ASK = {
    "en": "Write one more general question whose answer gives the background for the question below. Write the question only.",
    "zh": "请写一个更一般的问题,它的答案能为下面的问题提供背景。只写问题。",
}


class Config(EntryConfig):
    """``weight`` of the general question's answers beside those of the question itself."""

    weight: float = 0.5


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """Reciprocal rank fusion of both."""
    written = lines_of(tools.write("step_back", _ASK["zh" if is_chinese(query.text) else "en"], query.text))
    lists, weights = [inner(query)], [1.0]
    if written:
        lists.append(inner(replace(query, text=written[0], vector=None)))
        weights.append(config.weight)
    return fused(lists, weights, query.k)
