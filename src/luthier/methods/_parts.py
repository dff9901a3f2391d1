"""The named parts of a model that selective methods train, found by what they are and not by one architecture's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from luthier.core.errors import InputError, UnsupportedError, did_you_mean
from luthier.methods._targets import linear_layers
from luthier.models.load import LoadedModel


def blocks(module: Any) -> list[str]:
    """Names of the transformer blocks from the bottom up: the children of the longest list of modules. Raises UnsupportedError."""
    import torch

    lists = {name: len(child) for name, child in module.named_modules() if isinstance(child, torch.nn.ModuleList)}
    if not lists:
        raise UnsupportedError(f"{type(module).__name__} has no list of blocks", hint="name the parts: method.parts")
    name = max(lists, key=lambda key: lists[key])
    return [f"{name}.{number}" for number in range(lists[name])]


def norms(module: Any) -> list[str]:
    """Names of the layers that normalise: LayerNorm, RMSNorm and architectures' own classes of that name."""
    import torch

    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.LayerNorm | torch.nn.RMSNorm)
        or (type(layer).__name__.endswith("Norm") and isinstance(getattr(layer, "weight", None), torch.nn.Parameter))
    ]


def attention_projections(module: Any) -> list[str]:
    """Names of the linear layers inside attention: query, key, value and output."""
    within = [f"{name}." for name, layer in module.named_modules() if type(layer).__name__.endswith("Attention")]
    return [name for name in linear_layers(module) if any(name.startswith(each) for each in within)]


def narrow(found: Iterable[str], wanted: Sequence[str] | None, *, where: str, what: str) -> list[str]:
    """Those of the names ``found`` that ``wanted`` lists, by name or by end of name (a dot before it); all when it is None.

    Raises InputError for an entry that matches nothing, with near names.
    """
    names = list(found)
    if wanted is None:
        return names
    if not wanted:
        raise InputError(f"{where} must name at least one {what}; got an empty list")
    chosen: set[str] = set()
    for target in wanted:
        matches = {name for name in names if name == target or name.endswith(f".{target}")}
        if not matches:
            known = {name.rsplit(".", 1)[-1] for name in names}
            raise InputError(
                f"{where} must be names (or ends of names) of a {what}; got {target!r}, which matches none. "
                f"{did_you_mean(target.rsplit('.', 1)[-1], known)}"
            )
        chosen |= matches
    return [name for name in names if name in chosen]


def of_modules(module: Any, names: Iterable[str]) -> dict[str, Any]:
    """Name -> parameter of all parameters inside the named modules."""
    found: dict[str, Any] = {}
    for name in names:
        part = module.get_submodule(name)
        found |= {f"{name}.{key}" if name else key: value for key, value in part.named_parameters()}
    return found


def train_only(model: LoadedModel, parameters: Mapping[str, Any]) -> LoadedModel:
    """Freeze everything, then let ``parameters`` (and an encoder's head) require a gradient."""
    model.module.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    if model.architecture == "encoder" and model.module.head is not None:
        model.module.head.requires_grad_(True)
    return model
