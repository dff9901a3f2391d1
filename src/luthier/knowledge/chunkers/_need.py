"""What some chunkers cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from luthier.core.engine import Engine, Vectors
from luthier.core.errors import InputError
from luthier.knowledge.chunkers._spans import ChunkTools


def embedder(tools: ChunkTools, chunker: str) -> Callable[[Sequence[str]], Vectors]:
    """The tools' embedder. Raises InputError when there is none."""
    if tools.embed is None:
        raise InputError(
            f"chunker {chunker} compares sentences by an embedding model; none was given", hint="luthier pull minilm-l6"
        )
    return tools.embed


def writer(tools: ChunkTools, chunker: str, model: str = "") -> Engine:
    """The model of this name, or the tools' own. Raises InputError when there is none."""
    if tools.ask is not None and not model:
        return tools.ask
    found = tools.writers.open(model) if tools.writers is not None else None
    if found is None:
        raise InputError(
            f"chunker {chunker} has a model write; none was given: chunker.model (with context: chunker.context.model), or answer.model of the base, "
            "names one",
            hint="for example -o chunker.context.model=MODEL",
        )
    return found


class Overlapping(Protocol):
    """A chunker's options with these two among them."""

    @property
    def tokens(self) -> int:
        """A chunk's, at most."""

    @property
    def overlap(self) -> int:
        """Those of the one before that it repeats."""

    @property
    def model_fields_set(self) -> set[str]:
        """What the user stated."""


def overlap_of(config: Overlapping) -> int:
    """The overlap: the default shrinks for small chunks, one that was asked for does not. Raises InputError for more than half of ``tokens``."""
    most = config.tokens // 2
    if config.overlap > most and "overlap" in config.model_fields_set:
        raise InputError(f"overlap must be at most half of tokens ({most}); got {config.overlap}")
    return min(config.overlap, most)
