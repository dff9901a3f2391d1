"""A document as one text, spans of it as chunks, and where a text may be cut."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from luthier.core.digest import digest_json
from luthier.core.document import Block, Chunk, Document
from luthier.core.engine import Engine, Vectors

GAP = "\n\n"
"""Between two blocks."""

Span = tuple[int, int]

_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+|[^\w\s]")
_SENTENCE = re.compile(
    r"(?<=[.!?])[\"'\u201d\u2019)\]]*\s+(?=[^a-z\s])|(?<=[\u3002\uff01\uff1f\uff1b])[\u201d\u2019\u300d\u300f\uff09]*"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Fig|Eq|vs|etc|e\.g|i\.e|cf|al|Jr|Sr|Inc|Ltd|Co|U\.S)|\b[A-Z])\.$"
)


@dataclass(frozen=True)
class ChunkTools:
    """What chunkers may use. ``offsets``: (start, end) of each token of a text, by the embedding model's tokenizer.

    ``embed`` gives unit vectors (texts, width), ``ask`` writes; None where there is none.
    """

    offsets: Callable[[str], Sequence[Span]]
    embed: Callable[[Sequence[str]], Vectors] | None = None
    ask: Engine | None = None


def word_offsets(text: str) -> list[Span]:
    """(start, end) of words, Chinese characters and marks: for models whose tokenizer is not on this machine."""
    return [found.span() for found in _WORD.finditer(text)]


class Joined:
    """All blocks of a document as one text, cut by positions in it."""

    def __init__(self, document: Document, tools: ChunkTools, blocks: Iterable[int] | None = None) -> None:
        self.document, self.tools = document, tools
        numbers = range(len(document.blocks)) if blocks is None else list(blocks)
        self.numbers = [number for number in numbers if document.blocks[number].text.strip()]
        self.starts: list[int] = []
        at, texts = 0, []
        for number in self.numbers:
            self.starts.append(at)
            texts.append(document.blocks[number].text)
            at += len(texts[-1]) + len(GAP)
        self.text = GAP.join(texts)

    @cached_property
    def tokens(self) -> tuple[list[int], list[int]]:
        """Starts and ends of all tokens."""
        spans = [span for span in self.tools.offsets(self.text) if span[1] > span[0]] if self.text else []
        return [start for start, _ in spans], [end for _, end in spans]

    @cached_property
    def sentences(self) -> list[int]:
        """Where sentences begin, the end of the text last. A block begins one; a heading, table or piece of code is one."""
        cuts = set(self.starts)
        for number, start in zip(self.numbers, self.starts, strict=True):
            block = self.document.blocks[number]
            if block.kind in ("paragraph", "quote", "list", "caption"):
                cuts.update(start + cut for cut in sentence_starts(block.text))
        return [*sorted(cuts), len(self.text)]

    @cached_property
    def _levels(self) -> tuple[list[int], ...]:
        """Positions after which the text may be cut, the best kind of place first: headings, blocks, lines, sentences, words."""
        headings = [s for n, s in zip(self.numbers, self.starts, strict=True) if self._block(n).kind == "heading"]
        lines = [found.end() for found in re.finditer(r"\n", self.text)]
        words = [found.end() for found in re.finditer(r"\s+|[\u3001\uff0c\uff1a,;:]\s*", self.text)]
        return (headings, self.starts, sorted({*lines, *self.sentences}), words)

    def _block(self, number: int) -> Block:
        return self.document.blocks[number]

    def count(self, span: Span) -> int:
        """Tokens in a span."""
        starts, _ = self.tokens
        return bisect_left(starts, span[1]) - bisect_left(starts, span[0])

    def cut(self, span: Span, most: int, overlap: int = 0) -> list[Span]:
        """Spans of at most ``most`` tokens, cut at the best places that leave them more than half full.

        Each begins with up to ``overlap`` tokens of the one before, from the beginning of a sentence or word.
        """
        starts, _ends = self.tokens
        out: list[Span] = []
        at, stop = span
        while at < stop:
            first = bisect_left(starts, at)
            if first >= len(starts) or starts[first] >= stop:
                break
            last = first + most  # the first token that does not fit
            if last >= len(starts) or starts[last] >= stop:
                out.append((at, stop))
                break
            end = self._best(starts[first + max(1, most // 2)], starts[last], at)
            out.append((at, end))
            at = self._begin_again(at, end, overlap) if overlap else end
        return [trimmed for each in out if (trimmed := self.trim(each))[1] > trimmed[0]]

    def _best(self, low: int, high: int, at: int) -> int:
        for level in self._levels:
            found = bisect_right(level, high) - 1
            if found >= 0 and level[found] > max(low, at):
                return level[found]
        return high

    def _begin_again(self, before: int, end: int, overlap: int) -> int:
        starts, _ = self.tokens
        back = starts[max(bisect_left(starts, end) - overlap, 0)]
        for level in (self.sentences, self._levels[3]):
            found = bisect_left(level, back)
            if found < len(level) and before < level[found] < end:
                return level[found]
        return end if back <= before else back

    def trim(self, span: Span) -> Span:
        """Without white space at its ends."""
        text = self.text[span[0] : span[1]]
        return span[0] + len(text) - len(text.lstrip()), span[1] - (len(text) - len(text.rstrip()))

    def chunk(self, span: Span, number: int, key: str, text: str | None = None, **more: object) -> Chunk:
        """The chunk of a span. ``key`` is part of its id: chunker and options."""
        first = max(bisect_right(self.starts, span[0]) - 1, 0)
        last = max(bisect_left(self.starts, span[1]) - 1, first)
        blocks = self.numbers[first], self.numbers[last]
        within = [self._block(each) for each in self.numbers[first : last + 1]]
        pages = [block.page for block in within if block.page is not None]
        digest = hashlib.sha256(f"{self.document.digest}\0{key}\0{number}".encode()).hexdigest()
        values: dict[str, object] = {
            "id": digest[:32],
            "text": self.text[span[0] : span[1]] if text is None else text,
            "number": number,
            "blocks": blocks,
            "headings": self.headings(blocks[0]),
            "pages": (min(pages), max(pages)) if pages else None,
            "place": self._place(span, first, last),
            "tokens": self.count(span) if text is None else len(self.tools.offsets(text)),
        }
        return Chunk(**{**values, **more})  # type: ignore[arg-type]

    def _place(self, span: Span, first: int, last: int) -> str:
        """The lines of a span where its blocks say theirs; else the place of its first and, when it is another, of its last block."""
        begin, end = (self._block(self.numbers[each]).place for each in (first, last))
        lines = _LINES.fullmatch(begin), _LINES.fullmatch(end)
        if lines[0] and lines[1]:
            line = int(lines[0].group(1)) + self.text.count("\n", self.starts[first], max(span[0], self.starts[first]))
            to = int(lines[1].group(1)) + self.text.count("\n", self.starts[last], span[1])
            return f"line {line}" if line == to else f"lines {line}-{to}"
        return begin if begin == end or not end else f"{begin} to {end}" if begin else end

    def headings(self, number: int) -> tuple[str, ...]:
        """The headings that a block stands under, the outermost first."""
        path: list[tuple[int, str]] = []
        for block in self.document.blocks[:number]:
            if block.kind == "heading":
                path = [each for each in path if each[0] < block.level]
                path.append((block.level, block.text))
        return tuple(text for _, text in path)


_LINES = re.compile(r"lines? (\d+)(?:-(\d+))?")


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
