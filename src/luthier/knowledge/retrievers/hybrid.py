"""Meaning and words together: the default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.core.errors import InputError
from luthier.knowledge.retrievers._fusion import by_rank, by_score
from luthier.knowledge.retrievers._query import MOST, Query, Search, SearchTools

FIRST = True


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
    near = tools.index.dense(tools.vector_of(query), most, query.where) if config.dense else []
    words = tools.index.keyword(query.text, most, query.where) if config.keyword else []
    if config.fusion == "rank":
        return by_rank([near, words], [config.dense, config.keyword], query.k, constant=config.constant)
    return by_score(near, words, config.dense, config.keyword, query.k)
