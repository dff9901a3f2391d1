"""A growing text in sentences, cut the same way whether it comes at once or in pieces."""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST = 600
_END = re.compile(r"[\n。！？]+|[.!?;]+(?=\s)")


@dataclass(frozen=True, slots=True)
class Segment:
    """``text[start:end]``."""

    start: int
    end: int


def segments(text: str, start: int, final: bool) -> list[Segment]:
    """The sentences of ``text`` from ``start`` (where one begins) on that are complete; ``final``: the last one, too.

    A sentence ends with a line or behind its mark (a full stop needs white space after it); one of more than ``MOST`` characters is cut.
    """
    out: list[Segment] = []
    at = start
    while at < len(text):
        found = _END.search(text, at, at + MOST)
        end = found.end() if found is not None else at + MOST
        if not final and (end >= len(text) or (found is None and len(text) < at + MOST + 1)):
            break
        end = min(end, len(text))
        out.append(Segment(at, end))
        at = end
    return out
