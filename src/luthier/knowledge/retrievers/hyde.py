"""Search by an answer that a model makes up, which is nearer to real answers than the question is (HyDE, Gao et al. 2022)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import Query, Search, SearchTools, is_chinese

_ASK = {
    "en": "Write a short passage, as it could stand in a document, that answers the question below.",
    "zh": "请写一小段话,像文档中的段落一样,回答下面的问题。",
}


class Config(EntryConfig):
    """``tokens`` of the passage. The vector that is searched is the mean of its and, when ``question``, the question's own."""

    tokens: int = Field(default=128, ge=8, le=1024)
    question: bool = True


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """The inner search by the passage's vector; keyword search and rerankers still see the question."""
    how = _ASK["zh" if is_chinese(query.text) else "en"]
    passage = tools.write("hyde", how, query.text, tokens=config.tokens)
    if not passage:
        return inner(query)
    written = tools.embed([passage])[0]
    mean = (written + tools.vector_of(query)) / 2 if config.question else written
    return inner(replace(query, vector=np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)))
