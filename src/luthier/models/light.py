"""Plain LoRA and (IA)3 adapters for answering, without PEFT's modules around every layer.

PEFT keeps four modules a layer and an adapter: with 100 adapters of a small model that is more memory than the adapters have, and choosing
one of them walks every layer. Here each adapter is one block of memory, cut into the two matrices (or the vector) of each layer; a layer
that any of them changes gets a forward that looks up whose turn it is. Choosing is one assignment, and the rows of a batch may have
adapters of their own (``models.rows``). The files are PEFT's, and so is what they mean: targets, ranks and alphas of single layers,
rank-stabilised scaling. What they can ask for beyond that (DoRA, modules trained whole, other beginnings of the base) is left to PEFT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from itertools import groupby
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from luthier.core.errors import UnsupportedError
from luthier.models import rows
from luthier.models.adapters import ADAPTER, inner_of, peft_models, peft_type, read_config
from luthier.models.decode import causal_model
from luthier.models.fast_linear import speed_up_linear
from luthier.models.load import LoadedModel
from luthier.models.weights import read_tensors

_PREFIX = "base_model.model."
_KINDS = ("LORA", "IA3")
_WHATEVER = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "runtime_config",
    "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "eva_config",
    "feedforward_modules", "init_ia3_weights",
}  # fmt: skip
_BEGINNINGS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin that leave the base as it is."""


class LowRank:
    """h = W x + s B A x (Hu et al. 2022, equation 3): ``a`` (rank, in), ``b`` (out, rank), ``scale`` s."""

    __slots__ = ("a", "b", "scale")

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale

    def before(self, x: Tensor) -> Tensor:
        """What the layer is given."""
        return x

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the correction for the inputs ``x`` to the outputs ``y``, in place where they are one block."""
        low = linear(x.to(self.a.dtype), self.a)
        if y.dtype == low.dtype and y.is_contiguous():
            y.view(-1, y.shape[-1]).addmm_(low.view(-1, low.shape[-1]), self.b.t(), alpha=self.scale)
        else:
            y += (linear(low, self.b) * self.scale).to(y.dtype)
        return y

    def merged(self, layer: Any) -> dict[str, Tensor]:
        """W + s B A in fp32."""
        update = self.scale * (self.b.float() @ self.a.float())
        return {"weight": layer.weight.float() + (update if isinstance(layer, nn.Linear) else update.t())}


class Rescaled:
    """(IA)3 (Liu et al. 2022): a vector times the layer's inputs, or times its outputs."""

    __slots__ = ("of_inputs", "vector")

    def __init__(self, vector: Tensor, of_inputs: bool) -> None:
        self.vector, self.of_inputs = vector, of_inputs

    def before(self, x: Tensor) -> Tensor:
        """What the layer is given."""
        return (x.to(self.vector.dtype) * self.vector).to(x.dtype) if self.of_inputs else x

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """What it gives."""
        return y if self.of_inputs else (y * self.vector).to(y.dtype)

    def merged(self, layer: Any) -> dict[str, Tensor]:
        """The weight with its columns rescaled; or with its rows, and the bias."""
        vector = self.vector.float()
        across = vector if self.of_inputs == isinstance(layer, nn.Linear) else vector[:, None]
        found = {"weight": layer.weight.float() * across}
        if not self.of_inputs and layer.bias is not None:
            found["bias"] = layer.bias.float() * vector
        return found


Change = LowRank | Rescaled


@dataclass(frozen=True)
class Adapter:
    """The change of each layer that an adapter has one for, by the layer's name in the plain model, and the bytes of it all."""

    changes: Mapping[str, Change]
    nbytes: int


class Slot:
    """What the adapters of a base do to one of its layers. ``plain`` is the layer's forward without them."""

    def __init__(self, light: Light, name: str, plain: Callable[..., Tensor]) -> None:
        self.light, self.name, self.plain = light, name, plain
        self.changes: dict[str | None, Change] = {}

    def __deepcopy__(self, memo: Any) -> Slot:
        return self  # a twin of the modules has the same adapters


