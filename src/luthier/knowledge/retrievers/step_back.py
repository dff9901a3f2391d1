"""Ask a more general question, too (step-back prompting, Zheng et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._fusion import by_rank
from luthier.knowledge.retrievers._query import MOST, Query, Search, SearchTools, is_chinese, lines_of

_ASK = {
    "en": "Write one more general question whose answer gives the background for the question below. Write the question only.",
    "zh": "请写一个更一般的问题,它的答案能为下面的问题提供背景。只写问题。",
}


class Config(EntryConfig):
    """``weight`` of the general question's answers beside those of the question itself; of both, ``candidates`` chunks are fused."""

    weight: float = Field(default=0.5, gt=0.0, allow_inf_nan=False)
    candidates: int = Field(default=20, ge=1, le=MOST)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """Reciprocal rank fusion of both."""
    written = lines_of(tools.write("step_back", _ASK["zh" if is_chinese(query.text) else "en"], query.text))
    if not written or written[0] == query.text:
        return inner(query)
    tools.embed_questions([query.text, written[0]])  # at once; the searches below find them done
    most = max(config.candidates, query.k)
    lists = [inner(replace(query, k=most)), inner(replace(query, k=most, text=written[0], vector=None))]
    return by_rank(lists, [1.0, config.weight], query.k)
