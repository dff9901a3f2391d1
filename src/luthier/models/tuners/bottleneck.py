"""Adapters: small bottleneck networks inside the blocks, as one PEFT tuner for every place where papers put them.

``placement`` says what the network reads (v) and where its output goes; y is the output of the target, x the input of its source:

- sequential: y + A(y), y the output of a sub-layer before the residual sum (Houlsby et al. 2019, section 2.1);
- parallel: y + A(x), x the input of the feed-forward (He et al. 2022, "Towards a Unified View", section 3.3);
- residual: y + A(y + x), x the residual stream that y is about to be added to (Pfeiffer et al. 2021, in models that normalise first);
- norm: the target is the norm after the sum, of input z: norm(z + A(norm(z))) (Pfeiffer et al. 2021, in models that normalise last).

All of them are computed token by token. An adapter may also hold copies of norms that it trains (``norms``), and the matrices that the
layers of a Compacter share: they are in the first layer that it goes into, and so once in the file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.peft_types import PeftType
from torch import Tensor, nn

from luthier.models import rows
from luthier.models.tuners._bottleneck import ACTIVATIONS, Bottleneck, new_rule
from luthier.models.tuners._layer import TunerLayer, TunerModel, entry

NAME = "bottleneck"
PLACEMENTS = ("sequential", "parallel", "residual", "norm")
NORMS = ("none", "before", "after")


@dataclass
class BottleneckConfig(PeftConfig):
    """``target_modules`` names every module that is changed, read or copied: targets, ``sources`` and ``norms``.

    ``sources``: target -> the module whose input is x, for the placements that read one. ``norms``: norms that are trained, as copies.
    The others are those of ``Bottleneck``: ``size`` units, ``hypercomplex`` n (0: plain matrices).
    """

    target_modules: list[str] | str | None = None
    placement: str = "sequential"
    sources: dict[str, str] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    size: int = 64
    activation: str = "relu"
    dropout: float = 0.0
    norm: str = "none"
    scale: float = 1.0
    learn_scale: bool = False
    hypercomplex: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.BOTTLENECK
        for key, allowed in (("placement", PLACEMENTS), ("activation", tuple(ACTIVATIONS)), ("norm", NORMS)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be {' | '.join(allowed)}; got {getattr(self, key)!r}")
        if bool(self.sources) != (self.placement in ("parallel", "residual")):
            raise ValueError(f"sources are for the placements parallel and residual; got {self.placement}")

    def network(self, width: int) -> nn.Module:
        """What goes to one place, for tokens of ``width``; called with v, what it is added to, and the shared matrices."""
        return Bottleneck(
            width,
            self.size,
            activation=self.activation,
            dropout=self.dropout,
            norm=self.norm,
            scale=self.scale,
            learn_scale=self.learn_scale,
            hypercomplex=self.hypercomplex,
        )


class BottleneckLayer(TunerLayer):
    """A linear layer or norm of the base with what adapters put beside it, each under its name.

    ``placements``: adapters on this module's output. ``feeds``: adapters that read this module's input elsewhere, where ``sources`` leads
    back to it. ``owners``: adapter -> the layer that holds its shared matrices.
    """

    adapter_layer_names = ("bottleneck_adapters", "bottleneck_norms", "bottleneck_rules")
    other_param_names = ("placements", "sources", "feeds", "owners")
    NO_MERGE = "its layers are nonlinear and stand beside the weights, so no weight could hold them"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_adapters = nn.ModuleDict()
        self.bottleneck_norms = nn.ModuleDict()
        self.bottleneck_rules = nn.ParameterDict()
        self.placements: dict[str, str] = {}
        self.feeds: dict[str, bool] = {}
        self.sources: dict[str, BottleneckLayer] = {}
        self.owners: dict[str, BottleneckLayer] = {}
        self._kept: dict[tuple[int, str], Tensor] = {}

    def update_layer(self, adapter: str, config: BottleneckConfig, key: str, *, owner: bool) -> None:
        """Give the adapter its part of this layer, which is called ``key``; ``owner``: also the matrices that its layers share."""
        if entry(config.sources.values(), key):
            self.feeds[adapter] = True
        if entry(config.norms, key):
            self.bottleneck_norms[adapter] = copy.deepcopy(self.get_base_layer())
        elif not config.sources or entry(config.sources, key):
            self.placements[adapter] = config.placement
            self.bottleneck_adapters[adapter] = config.network(width_of(self.get_base_layer()))
            if config.hypercomplex and owner:
                self.bottleneck_rules[adapter] = nn.Parameter(new_rule(config.hypercomplex))
        self._move_adapter_to_device_of_base_layer(adapter)

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output with the selected adapter's additions, or with each row's own (``luthier.models.rows``)."""
        names = rows.current()
        if names is None:
            return self._answer(x, None, [] if self.disable_adapters else self.active_adapters)
        here = [name for name in dict.fromkeys(names) if name is not None and self._concerns(name)]
        if len(here) == 1 and len(set(names)) == 1:
            return self._answer(x, None, here)
        y: Tensor = self.base_layer(x)
        for name in here:
            places = torch.tensor(rows.places(name), device=x.device)
            own = y.index_select(0, places)
            answer = self._answer(x.index_select(0, places), own, [name])
            if answer is not own:  # it is, where an adapter only reads
                y = y.index_copy(0, places, answer.to(y.dtype))
        return y

    def _concerns(self, name: str) -> bool:
        return name in self.placements or name in self.feeds or name in self.bottleneck_norms

    def _answer(self, x: Tensor, y: Tensor | None, names: Sequence[str]) -> Tensor:
        """What the adapters ``names``, one after the other, make of input x; ``y``: the base layer's output, where it is known."""
        for name in names:
            if name in self.feeds:
                self._kept[get_ident(), name] = x
        layer = next((self.bottleneck_norms[n] for n in reversed(names) if n in self.bottleneck_norms), None)
        for name in names:
            if self.placements.get(name) == "norm":
                x, y = self._part(name, self._normalised(layer, x), x), None
        if y is None or layer is not None:
            y = self._normalised(layer, x)
        for name in names:
            placement = self.placements.get(name)
            if placement == "sequential":
                y = self._part(name, y, y)
            elif placement in ("parallel", "residual"):
                given = self.sources[name]._kept.pop((get_ident(), name))
                y = self._part(name, given if placement == "parallel" else given + y, y)
        return y

    def _normalised(self, layer: nn.Module | None, x: Tensor) -> Tensor:
        """The base layer's output, or its trained copy's."""
        if layer is None:
            return self.base_layer(x)  # type: ignore[no-any-return]
        dtype = next(layer.parameters()).dtype
        return layer(x.to(dtype)).to(x.dtype)  # type: ignore[no-any-return]

    def _part(self, name: str, v: Tensor, onto: Tensor) -> Tensor:
        owner = self.owners.get(name)
        rule = None if owner is None else owner.bottleneck_rules[name]
        return self.bottleneck_adapters[name](v, onto, rule)  # type: ignore[no-any-return]


