"""What the store knows of the data that a model was tuned on: which examples, and in which files they stood."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import NotFoundError
from luthier.core.model import ModelRecord
from luthier.data.corpus import Document

if TYPE_CHECKING:
    from luthier.store.database import Store


def chain(store: Store, name: str) -> Iterator[ModelRecord]:
    """A model, what it points at or was tuned from, and so on down. Nothing for a name that is in no store."""
    from luthier.store.models import find

    seen: set[str] = set()
    while name and name not in seen:
        seen.add(name)
        try:
            record = find(store, name)
        except NotFoundError:  # a base that was removed, or a model that was never here
            return
        yield record
        name = str(record.meta.get("target") or record.base or "")


def trained_examples(store: Store, name: str) -> frozenset[str]:
    """Ids of the examples that went into a stored model, its base, and what it points at."""
    from luthier.store.runs import trained_on

    found: frozenset[str] = frozenset()
    for record in chain(store, name):
        if record.run_id:
            found |= trained_on(store, record.run_id)
    return found


def trained_documents(store: Store, name: str) -> tuple[list[Document], list[str]]:
    """The texts of those examples, as far as their files are still where the runs found them; and the files that are not.

    Only rows that were trained on are taken: of a file that was cut into train and test, the test part is no training data.
    """
    from luthier.core.errors import DataError
    from luthier.data.read import read
    from luthier.evaluation.contamination import parts_of

    seen, out, missing = trained_examples(store, name), list[Document](), list[str]()
    for file, data in _files(store, name):
        try:
            rows = read(file, skip_bad=True, columns=data.get("columns"))
        except DataError:
            missing.append(file)
            continue
        out += [Document(e.source, "\n".join(parts_of(e).values())) for e in rows.examples if e.id in seen]
    return out, missing


def _files(store: Store, name: str) -> list[tuple[str, dict[str, Any]]]:
    """(file, the run's data section) of every tuning in the chain."""
    out = {}
    for record in chain(store, name):
        path = store.home.runs / str(record.run_id) / "config.json"
        if record.run_id and path.is_file():
            data = json.loads(path.read_text(encoding="utf-8"))["values"].get("data") or {}
            file = data.get("path") or data.get("train") if isinstance(data, dict) else None
            if isinstance(file, str):
                out[str(Path(file).expanduser()) if ":" not in file else file] = data
    return list(out.items())
