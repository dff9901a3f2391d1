"""The method and the objective of a tuning: chosen, configured, checked against the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.core import catalog
from luthier.core.catalog import Entry
from luthier.core.config import Document
from luthier.core.dataset import Dataset
from luthier.core.errors import UnsupportedError
from luthier.core.model import ModelRecord


@dataclass(frozen=True)
class Part:
    """A chosen catalogue entry with its validated options."""

    entry: Entry
    config: Any

    def as_dict(self) -> dict[str, Any]:
        """Name and options, for manifests and keys. Options that the entry names in ``LATER`` count only when they are not the default, so
        that what was trained before they came is found again."""
        default = {name: type(self.config).model_fields[name].default for name in self.entry.optional("LATER") or ()}
        told = {k: v for k, v in self.config.model_dump().items() if k not in default or v != default[k]}
        return {"name": self.entry.name, "config": told}

    def key(self) -> dict[str, Any]:
        """What of it decides the work: of files that it names (``PATHS``) the content counts, which is among what the job ``reads``."""
        told: dict[str, Any] = copy.deepcopy(self.as_dict())
        for section, last in _files(self.entry, told["config"]):
            section.pop(last)
        return told


def method_for(base: ModelRecord, name: str, options: Mapping[str, Any]) -> Part:
    """The method ``name`` with its ``options``. Raises NotFoundError, InputError for options that it does not have, UnsupportedError when it is
    not for ``base``."""
    entry = catalog.load("methods", name)
    fitting: Mapping[str, Any] = entry.module.DEFAULTS
    if base.architecture not in fitting:
        others = [
            name
            for name in catalog.names("methods")
            if base.architecture in catalog.load("methods", name).module.DEFAULTS
        ]
        raise UnsupportedError(
            f"method {entry.name} needs a model of architecture {' or '.join(fitting)}; {base.name} is of architecture "
            f"{base.architecture}",
            hint=f"for this model: method={' | method='.join(others)}",
        )
    return Part(entry, entry.configure(options))


def objective_for(
    base: ModelRecord, train: Dataset, name: str | None, options: Mapping[str, Any], document: Document | None = None
) -> Part:
    """The objective ``name`` with its ``options``, whose files are seen from the folder of ``document``; without a name the one that fits the
    kind of data and the model.

    Raises NotFoundError, InputError for options that it does not have, UnsupportedError when none fits.
    """
    if name is not None:
        entry = catalog.load("objectives", name)
        return Part(entry, entry.configure(options if document is None else _placed(entry, options, document)))
    entries = [catalog.load("objectives", name) for name in catalog.names("objectives")]
    for entry in entries:
        if train.kind in entry.module.DEFAULT_FOR and base.architecture in entry.module.ARCHITECTURES:
            return Part(entry, entry.configure(options))
    can = "; ".join(
        f"{e.name}: {', '.join(e.module.KINDS)} with {' or '.join(e.module.ARCHITECTURES)}" for e in entries
    )
    raise UnsupportedError(
        f"no objective fits data of kind {train.kind} ({train.name}) with {base.name}, an architecture {base.architecture}. {can}",
        hint="luthier data inspect FILE shows what a file holds",
    )


def _files(entry: Entry, options: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """(section, key in it) of each file that ``options`` name, by the entry's ``PATHS``."""
    for option in entry.optional("PATHS") or ():
        *parents, last = option.split(".")
        section: Any = options
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(last), str):
            yield section, last


def _placed(entry: Entry, options: Mapping[str, Any], document: Document) -> dict[str, Any]:
    """``options`` with the files that they name seen from the document's folder, as those of ``data`` are."""
    placed = copy.deepcopy(dict(options))
    for section, last in _files(entry, placed):
        if not section[last].startswith("hub:"):
            section[last] = str(document.path(section[last]).absolute())
    return placed
