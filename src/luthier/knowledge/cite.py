"""The marks in an answer that point to passages: read as the answer comes, the wrong ones left out, each with the sentence that it rests on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from luthier.core.document import Citation, Hit
from luthier.knowledge.chunkers._spans import sentence_starts

_LONGEST_MARK = 64
_MARK = re.compile(
    r"[\[【［]\s*(?:passages?|段落|文档|资料|来源)?\s*(\d{1,4}(?:\s*(?:[-–—~～至到]|,|，|、|;|；|and|和)\s*\d{1,4})*)(?:\s*:\s*\d+)?\s*(?:†[^\]】］]*)?[\]】］]",
    re.IGNORECASE,
)
_OPENING, _CLOSING = "[【［", "]】］"
_ONE = re.compile(r"\d+|[-–—~～至到]")
_WORD = re.compile(r"[^\W_]+")
_WIDE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af]")
_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*•|]|\d+[.)、]))")
_LEAST_OVERLAP = 0.2
_ATTRIBUTED = 0.6
_LEAST_UNITS = 3


class Marks:
    """Reads an answer piece by piece. ``[2, 3]``, ``[1-3]`` and ``【1】`` point to passages ``1`` to ``most``; each becomes ``[1]`` or ``[1, 2]`` with the
    numbers that exist, or goes when none does. Code between backticks is left as it is.

    ``cited`` holds the numbers so far, in the order of their first marks.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.cited: list[int] = []
        self._held = ""
        self._fence = ""  # the backticks that opened the code we are in
        self._ticks = ""

    def feed(self, text: str) -> str:
        """What can be shown after ``text`` came."""
        out = []
        for character in text:
            out.append(self._one(character))
        return "".join(out)

    def end(self) -> str:
        """What was held back."""
        rest, self._held = self._held + self._ticks, ""
        self._ticks = ""
        return rest

    def _one(self, character: str) -> str:
        if character == "`":
            self._ticks += character
            return self._let_go("") if self._held.strip() else ""
        before = self._count_ticks()
        if self._fence:
            return before + character
        if self._held.strip():  # in a mark
            held = self._held + character
            if character in _CLOSING:
                self._held = ""
                return before + self._checked(held)
            if character in "\n" + _OPENING or len(held) > _LONGEST_MARK:
                return before + self._let_go(character)
            self._held = held
            return before
        if character in _OPENING or character in " \t":
            self._held += character
            return before
        return before + self._let_go(character)

    def _let_go(self, character: str) -> str:
        """What was held, then ``character``, which may begin to be held itself."""
        held, self._held = self._held, ""
        if character and character in _OPENING:
            self._held = character
            return held
        return held + character

    def _count_ticks(self) -> str:
        """The backticks that have come to their end; they open code or close it."""
        ticks, self._ticks = self._ticks, ""
        if not ticks:
            return ""
        if not self._fence:
            self._fence = ticks
        elif ticks == self._fence:
            self._fence = ""
        held, self._held = self._held, ""
        return held + ticks

    def _checked(self, held: str) -> str:
        spaces = held[: len(held) - len(held.lstrip(" \t"))]
        found = _MARK.fullmatch(held.lstrip(" \t"))
        if found is None:
            return held
        numbers = [number for number in numbers_in(found[1]) if 1 <= number <= self.most]
        self.cited += [number for number in numbers if number not in self.cited]
        return f"{spaces}[{', '.join(map(str, numbers))}]" if numbers else ""


def numbers_in(mark: str) -> list[int]:
    """``2, 4-6`` as 2, 4, 5, 6; each once. A range that is no range counts as its ends."""
    out: list[int] = []
    joined = False
    for part in _ONE.findall(mark):
        if not part.isdigit():
            joined = True
            continue
        number = int(part)
        first = out[-1] + 1 if joined and out and out[-1] < number <= out[-1] + 100 else number
        out += [each for each in range(first, number + 1) if each not in out]
        joined = False
    return out


def clean(text: str, most: int) -> tuple[str, list[int]]:
    """(the answer with good marks only, the numbers that it cites) for an answer from ``most`` passages."""
    marks = Marks(most)
    return marks.feed(text) + marks.end(), marks.cited


def cite(text: str, hits: Sequence[Hit]) -> tuple[Citation, ...]:
    """One citation for each passage that the answer points to; ``hits[0]`` is passage 1. The quote is the passage's sentence that is most like what
    stands before the marks, "" when none has much in common with it."""
    _, cited = clean(text, len(hits))
    said = statements(text)
    out = []
    for number in cited:
        hit = hits[number - 1]
        texts = [statement for statement, numbers in said if number in numbers]
        out.append(Citation(number, hit, quote(hit.chunk.text, " ".join(texts))))
    return tuple(out)


