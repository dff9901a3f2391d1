"""Ask with the instruction alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import Engine
from luthier.strategies._prompted import Prompted, read_prompt


class Config(EntryConfig):
    """``prompt`` is a PromptTemplate as plain values: ``instruction``, ``input``, ``labels``."""

    prompt: Mapping[str, Any] = Field(default_factory=dict)


def wrap(engine: Engine, config: Config) -> Engine:
    """``engine``, asked through the prompt. Raises InputError for a prompt that has no place for the text."""
    return Prompted(engine, read_prompt(config.prompt))
