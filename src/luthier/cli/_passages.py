"""Passages that a search found, as people read them: where they are, and the part that says it with the question's words marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from luthier.core.document import Hit

_WORD = re.compile(r"[^\W_]+")
_CHINESE = re.compile(r"[\u3400-\u9fff]+")
_SMALL = re.compile(
    r"(?:a|an|and|are|as|at|be|been|but|by|can|could|did|do|does|for|from|had|has|have|how|i|if|in|into|is|it|its|may|me|"
    r"my|no|not|of|on|or|our|shall|she|should|so|than|that|the|their|them|then|there|these|they|this|those|"
    r"to|was|we|were|what|when|where|which|who|whom|why|will|with|would|you|your)",
    re.IGNORECASE,
)
_SMALL_CHINESE = frozenset("的了是在和与或吗呢么什怎哪谁我你他她它们这那有没不请问如何")


def place(hit: Hit) -> str:
    """Where a chunk is: ``handbook.pdf, page 3, Leave > Parental leave``."""
    name = hit.source if "://" in hit.source else Path(hit.source).name
    first, last = hit.chunk.pages or (0, 0)
    pages = "" if not first else f"page {first}" if first == last else f"pages {first}-{last}"
    return ", ".join(filter(None, (name, pages, hit.chunk.place, " > ".join(hit.chunk.headings))))


def words_of(question: str) -> re.Pattern[str] | None:
    """What to mark of a question: its words without the small ones (their beginnings, so that plurals count), and pairs of Chinese characters."""
    found: set[str] = set()
    for word in _WORD.findall(_CHINESE.sub(" ", question)):
        if not _SMALL.fullmatch(word) and (len(word) > 1 or word.isdigit()):
            found.add(rf"\b{re.escape(_stem(word))}\w*")
    for run in _CHINESE.findall(question):
        pairs = [run[at : at + 2] for at in range(len(run) - 1)] or [run]
        found |= {re.escape(pair) for pair in pairs if not set(pair) & _SMALL_CHINESE}
    return re.compile("|".join(sorted(found, key=lambda each: (-len(each), each))), re.IGNORECASE) if found else None


def passage(text: str, question: str, width: int, *, lines: int = 4) -> Text:
    """The part of ``text`` with most of the question's words, on at most ``lines`` lines of ``width``, the words bold."""
    from rich.cells import cell_len
    from rich.text import Text

    flat, marks = " ".join(text.split()), words_of(question)
    places = [each.start() for each in marks.finditer(flat)] if marks else []
    room = max(20, width * lines - 2 * lines)
    scale = max(1, cell_len(flat)) / max(1, len(flat))  # Chinese characters take two columns
    shown = int(room / scale)
    begin = _window(places, shown, len(flat))
    if begin:
        begin = flat.rfind(" ", 0, begin) + 1 if " " in flat[max(0, begin - 40) : begin] else begin
    end = min(len(flat), begin + shown)
    cut = Text(("… " if begin else "") + flat[begin:end] + (" …" if end < len(flat) else ""))
    if marks:
        cut.highlight_regex(marks, "bold yellow")
    return cut


def _window(places: Sequence[int], shown: int, length: int) -> int:
    """Where to begin so that most of ``places`` are seen, a little before the first of them."""
    if length <= shown or not places:
        return 0
    best = max(places, key=lambda at: (sum(at <= each < at + int(0.8 * shown) for each in places), -at))
    return max(0, min(best - int(0.15 * shown), length - shown))


def _stem(word: str) -> str:
    """The word without an English ending, so that ``refunds`` marks ``refund`` and ``refunded``."""
    for ending in ("ing", "ies", "es", "ed", "s"):
        if word.lower().endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word
