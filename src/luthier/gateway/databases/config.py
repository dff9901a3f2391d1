"""The section ``databases`` of the gateway's configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from luthier.apps.sql.engine import PREFIX
from luthier.apps.sql.named import DatabaseConfig
from luthier.gateway.targets.registry import ModelConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _named(given: dict[str, DatabaseConfig]) -> dict[str, DatabaseConfig]:
    for name in given:
        if not _NAME.fullmatch(name):
            raise ValueError(f"names must be 1 to 64 letters, digits and any of . _ -; got {name!r}")
    return given


Databases = Annotated[dict[str, DatabaseConfig], AfterValidator(_named)]


def with_databases(
    models: Mapping[str, ModelConfig], databases: Mapping[str, DatabaseConfig]
) -> dict[str, ModelConfig]:
    """``models`` and a model for each database, with the settings (price, aliases, replicas) that ``models`` has for ``db:NAME``."""
    found = dict(models)
    for name, config in databases.items():
        settings = found.get(f"{PREFIX}{name}", ModelConfig())
        options = config.model_dump(mode="json", exclude_defaults=True)
        found[f"{PREFIX}{name}"] = settings.model_copy(update={"options": options, "engine": "auto", "model": ""})
    return found
