"""Language adapters and what is trained on top of them (MAD-X): bottlenecks in the blocks and an invertible adapter at the embeddings.

Pfeiffer et al. 2020, "MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer", sections 2.2.1 to 2.2.3. Without ``parts``
an adapter's own networks are trained; with one, that adapter is frozen below them (``_composed.Stacked``). The invertible adapter A maps
what ``embeddings`` gives; where the language model's head is the same matrix, A's inverse maps what goes into it: the output of
``inverse``, the norm after the last block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils.peft_types import PeftType
from torch import Tensor, nn

from luthier.models import rows
from luthier.models.tuners._composed import Coupling, Stacked, freeze, require_filled
from luthier.models.tuners._layer import TransparentLayer
from luthier.models.tuners.bottleneck import BottleneckConfig, BottleneckLayer, BottleneckModel

NAME = "adapter_stack"


@dataclass
class StackConfig(BottleneckConfig):
    """``parts``: the adapter below (none or one). ``invertible``: reduction in the coupling of the invertible adapter, 0 for none."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    invertible: float = 0.0
    embeddings: str = ""
    inverse: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["ADAPTER_STACK"]

    def network(self, width: int) -> nn.Module:
        """The adapter of one place, on the frozen one below it if there is one."""
        own: Any = super().network(width)
        return Stacked(own, self.parts[0], self.placement) if self.parts else own


class InvertibleLayer(TransparentLayer):
    """The embeddings, or the norm after the last block, with the adapters' couplings; ``back``: adapter -> the layer whose it inverts."""

    adapter_layer_names = ("bottleneck_couplings",)
    other_param_names = ("back",)
    NO_MERGE = BottleneckLayer.NO_MERGE

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_couplings = nn.ModuleDict()
        self.back: dict[str, InvertibleLayer] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, mapped for the selected adapter or for each row's own."""
        out: Tensor = self.base_layer(*args, **kwargs)
        names = rows.current()
        if names is None:
            for each in [] if self.disable_adapters else self.active_adapters:
                out = self._mapped(each, out)
            return out
        for name in dict.fromkeys(names):
            if name is not None and (name in self.bottleneck_couplings or name in self.back):
                places = torch.tensor(rows.places(name), device=out.device)
                out = out.index_copy(0, places, self._mapped(name, out.index_select(0, places)))
        return out

    def _mapped(self, name: str, x: Tensor) -> Tensor:
        if name in self.bottleneck_couplings:
            require_filled(self.bottleneck_couplings[name])
            return self.bottleneck_couplings[name](x)  # type: ignore[no-any-return]
        if name in self.back:
            coupling: Any = self.back[name].bottleneck_couplings[name]
            return coupling.inverse(x)  # type: ignore[no-any-return]
        return x


class StackModel(BottleneckModel):
    """A model with language adapters, or adapters on them, in it."""

    tuner_layer_cls = (BottleneckLayer, InvertibleLayer)

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
        if current_key not in (peft_config.embeddings, peft_config.inverse):
            super()._create_and_replace(peft_config, adapter_name, target, target_name, parent, current_key)
            return
        layer = self._wrapped(InvertibleLayer, target, target_name, parent)
        if current_key == peft_config.embeddings:
            width = int(getattr(layer.base_layer, "embedding_dim", 0) or self.model.config.hidden_size)
            coupling: Any = Coupling(width, peft_config.invertible)
            layer.bottleneck_couplings[adapter_name] = freeze(coupling) if peft_config.parts else coupling
            if not any(each.is_meta for each in coupling.parameters()):
                coupling.to(next(layer.base_layer.parameters()).device)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As of bottleneck adapters; then the layer before the head learns what it inverts."""
        config: StackConfig = self.peft_config[adapter_name]
        wanted = config.target_modules
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config.target_modules = wanted  # whole names: an end like embed_tokens would have PEFT save the embeddings
        if config.inverse:
            top: Any = model.get_submodule(config.inverse)
            top.back[adapter_name] = model.get_submodule(config.embeddings)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        """An embedding with norms has no weight of its own to hand on, which PEFT's way expects."""
        if isinstance(child, InvertibleLayer) or isinstance(new_module, InvertibleLayer):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


CONFIG, MODEL = StackConfig, StackModel
