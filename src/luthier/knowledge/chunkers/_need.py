"""What some chunkers cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def writer(tools: ChunkTools, chunker: str) -> Engine:
    """The tools' model that writes. Raises InputError when there is none."""
    if tools.ask is None:
        raise InputError(f"chunker {chunker} has a model write questions; none was given", hint="--writer MODEL")
    return tools.ask
