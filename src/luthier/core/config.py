"""Configuration: YAML with ``section.key=value`` overrides, validated, each value with its origin.

An origin is ``file.yaml:12``, ``command line`` or ``default``; errors name it, and a run stores it beside the resolved values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from luthier.core.errors import InputError, did_you_mean

Config = TypeVar("Config", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``2e-4`` as a number, as YAML 1.2 and people do (YAML 1.1 wants ``2.0e-4``)."""


_Loader.yaml_implicit_resolvers = dict(yaml.SafeLoader.yaml_implicit_resolvers)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass
class Document:
    """Plain values and, for each dotted key, where it came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=Path)

    def path(self, value: str) -> Path:
        """A file named in the document: relative names are relative to the document's own folder. A name on the hub stays as it is."""
        if value.startswith("hub:"):
            return Path(value)
        path = Path(value).expanduser()
        return path if path.is_absolute() else self.folder / path


def read_yaml(path: str | Path, overrides: Iterable[str] = ()) -> Document:
    """Read a YAML mapping and apply ``key=value`` overrides.

    Raises InputError for a missing or unreadable file, a duplicate key, something that is not a mapping, or a malformed override.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        _refuse_duplicates(node, path.name)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected 'key: value' lines at the top; got {type(values).__name__}")
    document = Document(values, dict(_origins(node, path.name)), path.parent)
    apply_overrides(document, overrides)
    return document


def from_mapping(values: Mapping[str, Any], overrides: Iterable[str] = (), *, folder: Path | None = None) -> Document:
    """A document from Python values (origin ``python``)."""
    import copy

    document = Document(copy.deepcopy(dict(values)), dict.fromkeys(_flat(values), "python"), folder or Path())
    apply_overrides(document, overrides)
    return document


def apply_overrides(document: Document, overrides: Iterable[str]) -> None:
    """Set dotted keys from ``key=value`` texts; values are read as YAML (``0.1``, ``true``, ``[a, b]``). A number is a place in a list:
    ``data.sources.0.weight=3``."""
    for override in overrides:
        key, equals, raw = override.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"expected key=value, for example train.epochs=3; got {override!r}")
        try:
            value = yaml.load(raw, Loader=_Loader)
        except yaml.YAMLError as error:
            raise InputError(f"{key}: cannot read the value {raw!r} as YAML") from error
        *parents, last = key.split(".")
        place: Any = document.values
        for parent in parents:
            if isinstance(place, list):
                nested = place[_place(key, parent, place)]
            else:
                if isinstance(place.get(parent), str):  # ``method: lora`` and ``method.rank=4`` together
                    place[parent] = {"name": place[parent]}
                nested = place.setdefault(parent, {})
            if not isinstance(nested, dict | list):
                raise InputError(f"{key}: {parent} is not a section, it is {nested!r}")
            place = nested
        if isinstance(place, list):
            place[_place(key, last, place)] = value
        else:
            place[last] = value
        document.origins[key] = "command line"


def _place(key: str, part: str, items: list[Any]) -> int:
    """``part`` of a dotted key as a place in a list, counted from 0."""
    if not part.isdecimal() or int(part) >= len(items):
        raise InputError(f"{key}: {part!r} is no place in a list of {len(items)}; they count from 0")
    return int(part)


def validate(
    model: type[Config], values: Mapping[str, Any], *, where: str = "", origins: Mapping[str, str] | None = None
) -> Config:
    """Build a pydantic model; every problem becomes one line that names key, allowed and given value, and origin."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(model, problem, where, origins or {}) for problem in error.errors()]
        raise InputError("\n".join(lines)) from error


def _explain(model: type[BaseModel], problem: Any, where: str, origins: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    origin = f" ({origins[key]})" if key in origins else ""
    prefix = f"{where}: " if where else ""
    if problem["type"] == "extra_forbidden":
        return f"{prefix}unknown key {key!r}{origin}. {did_you_mean(str(problem['loc'][-1]), _fields_at(model, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{prefix}{key} is required{origin}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    named = f"{prefix}{key}: " if key else prefix
    return f"{named}{message[:1].lower() + message[1:]}; got {problem['input']!r}{origin}"


def _fields_at(model: type[BaseModel], path: Iterable[Any]) -> list[str]:
    """Field names of the nested model at ``path``."""
    for part in path:
        info = model.model_fields.get(str(part))
        if info is None:
            continue
        for candidate in (info.annotation, *get_args(info.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
                break
    return list(model.model_fields)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def _origins(node: Any, file: str, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, f"{file}:{key.start_mark.line + 1}"
            yield from _origins(value, file, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{prefix}{index}", f"{file}:{value.start_mark.line + 1}"
            yield from _origins(value, file, f"{prefix}{index}.")


def _refuse_duplicates(node: Any, file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{file}:{key.start_mark.line + 1}: a key must be a word; got a list or a mapping")
            if key.value in seen:
                raise InputError(f"{file}:{key.start_mark.line + 1}: key {key.value!r} occurs twice")
            seen.add(key.value)
            _refuse_duplicates(value, file)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(value, file)