class Light:
    """The light adapters of one base. ``selected`` answers, or each row's own while ``rows.answering`` says so."""

    def __init__(self) -> None:
        self.selected: str | None = None
        self._trees: list[Any] = []
        self._layers: dict[str, list[Any]] = {}
        self._others: set[str] = set()
        self._slots: dict[str, Slot] = {}
        self._bytes: dict[str, int] = {}
        self._runs: tuple[Any, list[tuple[str | None, int, int]]] = ((), [])

    def look_at(self, trees: Iterable[Any]) -> None:
        """Know the layers of these modules: the base's, and its twins that hold PEFT's adapters of several kinds."""
        found = list({id(tree): tree for tree in trees}.values())
        if [id(tree) for tree in found] == [id(tree) for tree in self._trees]:
            return
        self._trees = found
        self._layers, self._others = {}, set()
        for tree in found:
            head = tree.get_output_embeddings() if hasattr(tree, "get_output_embeddings") else None
            for name, module in _plain_modules(tree, ""):
                if _is_linear(module) and module is not head:
                    self._layers.setdefault(name, []).append(module)
                else:
                    self._others.add(name)
        for name in self._slots:
            self._slots[name] = self._install(name)

    def nbytes(self, name: str) -> int:
        """Bytes of an adapter's tensors."""
        return self._bytes.get(name, 0)

    def targets(self, config: Any) -> dict[str, Any] | None:
        """Name -> layer of all that PEFT would wrap for ``config``; None when one of them is no linear layer, or makes the logits."""
        from peft.tuners.tuners_utils import check_target_module_exists

        if any(check_target_module_exists(config, name) for name in self._others):
            return None
        return {name: layers[0] for name, layers in self._layers.items() if check_target_module_exists(config, name)}

    def add(self, name: str, adapter: Adapter) -> None:
        """Hold an adapter."""
        for layer, change in adapter.changes.items():
            if layer not in self._slots:
                self._slots[layer] = self._install(layer)
            self._slots[layer].changes[name] = change
        self._bytes[name] = adapter.nbytes

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        if self._bytes.pop(name, None) is None:
            return
        for slot in self._slots.values():
            slot.changes.pop(name, None)
        self.selected = None if self.selected == name else self.selected

    def changes(self, name: str) -> Iterator[tuple[str, Any, Change]]:
        """(layer's name, layer, change) of each layer that ``name`` has one for."""
        for layer, slot in self._slots.items():
            if name in slot.changes:
                yield layer, self._layers[layer][0], slot.changes[name]

    def runs(self, names: tuple[str | None, ...]) -> list[tuple[str | None, int, int]]:
        """(adapter, first row, row after the last) of each run of rows with one adapter, bare rows left out."""
        if names is not self._runs[0]:
            out: list[tuple[str | None, int, int]] = []
            start = 0
            for name, group in groupby(names):
                end = start + sum(1 for _ in group)
                if name in self._bytes:
                    out.append((name, start, end))
                start = end
            self._runs = (names, out)
        return self._runs[1]

    def __deepcopy__(self, memo: Any) -> Light:
        return self

    def merged(self, name: str) -> Iterator[tuple[str, Any, Tensor]]:
        """(name in the plain model, parameter, what it is with the adapter in it) of all that ``name`` changes; in fp32, rounded once."""
        for layer, module, change in self.changes(name):
            for which, tensor in change.merged(module).items():
                parameter = getattr(module, which)
                yield f"{layer}.{which}", parameter, tensor.to(parameter.dtype)

    def let_go(self) -> None:
        """Give the layers the forward of their class again; the adapters are forgotten."""
        for name in self._slots:
            for layer in self._layers[name]:
                del layer.forward, layer.light
        self._slots, self._bytes, self.selected = {}, {}, None

    def _install(self, name: str) -> Slot:
        slot = self._slots.get(name)
        for layer in self._layers[name]:
            if slot is None:
                speed_up_linear(layer)
                slot = Slot(self, name, layer.forward.__func__)
            layer.light = slot
            layer.forward = MethodType(_forward, layer)
        assert slot is not None
        return slot


def _forward(layer: Any, x: Tensor) -> Tensor:
    """The layer as the selected adapter has it, or as each row's own has it; x (..., in), or (rows, ..., in) when rows have their own."""
    slot: Slot = layer.light
    names = rows.current()
    if names is None:
        change = slot.changes.get(slot.light.selected)
        if change is None:
            return slot.plain(layer, x)
        given = change.before(x)
        return change.after(given, slot.plain(layer, given))
    if x.shape[0] != len(names):
        raise UnsupportedError(
            f"layer {slot.name} is given {x.shape[0]} rows where {len(names)} are answered; "
            "this model cannot answer as several adapters at once",
            hint="ask one adapter at a time",
        )
    found = [(slot.changes[name], start, end) for name, start, end in slot.light.runs(names) if name in slot.changes]
    before = [(change, start, end) for change, start, end in found if isinstance(change, Rescaled) and change.of_inputs]
    if before:
        x = x.clone()
        for change, start, end in before:
            x[start:end] = change.before(x[start:end])
    y = slot.plain(layer, x)
    for change, start, end in found:
        part = y[start:end]
        new = change.after(x[start:end], part)
        if new is not part:
            y[start:end] = new
    return y