def width_of(layer: nn.Module) -> int:
    """The last dimension of what a linear layer (also GPT-2's transposed one) or a norm returns."""
    for key in ("out_features", "nf"):
        if hasattr(layer, key):
            return int(getattr(layer, key))
    weight = getattr(layer, "weight", None)
    if weight is None or weight.ndim != 1:
        raise TypeError(f"an adapter goes after linear layers and norms; got {type(layer).__name__}")
    return int(weight.shape[0])


class BottleneckModel(TunerModel):
    """A model with bottleneck adapters in it."""

    prefix = "bottleneck_"
    tuner_layer_cls: Any = BottleneckLayer

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = self._wrapped(BottleneckLayer, target, target_name, parent)
        owned = any(adapter_name in other.bottleneck_rules for other in _layers(self.model).values())
        layer.update_layer(adapter_name, peft_config, current_key, owner=not owned)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT does it; then each of the adapter's layers learns where its input and its shared matrices are."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config: BottleneckConfig = self.peft_config[adapter_name]
        if isinstance(
            config.target_modules, set
        ):  # PEFT shortens long lists; a file should not depend on a set's order
            config.target_modules = sorted(config.target_modules)
        layers = _layers(model)
        owner = next((layer for layer in layers.values() if adapter_name in layer.bottleneck_rules), None)
        for key, layer in layers.items():
            if adapter_name not in layer.placements:
                continue
            if owner is not None:
                layer.owners[adapter_name] = owner
            target = entry(config.sources, key)
            if target is not None:
                layer.sources[adapter_name] = layers[key.removesuffix(target) + config.sources[target]]


def _layers(model: nn.Module) -> dict[str, BottleneckLayer]:
    return {key: layer for key, layer in model.named_modules() if isinstance(layer, BottleneckLayer)}


CONFIG, MODEL = BottleneckConfig, BottleneckModel
