"""The section ``knowledge`` of the gateway's configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class KnowledgeConfig(BaseModel):
    """``bases`` of the operator that are served, by name: as models ``kb:NAME``, and as vector stores. With ``create`` keys with the scope
    ``admin`` may make bases of their tenant's own over HTTP, from files that they upload."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bases: tuple[str, ...] = ()
    create: bool = False
    embedder: str = Field(default="minilm-l6", min_length=1)

    def __bool__(self) -> bool:
        return bool(self.bases) or self.create
