"""Fields of a benchmark's rows, checked: what is missing or of the wrong type is a RowError that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from luthier.data.fields import RowError

Fields: TypeAlias = Mapping[str, Any]


def shown(value: Any) -> str:
    """``value`` as a message shows it."""
    told = json.dumps(value, ensure_ascii=False, default=str)
    return told if len(told) <= 60 else told[:57] + "..."


def field(row: Fields, *names: str) -> Any:
    """The value of the first of ``names`` that the row has and that is not null."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    others = f" (also called {', '.join(names[1:])})" if len(names) > 1 else ""
    raise RowError(f"{names[0]}{others} is missing; fields here: {', '.join(map(str, row)) or 'none'}")


def text(row: Fields, *names: str, empty: bool = False) -> str:
    """A text, as it is written (numbers of a table read as their digits)."""
    return as_text(field(row, *names), names[0], empty=empty)


def as_text(value: Any, name: str, *, empty: bool = False) -> str:
    """``value`` as text. Raises RowError for what is neither text nor number, and for blank text unless ``empty``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RowError(f"{name} must be text; got {shown(value)}")
    if not empty and not value.strip():
        raise RowError(f"{name} is empty")
    return value


def texts(value: Any, name: str, *, count: int | None = None, least: int = 1) -> tuple[str, ...]:
    """A list of texts: exactly ``count``, or at least ``least``."""
    if not isinstance(value, list | tuple):
        raise RowError(f"{name} must be a list; got {shown(value)}")
    if len(value) < least or (count is not None and len(value) != count):
        raise RowError(f"{name} must hold {count if count is not None else f'at least {least}'}; got {len(value)}")
    return tuple(as_text(one, f"{name}[{at}]", empty=True) for at, one in enumerate(value))


def place(value: Any, name: str, keys: Sequence[str]) -> int:
    """The index that ``value`` says: one of ``keys`` (labels of the choices), or a whole number from 0."""
    said = str(value).strip()
    if isinstance(value, str | int) and said in keys:
        return keys.index(said)
    if isinstance(value, str | int | float) and said.removesuffix(".0").isdigit() and not isinstance(value, bool):
        at = int(said.removesuffix(".0"))
        if at < len(keys):
            return at
    raise RowError(
        f"{name} must be one of {', '.join(keys)}, or a number from 0 to {len(keys) - 1}; got {shown(value)}"
    )


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """An object with fields of its own."""
    if not isinstance(value, Mapping):
        raise RowError(f"{name} must be an object; got {shown(value)}")
    return value


def labelled_choices(row: Fields, *names: str) -> tuple[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """(question, (labels, texts)) of a row with ``choices`` as {"text": [...], "label": [...]}, or as a list of {"text", "label"}; the
    published files of some sets put both into an object ``question`` with ``stem`` and ``choices``."""
    nested = row.get("question")
    if isinstance(nested, Mapping):
        row, names = nested, ("stem",)
    given = field(row, "choices")
    if isinstance(given, list):
        given = {key: [mapping(one, "choices").get(key) for one in given] for key in ("text", "label")}
    options = mapping(given, "choices")
    choices = texts(options.get("text"), "choices.text", least=2)
    labels = texts(options.get("label"), "choices.label", count=len(choices))
    return text(row, *names), (labels, choices)
