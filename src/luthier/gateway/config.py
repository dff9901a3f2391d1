"""The gateway's configuration file: one YAML mapping, one section for each part of the gateway.

Each section's model lives beside the code that it configures; this file only puts them together. ``luthier serve --config gateway.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.core.config import from_mapping, read_yaml, validate
from luthier.gateway.batch.config import BatchConfig
from luthier.gateway.cache.config import CacheConfig
from luthier.gateway.databases.config import Databases, with_databases
from luthier.gateway.guard.rules import Rule
from luthier.gateway.knowledge.config import KnowledgeConfig
from luthier.gateway.targets.registry import ModelConfig, Models
from luthier.gateway.targets.routes import Routes
from luthier.gateway.watch.watch import WatchConfig
from luthier.knowledge.rag import PREFIX


class GatewayConfig(BaseModel):
    """The sections. Everything is optional: without a file the gateway serves what the command line names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Models = Field(default_factory=dict)
    routes: Routes = Field(default_factory=dict)
    watch: WatchConfig = WatchConfig()
    guardrails: tuple[Rule, ...] = ()
    cache: CacheConfig = CacheConfig()
    batch: BatchConfig = BatchConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    databases: Databases = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bases_and_databases_are_models(self) -> GatewayConfig:
        """A base or a database that is served is a model, with the settings that ``models`` has for it."""
        for name in self.knowledge.bases:
            self.models.setdefault(f"{PREFIX}{name}", ModelConfig())
        self.models.update(with_databases(self.models, self.databases))
        return self


def read_config(source: str | Path | Mapping[str, Any] | None) -> GatewayConfig:
    """The configuration in a YAML file or a mapping; None is all defaults.

    Raises InputError that names the file, the line and the key for what is wrong.
    """
    if source is None:
        return GatewayConfig()
    document = from_mapping(source) if isinstance(source, Mapping) else read_yaml(source)
    return validate(GatewayConfig, document.values, where="gateway", origins=document.origins)
