"""Mix-and-match: a short prefix in every attention, a scaled parallel adapter at every feed-forward.

He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 4.6. The adapters are those of ``bottleneck`` with
the placement parallel; the prefixes are before the keys and values of the attentions whose queries the modules ``queries`` make.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils.peft_types import PeftType
from torch import Tensor, nn

from luthier.models import rows
from luthier.models.attention_prefix import Beginning, announce
from luthier.models.tuners._layer import TunerLayer, entry
from luthier.models.tuners._prefix_attention import Prefix, heads_of, of_rows, use_interface
from luthier.models.tuners.bottleneck import BottleneckConfig, BottleneckLayer, BottleneckModel

NAME = "mam"


@dataclass
class MamConfig(BottleneckConfig):
    """As ``BottleneckConfig``; besides, ``queries``: the linear layers that make the queries of an attention with a prefix of ``prefix_length``."""

    queries: list[str] = field(default_factory=list)
    prefix_length: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.MAM
        if self.prefix_length < 1:
            raise ValueError(f"prefix_length must be at least 1; got {self.prefix_length}")


class PrefixLayer(TunerLayer):
    """The layer that makes the queries of ``attention``; says, each time, what that attention begins with."""

    adapter_layer_names = ("bottleneck_prefixes",)
    NO_MERGE = "learned keys and values are no weights that others could hold"

    def __init__(self, base_layer: nn.Module, attention: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_prefixes = nn.ModuleDict()
        self.attention = [attention]  # in a list it is not a part of this module

    def update_layer(self, adapter: str, config: MamConfig) -> None:
        """Give the adapter its prefix."""
        self.bottleneck_prefixes[adapter] = Prefix(config.prefix_length, *heads_of(self.attention[0]))
        self._move_adapter_to_device_of_base_layer(adapter)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The queries as they are; the prefixes of the selected adapters are announced, one after the other, or each row's own."""
        names = rows.current()
        said = self.active_adapters if names is None else dict.fromkeys(name for name in names if name is not None)
        active = [name for name in said if name in self.bottleneck_prefixes]
        if self.disable_adapters and names is None:
            active = []
        found: list[Beginning] = [self.bottleneck_prefixes[name].beginning() for name in active]  # type: ignore[operator]
        if names is not None:
            whole = of_rows(dict(zip(active, found, strict=True)), names)
            found = [] if whole is None else [whole]
        elif len(found) > 1:
            found = [Beginning(torch.cat([b.keys for b in found], 2), torch.cat([b.values for b in found], 2))]
        announce(self.attention[0], found[0] if found else None)
        out: Tensor = self.base_layer(x, *args, **kwargs)
        return out


class MamModel(BottleneckModel):
    """A model with prefixes and parallel adapters in it."""

    tuner_layer_cls = (BottleneckLayer, PrefixLayer)

    def _create_and_replace(
        self,
        peft_config: MamConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if not entry(peft_config.queries, current_key):
            super()._create_and_replace(peft_config, adapter_name, target, target_name, parent, current_key)
            return
        use_interface(self.model)
        self._wrapped(PrefixLayer, target, target_name, parent, parent).update_layer(adapter_name, peft_config)


CONFIG, MODEL = MamConfig, MamModel
