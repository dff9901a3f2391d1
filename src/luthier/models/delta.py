"""The base's own parameters that a selective method changed, as one file, and swapping them in and out of the base.

``changed.safetensors`` holds each trained tensor under its name in the plain model (``model.norm.weight``), as it is after training, in
the dtype that it was trained in: replacing the base's tensors by these gives the trained model bit for bit, which adding a difference
would not. Where a method trained only some entries of a tensor, the file holds ``NAME#places`` (int64, positions in the flattened
tensor, ascending) and ``NAME#values``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import InputError, MismatchError
from luthier.models.decode import causal_model
from luthier.models.weights import AGAIN, read_tensors, write_tensors

FILE = "changed.safetensors"
PLACES, VALUES = "#places", "#values"
_WRAPS = {".base_layer.": ".", ".original_module.": "."}


class Entries(nn.Module):
    """A parametrization (``torch.nn.utils.parametrize``) that trains some entries of a weight: W with W[places] = values.

    ``places`` are positions in the flattened weight, ascending; only ``values`` is a parameter to train.
    """

    places: Tensor

    def __init__(self, places: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("places", places, persistent=False)
        self.values = nn.Parameter(values)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its trained entries, in the shape it has."""
        return weight.reshape(-1).index_copy(0, self.places, self.values).view_as(weight)

    def changed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the flattened weight, and what is there now."""
        return self.places, self.values.detach()


@dataclass
class Change:
    """One parameter of the base, by its name in the plain model, and what takes its place; ``places`` when only some entries do."""

    name: str
    parameter: Any
    values: Any
    places: Any = None
    before: Any = None


class Changes:
    """What one trained model changes in the base that it sits on. One set at a time may be inside a base."""

    def __init__(self, changes: list[Change]) -> None:
        self._changes = changes

    def differences(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, change, what the base has) of each parameter, in fp32, while these tensors are inside."""
        for change in self._changes:
            now = change.parameter.detach().float()
            if change.places is None:
                own = change.before.float()
            else:
                own = now.clone()
                own.view(-1)[change.places] = change.before.float()
            yield change.name, now - own, own

    @property
    def inside(self) -> bool:
        """Whether the base answers with these tensors now."""
        return any(change.before is not None for change in self._changes)

    def put_in(self) -> None:
        """Give the base these tensors; its own are kept as they are, not copied (of single entries, those entries are kept)."""
        if self.inside:
            return
        for change in self._changes:
            own = change.parameter.data
            if change.places is None:
                change.before, change.parameter.data = own, change.values
            else:
                flat = own.view(-1)
                change.before = flat[change.places].clone()
                flat[change.places] = change.values

    def take_out(self) -> None:
        """Give the base its own tensors back, bit for bit."""
        for change in self._changes:
            if change.before is None:
                continue
            if change.places is None:
                change.parameter.data = change.before
            else:
                change.parameter.data.view(-1)[change.places] = change.before
            change.before = None


def parameters(module: Any) -> dict[str, nn.Parameter]:
    """The parameters of the plain model inside ``module`` by their names there, whatever adapters sit around them."""
    return {plain_name(name): parameter for name, parameter in causal_model(module).named_parameters()}


def plain_name(name: str) -> str:
    """What a module or parameter inside a PEFT model is called in the plain one."""
    plain = f".{name.removeprefix('base_model.model.')}"
    for wrap, instead in _WRAPS.items():
        plain = plain.replace(wrap, instead)
    return plain[1:]


def write_changes(module: Any, path: Path) -> None:
    """Write what was trained in a plain ``module``: whole parameters, and where a parametrization can tell what it has
    ``changed`` (as ``Entries`` can) those entries.

    Raises InputError when nothing was trained, StoreError when the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    told: list[str] = []
    for owner, layer in module.named_modules():
        for attribute, chain in getattr(layer, "parametrizations", {}).items():
            if hasattr(chain[0], "changed"):
                of = f"{owner}.{attribute}"
                tensors[of + PLACES], tensors[of + VALUES] = chain[0].changed(chain.original)
                told.append(f"{owner}.parametrizations.{attribute}.")
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not name.startswith(tuple(told)):
            tensors[name] = parameter.detach()
    if not tensors:
        raise InputError("saves 'delta' needs parameters that were trained; the model has none")
    write_tensors(path, tensors)


def read_changes(path: Path, module: Any, *, device: Any, dtype: Any, base: str) -> Changes:
    """The changes in ``path``, ready to be put into ``module`` (with or without adapters around its layers).

    Raises DataError for a damaged file, MismatchError for tensors that the base lacks or that have another shape there.
    """
    known = parameters(module)
    changes = []
    tensors = read_tensors(path)
    for name, values in tensors.items():
        if name.endswith(PLACES):
            continue
        of = name.removesuffix(VALUES)
        places = tensors.get(of + PLACES) if name.endswith(VALUES) else None
        parameter = known.get(of)
        problem = _problem(of, values, places, parameter, name.endswith(VALUES))
        if problem:
            raise MismatchError(f"{path}: does not fit {base}: {problem}", hint=AGAIN)
        assert parameter is not None
        # a copy of its own: a view into the file's mapping would keep the file open
        own = values.to(device=device, dtype=dtype, copy=True)
        at = None if places is None else places.to(device=device, dtype=torch.int64)
        changes.append(Change(of, parameter, own, at))
    if not changes:
        raise MismatchError(f"{path}: holds no tensors", hint=AGAIN)
    return Changes(changes)


def _problem(name: str, values: Any, places: Any, parameter: Any, sparse: bool) -> str:
    if parameter is None:
        return f"it has no parameter {name!r}"
    if not sparse:
        if values.shape != parameter.shape:
            return f"{name} has the shape {tuple(values.shape)} in the file and {tuple(parameter.shape)} there"
        return ""
    if places is None or places.ndim != 1 or places.shape != values.shape:
        return f"{name} has values without their places"
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < parameter.numel():
        return f"{name} has {parameter.numel()} entries; the file changes entry {int(places.max())}"
    return ""
