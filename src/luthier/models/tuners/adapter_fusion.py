"""AdapterFusion: attention over the outputs of frozen adapters, in each place where those adapters are.

Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", section 3.2. ``parts`` names the adapters by
the digest of their files; only queries, keys and values are trained and saved (``models.parts`` puts the adapters in).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft.utils.peft_types import PeftType
from torch import nn

from luthier.models.tuners._composed import Fusion
from luthier.models.tuners.bottleneck import BottleneckConfig, BottleneckModel

NAME = "adapter_fusion"


@dataclass
class FusionConfig(BottleneckConfig):
    """As the adapters' own; ``parts`` says of each its ``name``, ``digest`` and how it computes (``_composed.SETTINGS``)."""

    parts: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["ADAPTER_FUSION"]

    def network(self, width: int) -> nn.Module:
        """Queries, keys, values and the frozen adapters of one place."""
        return Fusion(width, list(self.parts))


class FusionModel(BottleneckModel):
    """A model with fusions of adapters in it."""


CONFIG, MODEL = FusionConfig, FusionModel
