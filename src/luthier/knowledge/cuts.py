"""How documents are cut, to look at: the chunks of a base or of a file, what of each repeats the one before, and their sizes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.document import Chunk
from luthier.core.errors import InputError
from luthier.core.run import Progress, no_progress
from luthier.knowledge.settings import DEFAULTS, chunker_of

if TYPE_CHECKING:
    from luthier.core.engine import Engine, Vectors
    from luthier.store.database import Store

BINS = 10
_LEAST_SHARED = 4
_MOST_SHARED = 4000


@dataclass(frozen=True)
class ShownChunk:
    """A chunk, the document that it is of, and how many of its first characters the chunk before has as its last."""

    source: str
    chunk: Chunk
    overlap: int = 0


@dataclass(frozen=True)
class Sizes:
    """Tokens of the chunks that are searched. ``bins`` of the histogram: (from, to, chunks), each to its end exclusive but the last."""

    chunks: int
    searched: int
    tokens: int
    least: int
    median: float
    mean: float
    most: int
    repeated: float
    bins: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Cuts:
    """The chunks of one or more documents, in order, and by what they were cut."""

    chunker: Mapping[str, Any]
    embedder: str
    chunks: tuple[ShownChunk, ...]

    @property
    def sizes(self) -> Sizes:
        """What can be said of all of them. ``repeated``: the share of characters that are there twice."""
        counts = [each.chunk.tokens for each in self.chunks if each.chunk.searched and not each.chunk.question]
        letters = sum(len(each.chunk.text) for each in self.chunks)
        return Sizes(
            chunks=len(self.chunks),
            searched=sum(each.chunk.searched for each in self.chunks),
            tokens=sum(counts),
            least=min(counts, default=0),
            median=statistics.median(counts) if counts else 0.0,
            mean=statistics.fmean(counts) if counts else 0.0,
            most=max(counts, default=0),
            repeated=sum(each.overlap for each in self.chunks) / letters if letters else 0.0,
            bins=_bins(counts),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        listed = [{"source": each.source, "overlap": each.overlap, **asdict(each.chunk)} for each in self.chunks]
        return {
            "chunker": dict(self.chunker),
            "embedder": self.embedder,
            "sizes": asdict(self.sizes),
            "chunks": listed,
        }


def cut_base(name: str, document: str | None = None, *, store: Store | None = None) -> Cuts:
    """The chunks of a base as its index has them, or those of one document (id, source, or the end of its source).

    Raises NotFoundError for an unknown base, InputError for an unknown document.
    """
    from luthier.knowledge.base import open_index
    from luthier.store.database import open_store
    from luthier.store.knowledge import find_base, list_documents

    store = store or open_store()
    record = find_base(store, name)
    known = [each for each in list_documents(store, name) if each.status == "ready"]
    if document is not None:
        exact = [each for each in known if document in (each.id, each.source)]
        known = exact or [each for each in known if each.source.endswith(f"/{document}")]
        if not known:
            raise InputError(f"{name} has no document {document!r}", hint=f"luthier kb show {name}")
    index = open_index(store, record)
    try:
        shown: list[ShownChunk] = []
        for each in known:
            shown += _shown(each.source, [hit.chunk for hit in index.of_document(each.id)])
    finally:
        index.close()
    return Cuts(record.chunker, record.embedder, tuple(shown))


def cut_file(
    path: str | Path,
    chunker: Mapping[str, Any] | str = DEFAULTS["chunker"],
    *,
    embedder: str = DEFAULTS["embedder"],
    model: str = "",
    store: Store | None = None,
    progress: Progress = no_progress,
) -> Cuts:
    """A file or URL cut as a base with this chunker would: nothing is kept of it.

    ``embedder`` counts the tokens, and embeds for the chunkers that compare; ``model`` writes for those that have a model write. Raises
    InputError and NotFoundError for wrong settings, ParseError for a file that cannot be read.
    """
    from luthier.knowledge.base import token_spans, written_cache
    from luthier.knowledge.chunk import chunk_document
    from luthier.knowledge.chunkers._spans import ChunkTools
    from luthier.knowledge.ingest import is_url
    from luthier.knowledge.parse import parse_bytes, parse_file
    from luthier.knowledge.written import Writers
    from luthier.store.database import open_store

    store = store or open_store()
    options = chunker_of(chunker)
    if is_url(str(path)):
        from luthier.knowledge.fetch import fetch

        fetched = fetch(str(path))
        document = parse_bytes(fetched.data, str(path), media_type=fetched.media_type)
    else:
        document = parse_file(Path(path).expanduser())
    with ExitStack() as stack:
        writers = Writers(store, model)
        stack.callback(writers.close)
        embed = _Late(embedder, store, stack)
        tools = ChunkTools(token_spans(store, embedder), embed, writers=writers, written=written_cache(store))
        plain = {key: value for key, value in options.items() if key != "name"}
        chunks = chunk_document(document, options["name"], plain, tools, progress)
    return Cuts(options, embedder, tuple(_shown(document.source, chunks)))


class _Late:
    """Embeds; the model is loaded at the first text."""

    def __init__(self, name: str, store: Store, stack: ExitStack) -> None:
        self._name, self._store, self._stack = name, store, stack
        self._engine: Engine | None = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        if self._engine is None:
            from luthier.strategies._load import load

            self._engine = load(self._name, store=self._store)
            self._stack.callback(self._engine.close)
        return self._engine.embed(texts)


def _shown(source: str, chunks: Sequence[Chunk]) -> list[ShownChunk]:
    out: list[ShownChunk] = []
    before: dict[tuple[str, bool], str] = {}
    for chunk in chunks:
        kind = ("" if chunk.searched else "parent", bool(chunk.question))
        out.append(ShownChunk(source, chunk, 0 if chunk.question else shared(before.get(kind, ""), chunk.text)))
        before[kind] = chunk.text
    return out


def shared(one: str, two: str) -> int:
    """Characters of the longest end of ``one`` that ``two`` begins with (the failure function of Knuth, Morris and Pratt 1977)."""
    begin, end = two[:_MOST_SHARED], one[-_MOST_SHARED:]
    fails = [0] * len(begin)
    length = 0
    for at in range(1, len(begin)):
        while length and begin[at] != begin[length]:
            length = fails[length - 1]
        length += begin[at] == begin[length]
        fails[at] = length
    length = 0
    for at, character in enumerate(end):
        while length and (length == len(begin) or character != begin[length]):
            length = fails[length - 1]
        length += bool(begin) and character == begin[length]
        if length == len(begin) and at < len(end) - 1:
            length = fails[length - 1] if length else 0
    return length if length >= _LEAST_SHARED else 0


def _bins(counts: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    if not counts:
        return ()
    low, high = min(counts), max(counts)
    step = max(1, -(-(high - low + 1) // BINS))
    edges = range(low, high + 1, step)
    return tuple((edge, edge + step, sum(edge <= count < edge + step for count in counts)) for edge in edges)
