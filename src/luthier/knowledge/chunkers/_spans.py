"""A document as one text, spans of it as chunks, and where a text may be cut."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from luthier.core.digest import digest_json
from luthier.core.document import Block, Chunk, Document
from luthier.core.engine import Engine, Vectors
from luthier.knowledge.written import Writers

GAP = "\n\n"
"""Between two blocks."""

Span = tuple[int, int]

_LONG = 64
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+|[^\w\s]")
_SENTENCE = re.compile(
    r"(?<=[.!?])[\"'\u201d\u2019)\]]*\s+(?=[^a-z\s])|(?<=[\u3002\uff01\uff1f\uff1b])[\u201d\u2019\u300d\u300f\uff09]*"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Fig|Eq|vs|etc|e\.g|i\.e|cf|al|Jr|Sr|Inc|Ltd|Co|U\.S)|\b[A-Z])\.$"
)
_BETWEEN_WORDS = re.compile(r"\s+|[\u3001\uff0c\uff1a\uff1b]")
_LINES = re.compile(r"lines? (\d+)(?:-(\d+))?")
_TABLE_HEAD = re.compile(r"[^\n]*\|[^\n]*\n[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*\n")
_PROSE = ("paragraph", "quote", "list", "caption")


@dataclass(frozen=True)
class ChunkTools:
    """What chunkers may use. ``offsets``: (start, end) of each token of a text, by the embedding model's tokenizer.

    ``embed`` gives unit vectors (texts, width), ``ask`` writes, ``writers`` opens models that write by their names; None where there is none.
    ``written`` is a file that keeps what was written, so that the same is not asked twice.
    """

    offsets: Callable[[str], Sequence[Span]]
    embed: Callable[[Sequence[str]], Vectors] | None = None
    ask: Engine | None = None
    writers: Writers | None = None
    written: Path | None = None


def word_offsets(text: str) -> list[Span]:
    """(start, end) of words, Chinese characters and marks: for models whose tokenizer is not on this machine."""
    return [found.span() for found in _WORD.finditer(text)]


class Cut(NamedTuple):
    """A piece of the text; ``lead`` is said before it: the header of the table that it goes on with."""

    start: int
    end: int
    lead: str = ""


class Joined:
    """All blocks of a document as one text, cut by positions in it."""

    def __init__(self, document: Document, tools: ChunkTools) -> None:
        self.document, self.tools = document, tools
        self.numbers = [number for number, block in enumerate(document.blocks) if block.text.strip()]
        self.starts: list[int] = []
        at, texts = 0, []
        for number in self.numbers:
            self.starts.append(at)
            texts.append(document.blocks[number].text)
            at += len(texts[-1]) + len(GAP)
        self.text = GAP.join(texts)
        self.size = lru_cache(maxsize=16)(self._size)

    @property
    def whole(self) -> Span:
        """All of it."""
        return 0, len(self.text)

    @cached_property
    def tokens(self) -> list[int]:
        """Where tokens begin, in order; several may begin at one character.

        A long run of characters without a token in it counts as one each four of them: tokenizers make a single unknown token of a word that
        is long enough, however long it is.
        """
        return _token_starts(self.tools.offsets(self.text), self.text) if self.text else []

    @cached_property
    def sentences(self) -> list[int]:
        """Where sentences begin, the end of the text last. A block begins one; a heading, table or piece of code is one."""
        cuts = set(self.starts)
        for number, start in zip(self.numbers, self.starts, strict=True):
            block = self._block(number)
            if block.kind in _PROSE:
                cuts.update(start + cut for cut in sentence_starts(block.text))
        return [*sorted(cuts), len(self.text)]

    @cached_property
    def lines(self) -> list[int]:
        """Where lines begin, but for the first."""
        return [found.end() for found in re.finditer(r"\n", self.text)]

    @cached_property
    def _levels(self) -> tuple[list[int], ...]:
        """Where the text may be cut, the best kind of place first: headings, blocks (but not after a heading), sentences and rows, lines, words."""
        kinds = [self._block(number).kind for number in self.numbers]
        headings = [start for kind, start in zip(kinds, self.starts, strict=True) if kind == "heading"]
        under = zip(["", *kinds], self.starts, strict=False)
        blocks = [start for before, start in under if before != "heading"]
        rows: set[int] = set()
        for number, start in zip(self.numbers, self.starts, strict=True):
            block = self._block(number)
            if block.kind not in ("paragraph", "heading"):
                rows.update(start + found.end() for found in re.finditer(r"\n", block.text))
        words = [found.end() for found in _BETWEEN_WORDS.finditer(self.text)]
        return headings, blocks, sorted({*rows, *self.sentences}), self.lines, words

    def _block(self, number: int) -> Block:
        return self.document.blocks[number]

    def count(self, span: Span) -> int:
        """About how many tokens are in a span: those of the whole text that begin in it. ``size`` is exact, and slower."""
        return bisect_left(self.tokens, span[1]) - bisect_left(self.tokens, span[0])

    def _size(self, text: str) -> int:
        return len(_token_starts(self.tools.offsets(text), text)) if text else 0

    def fits(self, span: Span, most: int) -> bool:
        """Whether the text of a span alone has at most ``most`` tokens."""
        start, end = self.trim(span)
        return self.count((start, end)) <= most and self.size(self.text[start:end]) <= most

    def fit(self, span: Span, most: int, overlap: int = 0) -> list[Cut]:
        """The span itself if it fits, else its parts."""
        if not self.fits(span, most):
            return self.cut(span, most, overlap)
        start, end = self.trim(span)
        return [Cut(start, end)] if end > start else []

    def cut(self, span: Span, most: int, overlap: int = 0, *, anywhere: bool = False) -> list[Cut]:
        """Pieces of at most ``most`` tokens, cut at the best places that leave them more than half full, or ``anywhere``.

        Each begins with up to ``overlap`` tokens of the one before, from the beginning of a sentence or word (exactly so many when
        ``anywhere``). All that is not white space is in some piece.
        """
        out: list[Cut] = []
        at, stop = span
        done = at
        while at < stop:
            lead = "" if anywhere else self._lead(at, most)
            end = self._end(at, stop, most, lead, anywhere)
            if end <= done:  # the overlap leaves no room for anything new
                at = done
                continue
            out.append(Cut(*self.trim((at, end)), lead))
            done = end
            if end >= stop:
                break
            at = self._begin_again(at, end, overlap, anywhere) if overlap else end
        return [each for each in out if each.end > each.start]

    def _end(self, at: int, stop: int, most: int, lead: str, anywhere: bool) -> int:
        """Where the piece that begins at ``at`` ends: as far as its own tokens, counted alone, are not too many."""
        first = bisect_left(self.tokens, at)
        room = most - (self.size(lead) if lead else 0)
        while True:
            end = stop
            if first + room < len(self.tokens) and self.tokens[first + room] < stop:
                high = self.tokens[first + room]
                end = high if anywhere else self._best(self.tokens[first + max(1, room // 2)], high, at)
            end = end if end > at else self._after(at, stop)
            start, last = self.trim((at, end))
            over = self.size(lead + self.text[start:last]) - most
            if over <= 0 or room <= 1:
                return end
            room = max(1, min(room, self.count((at, end))) - over)

    def _after(self, at: int, stop: int) -> int:
        """The nearest place after ``at`` where a token begins."""
        found = bisect_right(self.tokens, at)
        return min(stop, self.tokens[found]) if found < len(self.tokens) else stop

    def _best(self, low: int, high: int, at: int) -> int:
        for level in self._levels:
            found = bisect_right(level, high) - 1
            if found >= 0 and level[found] > max(low, at):
                return level[found]
        return high

    def _begin_again(self, before: int, end: int, overlap: int, anywhere: bool) -> int:
        back = self.tokens[max(bisect_left(self.tokens, end) - overlap, 0)]
        if back <= before:
            return end
        for level in () if anywhere else (self._levels[2], self._levels[4]):
            found = bisect_left(level, back)
            if found < len(level) and level[found] < end:
                return level[found]
        return back

    @cached_property
    def _heads(self) -> dict[int, tuple[str, int]]:
        """By the number of a table: its header and rule, and where its rows begin."""
        found = {}
        for at, (number, start) in enumerate(zip(self.numbers, self.starts, strict=True)):
            block = self._block(number)
            head = _TABLE_HEAD.match(block.text) if block.kind == "table" else None
            if head:
                found[at] = head.group(), start + head.end()
        return found

    def _lead(self, at: int, most: int) -> str:
        """The header of the table that goes on at ``at``, if it leaves room for rows."""
        block = bisect_right(self.starts, at) - 1
        head, rows = self._heads.get(block, ("", 0))
        inside = rows <= at < self.starts[block] + len(self._block(self.numbers[block]).text) if head else False
        return head if inside and self.size(head) <= most // 2 else ""

    def trim(self, span: Span) -> Span:
        """Without white space at its ends; the indentation of code stays."""
        text = self.text[span[0] : span[1]]
        start, end = span[0] + len(text) - len(text.lstrip()), span[1] - (len(text) - len(text.rstrip()))
        if start >= end:
            return span[0], span[0]
        if self._block(self.numbers[bisect_right(self.starts, start) - 1]).kind == "code":
            line = self.text.rfind("\n", 0, start) + 1
            if line >= span[0]:
                start = line
        return start, end

    def chunk(self, span: Cut | Span, number: int, key: str, text: str | None = None, **more: object) -> Chunk:
        """The chunk of a span. ``key`` is part of its id: chunker and options."""
        first = max(bisect_right(self.starts, span[0]) - 1, 0)
        last = max(bisect_left(self.starts, span[1]) - 1, first)
        blocks = self.numbers[first], self.numbers[last]
        within = (self._block(each).page for each in self.numbers[first : last + 1])
        pages = [page for page in within if page is not None]
        digest = hashlib.sha256(f"{self.document.digest}\0{key}\0{number}".encode()).hexdigest()
        lead = span.lead if isinstance(span, Cut) else ""
        shown = lead + self.text[span[0] : span[1]] if text is None else text
        values: dict[str, object] = {
            "id": digest[:32],
            "text": shown,
            "number": number,
            "blocks": blocks,
            "headings": self._paths[blocks[0]],
            "pages": (min(pages), max(pages)) if pages else None,
            "place": self._place((span[0], span[1]), first, last),
            "tokens": self.size(shown),
        }
        return Chunk(**{**values, **more})  # type: ignore[arg-type]

    def _place(self, span: Span, first: int, last: int) -> str:
        """The lines of a span where its blocks say theirs; else the place of its first and, when it is another, of its last block."""
        begin, end = (self._block(self.numbers[each]).place for each in (first, last))
        lines = _LINES.fullmatch(begin), _LINES.fullmatch(end)
        if lines[0] and lines[1]:
            line, to = self._line(first, span[0], lines[0]), self._line(last, span[1], lines[1])
            return f"line {line}" if line == to else f"lines {line}-{to}"
        return begin if begin == end or not end else f"{begin} to {end}" if begin else end

    def _line(self, block: int, at: int, said: re.Match[str]) -> int:
        """The line of a position, never after the last one that its block says it has."""
        start = self.starts[block]
        below = bisect_right(self.lines, max(at, start)) - bisect_right(self.lines, start)
        return min(int(said.group(1)) + below, int(said.group(2) or said.group(1)))

    @cached_property
    def _paths(self) -> list[tuple[str, ...]]:
        """For each block the headings that it stands under, the outermost first; a heading stands under higher ones only."""
        out = []
        path: list[tuple[int, str]] = []
        shown: tuple[str, ...] = ()
        for block in self.document.blocks:
            if block.kind == "heading":
                path = [each for each in path if each[0] < block.level]
                out.append(tuple(text for _, text in path))
                path.append((block.level, block.text))
                shown = tuple(text for _, text in path)
            else:
                out.append(shown)
        return out


def _token_starts(offsets: Sequence[Span], text: str) -> list[int]:
    """Where tokens begin; a long run of text without one is given some."""
    starts = [start for start, end in offsets if end > start]
    if not starts or starts[0] > _LONG:
        starts = [0, *starts]
    ends = [*starts[1:], len(text)]
    bare = [at for at, (start, end) in enumerate(zip(starts, ends, strict=True)) if end - start > _LONG]
    if not bare:
        return starts
    out: list[int] = []
    before = 0
    for at in bare:
        start = starts[at]
        end = start + len(text[start : ends[at]].rstrip())
        out += [*starts[before : at + 1], *(range(start + 4, end, 4) if end - start > _LONG else ())]
        before = at + 1
    return out + starts[before:]


def sentence_starts(text: str) -> list[int]:
    """Where sentences of a text begin, 0 among them; English and Chinese marks, abbreviations are not ends."""
    cuts = [0]
    for found in _SENTENCE.finditer(text):
        before = text[max(0, found.start() - 12) : found.start()]
        if found.end() < len(text) and not _ABBREVIATION.search(before):
            cuts.append(found.end())
    return cuts


def key_of(name: str, options: object) -> str:
    """What tells the chunks of one chunker and its options from those of another."""
    return digest_json([name, options])[:16]
