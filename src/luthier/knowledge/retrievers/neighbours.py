"""Show what stands before and after a chunk with it."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Hit
from luthier.knowledge.retrievers._query import Query, Search, SearchTools


class Config(EntryConfig):
    """``before`` and ``after``: how many chunks of the same document."""

    before: int = Field(default=1, ge=0, le=10)
    after: int = Field(default=1, ge=0, le=10)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """Chunks grown by their neighbours; one that is inside of a better one's neighbourhood is not shown again."""
    out: list[Hit] = []
    covered: set[tuple[str, int]] = set()
    for hit in inner(query):
        if not hit.chunk.searched or hit.chunk.question:  # a parent, or a question with its answer, is whole
            out.append(hit)
            continue
        if (hit.document, hit.chunk.number) in covered:
            continue
        first = max(0, hit.chunk.number - config.before)
        around = tools.index.of_document(hit.document, first, hit.chunk.number + config.after)
        around = [each for each in around if each.chunk.searched and not each.chunk.question]
        covered |= {(hit.document, each.chunk.number) for each in around}
        out.append(replace(hit, chunk=_grown(hit.chunk, [each.chunk for each in around])) if around else hit)
    return out


def _grown(chunk: Chunk, around: list[Chunk]) -> Chunk:
    text = around[0].text
    for each in around[1:]:
        text += _without_overlap(text, each.text)
    pages = [page for each in around for page in each.pages or ()]
    return replace(
        chunk,
        text=text,
        blocks=(around[0].blocks[0], around[-1].blocks[1]),
        pages=(min(pages), max(pages)) if pages else None,
        tokens=sum(each.tokens for each in around),
    )


def _without_overlap(before: str, text: str) -> str:
    """``text`` without the beginning that repeats the end of ``before``."""
    for size in range(min(len(before), len(text), 2000), 7, -1):
        if before.endswith(text[:size]):
            return text[size:]
    return "\n" + text
