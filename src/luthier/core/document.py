"""Documents as parsed, the chunks that they are cut into, and what a search finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BlockKind = Literal["heading", "paragraph", "list", "table", "code", "caption", "quote"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a document, in reading order.

    ``level`` is that of a heading, 1 to 6. ``page`` counts from 1 (a slide is a page); None where the format has none. ``place`` says where it
    is in the format's own words (``sheet Prices!A2:D9``, ``lines 40-52``, ``attachment plan.docx``). ``box`` is left, top, right, bottom in
    points from the page's upper left corner. A table's text is a Markdown table.
    """

    text: str
    kind: BlockKind = "paragraph"
    level: int = 0
    page: int | None = None
    place: str = ""
    box: Box | None = None


@dataclass(frozen=True)
class Document:
    """A parsed file or page.

    ``source`` is the path or URL that it came from, ``digest`` the sha256 of its bytes, ``warnings`` what could not be read of it (a page
    without text that needs OCR). ``labels`` are access labels: a search sees a document only when it may see one of them, or it has none.
    """

    source: str
    digest: str
    media_type: str
    title: str = ""
    blocks: tuple[Block, ...] = ()
    pages: int | None = None
    language: str = ""
    labels: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All blocks, with a blank line between them."""
        return "\n\n".join(block.text for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that is embedded and found.

    ``blocks`` are the first and last block that it is cut from, ``headings`` those it stands under, ``pages`` its first and last page.
    ``parent`` is the id of a larger chunk that is shown instead (which is kept, but not ``searched``), ``context`` a line about its place in the document that is embedded with it;
    ``question``: it is found by this question rather than by its own text. ``tokens`` are the embedding model's.
    """

    id: str
    text: str
    number: int
    blocks: tuple[int, int]
    headings: tuple[str, ...] = ()
    pages: tuple[int, int] | None = None
    place: str = ""
    tokens: int = 0
    parent: str = ""
    context: str = ""
    question: str = ""
    searched: bool = True

    @property
    def embedded(self) -> str:
        """The text that is embedded and searched."""
        return self.question or "\n".join(filter(None, (self.context, self.text)))


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found, best first. ``scores`` says what each step of the search gave it (``dense``, ``keyword``, ``rerank``, ...)."""

    chunk: Chunk
    document: str  # the document's id in its knowledge base
    source: str
    title: str = ""
    score: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cited(self) -> str:
        """Where it is, for people: ``handbook.pdf, page 3``."""
        first, last = self.chunk.pages or (0, 0)
        pages = "" if not first else f"page {first}" if first == last else f"pages {first}-{last}"
        return ", ".join(filter(None, (self.title or self.source, pages, self.chunk.place)))


@dataclass(frozen=True, slots=True)
class Citation:
    """What an answer rests on: ``[number]`` in its text stands for this chunk. ``quote`` is the part of it that says so, "" when that is not known."""

    number: int
    hit: Hit
    quote: str = ""
