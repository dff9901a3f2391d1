"""Catalogues: folders in which each file is one entry.

An entry file defines ``Config`` (a frozen pydantic model) and the catalogue's function. Listing reads file names only; an entry
is imported when it is chosen. Other packages add entries through entry points named ``luthier.<catalogue>``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict

from luthier.core.config import validate
from luthier.core.errors import MissingExtraError, NotFoundError, did_you_mean

FUNCTIONS: Mapping[str, str] = {
    "methods": "build",
    "objectives": "loss",
    "engines": "open",
    "strategies": "wrap",
    "scorers": "score",
    "tasks": "build",
    "optimizers": "build",
    "guardrails": "check",
    "routes": "build",
    "parsers": "parse",
    "chunkers": "chunk",
    "indexes": "open",
    "retrievers": "search",
    "answers": "answer",
}

_FOLDERS: Mapping[str, str] = {
    "optimizers": "training/optimizers",
    "guardrails": "gateway/guardrails",
    "routes": "gateway/routing",
    "parsers": "knowledge/parsers",
    "chunkers": "knowledge/chunkers",
    "indexes": "knowledge/indexes",
    "retrievers": "knowledge/retrievers",
    "answers": "knowledge/answers",
}
"""Where a catalogue lies that is a part of another folder."""


def folder(catalogue: str) -> Path:
    """The folder whose files are the entries."""
    return Path(__file__).parent.parent / _FOLDERS.get(catalogue, catalogue)


def singular(catalogue: str) -> str:
    """One entry of a catalogue, as messages call it."""
    return "index" if catalogue == "indexes" else catalogue.removesuffix("s")


class EntryConfig(BaseModel):
    """Base of every entry's ``Config``: frozen, unknown keys rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Entry:
    """One chosen entry: its module, the catalogue's function in it, and its Config class."""

    catalogue: str
    name: str
    module: ModuleType

    @property
    def config_class(self) -> type[EntryConfig]:
        """The entry's Config."""
        found: type[EntryConfig] = self.module.Config
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the catalogue's function."""
        return getattr(self.module, FUNCTIONS[self.catalogue])(*args, **kwargs)

    def optional(self, name: str) -> Any | None:
        """An optional function or constant of the entry, or None."""
        return getattr(self.module, name, None)

    def configure(self, options: Mapping[str, Any] | None = None) -> Any:
        """A validated Config from plain options; raises InputError that names the bad key and the near one."""
        return validate(self.config_class, dict(options or {}), where=f"{singular(self.catalogue)} {self.name}")


@cache
def _locations(catalogue: str) -> dict[str, str]:
    """Entry name -> module path, without importing any entry."""
    place = folder(catalogue)
    package = _FOLDERS.get(catalogue, catalogue).replace("/", ".")
    found = {p.stem: f"luthier.{package}.{p.stem}" for p in place.glob("*.py") if not p.stem.startswith("_")}
    for point in entry_points(group=f"luthier.{catalogue}"):
        found.setdefault(point.name, point.value)
    return dict(sorted(found.items()))


def names(catalogue: str) -> tuple[str, ...]:
    """Names of a catalogue's entries, sorted."""
    return tuple(_locations(catalogue))


def load(catalogue: str, name: str) -> Entry:
    """Import one entry. Raises NotFoundError with near names, or MissingExtraError with the install command."""
    where = _locations(catalogue).get(name)
    if where is None:
        raise NotFoundError(f"{singular(catalogue)} {name!r} is not known. {did_you_mean(name, names(catalogue))}")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("luthier"):
            raise MissingExtraError(
                f"{singular(catalogue)} {name!r} needs the package {error.name!r}, which is not installed.",
                hint=f"pip install {error.name}",
            ) from error
        raise
    return Entry(catalogue, name, module)


def summary(catalogue: str, name: str) -> str:
    """First line of the entry's docstring, read without importing it."""
    spec = importlib.util.find_spec(_locations(catalogue)[name])
    if spec is None or spec.origin is None:
        return ""
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.strip().split("\n", 1)[0]
