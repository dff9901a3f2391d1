"""What an engine is asked to open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.model import ModelRecord

if TYPE_CHECKING:
    from luthier.store.database import Store


@dataclass(frozen=True)
class EngineTarget:
    """A name and what the store knows of it.

    ``name`` is what the user typed. ``record`` is the stored model (None for names that are not stored, such as a remote one), and
    ``base`` the base under an adapter, or the base itself. ``shared`` is one mapping for all targets that are opened together:
    engines keep there what several models can share in memory, under keys of their own.
    """

    name: str
    record: ModelRecord | None = None
    base: ModelRecord | None = None
    store: Store | None = None
    shared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