def attributed(text: str, hits: Sequence[Hit]) -> tuple[Citation, ...]:
    """Citations for an answer whose model set no marks: a passage is cited when one of its sentences has at least three fifths of a statement.

    A statement rests on the passage that has most of it. One of fewer than three words says too little to tell.
    """
    pieces = [(number, sentence) for number, hit in enumerate(hits, 1) for sentence in sentences(hit.chunk.text)]
    found: dict[int, str] = {}
    for statement, _ in statements(text):
        if len(units(statement)) < _LEAST_UNITS or not pieces:
            continue
        shares = [overlap(statement, sentence) for _, sentence in pieces]
        best = max(range(len(pieces)), key=lambda place: shares[place])
        if shares[best] >= _ATTRIBUTED:
            found.setdefault(*pieces[best])
    return tuple(Citation(number, hits[number - 1], sentence) for number, sentence in found.items())


def statements(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The sentences of an answer without their marks, each with the passages that it cites. Marks after a sentence's end belong to it."""
    out: list[tuple[str, tuple[int, ...]]] = []
    moved = re.sub(rf"([.!?。！？])((?:\s*{_MARK.pattern})+)", _inside, text, flags=re.IGNORECASE)
    starts = [*sentence_starts(moved), len(moved)]
    for start, end in pairwise(starts):
        sentence = moved[start:end]
        numbers = tuple(dict.fromkeys(n for mark in _MARK.finditer(sentence) for n in numbers_in(mark[1])))
        bare = _MARK.sub("", sentence).strip()
        if bare or numbers:
            out.append((bare, numbers))
    return out


def _inside(found: re.Match[str]) -> str:
    """``sentence. [1]`` as ``sentence [1].``, so that the mark stays with its sentence."""
    return f"{found[2]}{found[1]}"


def quote(passage: str, statement: str) -> str:
    """The sentence of ``passage`` that supports ``statement`` best, "" when none shares a fifth of its words."""
    best, most = "", _LEAST_OVERLAP
    for sentence in sentences(passage):
        share = overlap(statement, sentence)
        if share > most:
            best, most = sentence, share
    return best


def sentences(passage: str) -> list[str]:
    """The sentences of a passage; a heading, an item of a list and a row of a table are ones, too."""
    out = []
    for block in _BLOCK.split(passage):
        found = (block[start:end].strip() for start, end in pairwise([*sentence_starts(block), len(block)]))
        out += [sentence for sentence in found if sentence]
    return out


def overlap(statement: str, sentence: str) -> float:
    """How much of ``statement`` is in ``sentence``, 0 to 1: the share of its words (in Chinese, its pairs of characters), a little more for runs that
    are the same, and 1 for a literal part."""
    a, b = units(statement), units(sentence)
    if not a or not b:
        return 0.0
    if " ".join(a) in " ".join(b):
        return 1.0
    weights = {unit: len(unit) if not _WIDE.search(unit) else 3 for unit in a}
    there = Counter(b)
    common = sum(weights[unit] * min(count, there[unit]) for unit, count in Counter(a).items())
    share = common / sum(weights[unit] for unit in a)
    run = SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size / len(a)
    length = 1.0 / (1.0 + max(0, len(b) - 4 * len(a)) / 200)
    return min(1.0, (0.8 * share + 0.2 * run) * length)


def units(text: str) -> list[str]:
    """Words in lower case; of runs of Chinese characters every pair of neighbours."""
    out: list[str] = []
    for word in _WORD.findall(text.casefold()):
        wide = _WIDE.search(word) is not None
        out += [word[at : at + 2] for at in range(len(word) - 1)] if wide and len(word) > 1 else [word]
    return out


def cited_as_dict(citation: Citation) -> dict[str, Any]:
    """A citation as JSON: which document, where in it, which sentence, and what the search gave it."""
    hit = citation.hit
    return {
        "number": citation.number,
        "place": hit.cited,
        "document": hit.document,
        "source": hit.source,
        "title": hit.title,
        "pages": list(hit.chunk.pages) if hit.chunk.pages else None,
        "headings": list(hit.chunk.headings),
        "chunk": hit.chunk.id,
        "quote": citation.quote,
        "score": hit.score,
        "scores": dict(hit.scores),
    }
