"""Source code: top-level pieces together, cut between lines, where the indentation is least."""

from __future__ import annotations

import itertools
from bisect import bisect_left

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._spans import ChunkTools, Cut, Joined, Span, key_of


class Config(EntryConfig):
    """``tokens`` a chunk at most; neighbouring pieces share one when they fit, a longer piece is cut between lines, a longer line between words."""

    tokens: int = Field(default=300, ge=8)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Chunks of whole lines; the lines are in ``place``."""
    joined = Joined(document, tools)
    key = key_of("code", config.model_dump())
    spans: list[Span] = []
    for start, end in itertools.pairwise([*joined.starts, len(joined.text)]):
        if spans and joined.fits((spans[-1][0], end), config.tokens):
            spans[-1] = (spans[-1][0], end)
        elif joined.fits((start, end), config.tokens):
            spans.append((start, end))
        else:
            spans += _by_lines(joined, (start, end), config.tokens)
    cuts: list[Cut] = [cut for span in spans for cut in joined.fit(span, config.tokens)]
    return [joined.chunk(cut, number, key) for number, cut in enumerate(cuts)]


def _by_lines(joined: Joined, span: Span, most: int) -> list[Span]:
    """Runs of lines: each ends, in its second half, before the line that is indented least, the last of equals."""
    lines = [span[0], *joined.lines[bisect_left(joined.lines, span[0] + 1) : bisect_left(joined.lines, span[1])]]
    ends = [*lines[1:], span[1]]
    out: list[Span] = []
    first = 0
    while first < len(lines):
        last = first
        while last + 1 < len(lines) and joined.count((lines[first], ends[last + 1])) <= most:
            last += 1
        while last > first and not joined.fits((lines[first], ends[last]), most):
            last -= 1
        if last + 1 < len(lines):
            half = first + (last - first + 1) // 2
            last = min(range(half, last + 1), key=lambda at: (_indent(joined, (ends[at], ends[at + 1])), -at))
        out.append((lines[first], ends[last]))
        first = last + 1
    return out


def _indent(joined: Joined, line: Span) -> int:
    """How far a line is indented; one that closes something, or an empty one, is no place to begin."""
    text = joined.text[line[0] : line[1]].rstrip()
    bare = text.lstrip()
    return len(text) - len(bare) if bare and bare[0] not in ")]}" else 1000
