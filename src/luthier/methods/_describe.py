"""What a method of the catalogue is, for people: what it trains, of which models, where the result can be served, and its options.

What each costs in the models that come with Luthier is in ``figures.yaml``, which ``benchmarks/figures.py`` writes.
"""

from __future__ import annotations

import copy
import inspect
import re
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from luthier.core import catalog
from luthier.core.errors import LuthierError, NotFoundError, did_you_mean

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from luthier.core.model import ModelRecord
    from luthier.models.load import LoadedModel
    from luthier.store.database import Store

_OPENING = re.compile(r"(?:^|(?<=[.;:] )|(?<=\n))(?P<keys>``\w+``(?:(?:, | and |, and )``\w+``)*)")


Memory = Callable[["LoadedModel"], float]
"""What a method that is in a model needs to be trained, in MB (``training.preflight.training_mb``)."""


@dataclass(frozen=True)
class Family:
    """What methods have in common: ``title``, and in a sentence what they do (``about``)."""

    title: str
    about: str


FAMILIES: Mapping[str, Family] = {
    "selective": Family("Selective", "some of the model's own weights are trained, the others stay"),
    "additive": Family("Additive", "small new parts between the old ones, which stay as they are"),
    "soft_prompt": Family("Soft prompts", "trained vectors that the model reads like tokens; no weight changes"),
    "reparametrised": Family(
        "Reparametrised", "the change of a weight matrix in few numbers, to be added into it or kept apart"
    ),
    "hybrid": Family("Hybrid", "several of these in one adapter"),
    "other": Family("Others", "what has no name of its own here"),
}
"""By the ``FAMILY`` of the methods, in the order of showing."""


@dataclass(frozen=True)
class Option:
    """One key of a method's Config. ``default`` is as YAML holds it, None where the method works it out."""

    key: str
    type: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class Description:
    """A method. ``saves`` is what its result is on disk; ``serving``: architecture -> engine -> swap, merge or no."""

    name: str
    family: str
    summary: str
    about: str
    architectures: tuple[str, ...]
    saves: str
    serving: Mapping[str, Mapping[str, str]]
    train: Mapping[str, Mapping[str, Any]]
    paper: str
    options: tuple[Option, ...]
    options_about: str


@dataclass(frozen=True)
class Count:
    """Parameters that a method trains with its default options, and all of the model then; ``why_not`` when it cannot go in.

    ``memory_mb``: what training needs besides the process, ``speed``: tokens a second over those of lora; None where nobody knows.
    """

    trained: int = 0
    total: int = 0
    why_not: str = ""
    memory_mb: float | None = None
    speed: float | None = None

    @property
    def share(self) -> float:
        """Of all parameters, the trained ones."""
        return self.trained / self.total if self.total else 0.0


def describe(name: str) -> Description:
    """The method called ``name``. Raises NotFoundError with near names."""
    known = catalog.names("methods")
    if name not in known:
        raise NotFoundError(f"method {name!r} is not known. {did_you_mean(name, known)}", hint="luthier methods")
    entry = catalog.load("methods", name)
    module, config = entry.module, entry.config_class
    about = inspect.cleandoc(module.__doc__ or "")
    text = inspect.cleandoc(config.__doc__ or "")
    told = meanings(text, config.model_fields)
    return Description(
        name=name,
        family=family_of(entry),
        summary=about.split("\n", 1)[0],
        about=about,
        architectures=tuple(module.DEFAULTS),
        saves=module.SAVES,
        serving=module.SERVING,
        train=module.DEFAULTS,
        paper=str(entry.optional("PAPER") or ""),
        options=tuple(
            Option(
                key,
                ", ".join([kind(field.annotation), *bounds(field)]),
                field.get_default(call_default_factory=True) if not field.is_required() else "required",
                told.get(key, ""),
            )
            for key, field in config.model_fields.items()
        ),
        options_about=text,
    )


def family_of(entry: catalog.Entry) -> str:
    """The family of a method; other for one that says none that is known."""
    found = str(entry.optional("FAMILY"))
    return found if found in FAMILIES else "other"


@cache
def _written() -> Mapping[str, Any]:
    import yaml

    found: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("figures.yaml").read_text(encoding="utf-8"))
    return found


@cache
def figures() -> Mapping[str, Mapping[str, Count]]:
    """Method -> model -> what it costs there with its default options: counted from shapes, its speed measured."""
    rows_of = _written()["methods"]
    return {method: {model: Count(**row) for model, row in rows.items()} for method, rows in rows_of.items()}


def measured_on() -> str:
    """On what machine the speeds of ``figures`` were measured."""
    return str(_written()["speed"])


def meanings(text: str, keys: Any) -> dict[str, str]:
    """What a Config's docstring says of each of its fields: from where the field opens a sentence or clause to where the next one does."""
    text = re.sub(r"(?<!\n)\n(?!\n)\s*", " ", text)
    openings = [m for m in _OPENING.finditer(text) if any(key in keys for key in re.findall(r"\w+", m["keys"]))]
    found: dict[str, str] = {}
    for number, opening in enumerate(openings):
        end = openings[number + 1].start() if number + 1 < len(openings) else len(text)
        named = [key for key in re.findall(r"\w+", opening["keys"]) if key in keys]
        start = opening.end() if len(named) == 1 else opening.start()
        said = " ".join(text[start:end].split()).strip(" :;,").replace("``", "")
        for key in named:
            found.setdefault(key, said)
    for key in keys:
        near = [other for other, said in found.items() if re.search(rf"\b{key}\b", said)]
        if key not in found and near:
            found[key] = f"see {near[0]}"
    return found


def kind(annotation: Any) -> str:
    """An annotation in words: ``whole number``, ``pissa | olora``, ``list of text``."""
    origin, inner = get_origin(annotation), [each for each in get_args(annotation) if each is not type(None)]
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(kind(each) for each in inner)
    if origin in (list, tuple):
        return f"list of {kind(inner[0])}"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping"}
    return words.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))


def bounds(field: FieldInfo) -> list[str]:
    """What a number may be: ``≥ 1``, ``< 1``."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return [
        f"{sign} {getattr(limit, key):g}"
        for limit in field.metadata
        for key, sign in signs.items()
        if hasattr(limit, key)
    ]


def count(
    store: Store, record: ModelRecord, names: tuple[str, ...] | None = None, memory: Memory | None = None
) -> dict[str, Count]:
    """What each method (of all, or of ``names``) would train in a stored model, counted from shapes: no weights are read.

    An encoder is given a head of two labels. Raises UnsupportedError for models that methods do not change.
    """
    from luthier.models.shapes import load_shapes

    return count_in(load_shapes(store, record, labels=("a", "b")), names, memory)


def count_in(
    sketch: LoadedModel, names: tuple[str, ...] | None = None, memory: Memory | None = None
) -> dict[str, Count]:
    """The same for a model on the meta device (``models.shapes``)."""
    from luthier.models.shapes import parameter_counts

    found = {}
    for name in names or catalog.names("methods"):
        entry = catalog.load("methods", name)
        if sketch.architecture not in entry.module.DEFAULTS:
            found[name] = Count(why_not=f"needs {' or '.join(entry.module.DEFAULTS)}")
            continue
        model = replace(sketch, module=copy.deepcopy(sketch.module))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of saving and loading, which nobody does here
                built = entry(model, entry.configure())
            found[name] = Count(*parameter_counts(built), memory_mb=None if memory is None else memory(built))
        except LuthierError as error:
            found[name] = Count(why_not=error.message)
    return found
