"""Meaning and words together: the default."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.core.errors import InputError
from luthier.knowledge.retrievers._fusion import by_rank, by_score
from luthier.knowledge.retrievers._query import MOST, Query, Search, SearchTools

FIRST = True

_side = ThreadPoolExecutor(8, "luthier-keyword")
"""Words are looked for while the question is embedded and its neighbours are: indexes and embedding models compute outside of Python."""


class Config(EntryConfig):
    """``dense`` and ``keyword`` are weights of the two lists, each of ``candidates`` chunks.

    ``fusion``: ``score`` adds similarity and BM25 score, the latter as a share of the highest; where vectors tell chunks hardly apart (a language that the
    embedding model does not know), words decide. ``rank`` adds 1 / (``constant`` + rank), for embedding models whose similarities are all close
    to one another.
    """

    fusion: Literal["score", "rank"] = "score"
    dense: float = Field(default=2.0, ge=0.0, allow_inf_nan=False)
    keyword: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    candidates: int = Field(default=50, ge=1, le=MOST)
    constant: int = Field(default=60, ge=0)

    @model_validator(mode="after")
    def _some_weight(self) -> Config:
        if self.dense == self.keyword == 0:
            raise InputError("dense and keyword must not both be 0: nothing would be searched")
        return self


def search(query: Query, config: Config, tools: SearchTools, inner: Search | None) -> list[Hit]:
    """The best of both searches; a list whose weight is 0 is not made."""
    most = max(config.candidates, query.k)
    words = _side.submit(tools.index.keyword, query.text, most, query.where) if config.keyword else None
    near = tools.index.dense(tools.vector_of(query), most, query.where) if config.dense else []
    found = words.result() if words is not None else []
    if config.fusion == "rank":
        return by_rank([near, found], [config.dense, config.keyword], query.k, constant=config.constant)
    return by_score(near, found, config.dense, config.keyword, query.k)
