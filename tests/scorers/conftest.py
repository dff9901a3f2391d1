"""Passages and answers that were made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from luthier.core.document import Chunk, Citation, Hit
from luthier.scorers._score import Answer

Shown = Callable[..., Answer]


def hit(text: str, name: str = "", **about: str) -> Hit:
    """A passage of its own document."""
    name = name or f"{len(text)}"
    return Hit(
        Chunk(f"chunk-{name}", text, 0, (0, 0)),
        f"doc_{name}",
        about.get("source", f"/files/{name}.txt"),
        about.get("title", ""),
    )


@pytest.fixture(scope="session")
def shown() -> Shown:
    """Makes an answer that was shown ``passages`` and cites those of the numbers ``cites``."""

    def make(text: str, passages: Sequence[str | Hit], cites: Sequence[int] = ()) -> Answer:
        hits = tuple(each if isinstance(each, Hit) else hit(each, str(n)) for n, each in enumerate(passages, 1))
        return Answer(text, hits=hits, citations=tuple(Citation(n, hits[n - 1]) for n in cites))

    return make
