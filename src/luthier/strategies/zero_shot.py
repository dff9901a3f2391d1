"""Ask with the instruction alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.engine import Engine
from luthier.strategies._prompted import Prompted, read_prompt, settled

if TYPE_CHECKING:
    from luthier.store.database import Store


class Config(EntryConfig):
    """``prompt`` is a PromptTemplate as plain values: ``instruction``, ``input``, ``labels``; left out, the task's. ``template`` takes
    instruction and input from the prompt catalogue instead: ``NAME`` or ``NAME@VERSION``."""

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    template: str = ""


def prepare(config: Config, train: Sequence[Example], store: Store | None = None) -> Config:
    """``config`` with the template's text in it, so that it needs no catalogue."""
    return config.model_copy(update={"prompt": settled(config.prompt, config.template, store), "template": ""})


def wrap(engine: Engine, config: Config) -> Engine:
    """``engine``, asked through the prompt. Raises InputError for a prompt that has no place for the text."""
    return Prompted(engine, read_prompt(config.prompt, config.template))