def read(folder: Path, config: Any, targets: Mapping[str, Any], *, device: Any, dtype: Any) -> Adapter | None:
    """The adapter in ``folder`` (PEFT's layout, its ``config`` read already) for the layers ``targets``, in one block of memory.

    None when its tensors are not those that ``config`` and the layers ask for. Raises DataError for a damaged file.
    """
    tensors = read_tensors(folder / ADAPTER)
    if not tensors or {key: tuple(tensor.shape) for key, tensor in tensors.items()} != dict(_shapes(config, targets)):
        return None
    block = torch.empty(sum(t.numel() for t in tensors.values()), device=device, dtype=dtype)
    views, start = {}, 0
    for key, tensor in tensors.items():
        views[key] = block[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)
        start += tensor.numel()
    return Adapter({name: _change(config, name, views) for name in targets}, block.nbytes)


def take(base: LoadedModel, folder: Path, name: str) -> bool:
    """Hold the PEFT adapter in ``folder`` for ``base`` under ``name``.

    False, and nothing happens, when it is not of a kind that is held here, or its tensors are not what is expected: PEFT then says what is
    wrong with them, or knows other names for the layers. Raises DataError for a damaged file.
    """
    config = read_config(folder)
    if not suits(config):
        return False
    light: Light = base.light or Light()
    light.look_at(causal_model(tree) for tree in [inner_of(base), *peft_models(base).values()])
    targets = light.targets(config)
    adapter = read(folder, config, targets, device=base.device, dtype=base.dtype) if targets else None
    if adapter is None:
        return False
    base.light = light
    light.add(name, adapter)
    return True


def suits(config: Any) -> bool:
    """Whether an adapter is one that is held here: a LoRA or (IA)3 that asks for nothing but its matrices and vectors."""
    kind = peft_type(config)
    if kind not in _KINDS or config.target_modules in (None, "all-linear"):
        return False
    if getattr(config, "init_lora_weights", True) not in _BEGINNINGS:
        return False
    if kind == "IA3" and config.feedforward_modules is None:
        return False
    return not any(
        getattr(config, f.name) for f in fields(config) if f.name not in _WHATEVER and not _is_default(config, f)
    )


def _is_default(config: Any, field: Any) -> bool:
    default = field.default if field.default is not MISSING else field.default_factory()
    return bool(getattr(config, field.name) == default)


def _shapes(config: Any, targets: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(key, shape) of each tensor that PEFT writes for such an adapter."""
    for name, layer in targets.items():
        inputs, outputs = _sizes(layer)
        if peft_type(config) == "IA3":
            yield f"{_PREFIX}{name}.ia3_l", (1, inputs) if _of_inputs(config, name) else (outputs, 1)
        else:
            rank, _ = _rank_and_scale(config, name)
            yield f"{_PREFIX}{name}.lora_A.weight", (rank, inputs)
            yield f"{_PREFIX}{name}.lora_B.weight", (outputs, rank)


def _change(config: Any, name: str, views: Mapping[str, Tensor]) -> Change:
    if peft_type(config) == "IA3":
        return Rescaled(views[f"{_PREFIX}{name}.ia3_l"].flatten(), _of_inputs(config, name))
    a, b = views[f"{_PREFIX}{name}.lora_A.weight"], views[f"{_PREFIX}{name}.lora_B.weight"]
    return LowRank(a, b, _rank_and_scale(config, name)[1])


def _rank_and_scale(config: Any, name: str) -> tuple[int, float]:
    """A layer's own rank and alpha where the config names it; alpha / r, or alpha / sqrt(r) (Kalajdzievski 2023)."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = int(ranks.get(get_pattern_key(ranks, name), config.r))
    alpha = float(alphas.get(get_pattern_key(alphas, name), config.lora_alpha))
    return rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _of_inputs(config: Any, name: str) -> bool:
    named = config.feedforward_modules
    return bool(re.fullmatch(named, name)) if isinstance(named, str) else name.endswith(tuple(named))


def _plain_modules(module: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The modules by their names in the plain model, without what PEFT has put around and into them."""
    for inside in ("base_layer", "original_module"):
        if isinstance(getattr(module, inside, None), nn.Module):
            yield from _plain_modules(getattr(module, inside), name)
            return
    yield name, module
    for part, child in module.named_children():
        yield from _plain_modules(child, f"{name}.{part}" if name else part)


def _is_linear(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _sizes(layer: Any) -> tuple[int, int]:
    """(inputs, outputs)."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.nx, layer.nf
