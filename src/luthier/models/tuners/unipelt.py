"""UniPELT: LoRA on queries and values, a prefix in attention and an adapter after the feed-forward, each behind a gate that reads its input.

Mao et al. 2022, "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning", section 3.3. A gate is g(x) = sigmoid(w x + b). LoRA's
multiplies its correction, the prefix's its keys and values, the adapter's what it adds to h_FN, which is also what it reads:

- W x + g(x) s B A x for queries and values,
- softmax over [q K^T, q (g(x) P_k)^T], with [V, g(x) P_v],
- h_FN + g(h_FN) W_up f(W_down h_FN).

The paper's g(x) is the mean over a text (``each_token`` False: over its real tokens). A decoder's token must not depend on those after it, so
there each token has its own (``each_token`` True).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.peft_types import PeftType
from torch import Tensor, nn
from torch.nn.functional import linear

from luthier.core.errors import UnsupportedError
from luthier.models import rows
from luthier.models.attention_prefix import Beginning, announce
from luthier.models.tuners._bottleneck import ACTIVATIONS, Bottleneck
from luthier.models.tuners._layer import TunerLayer, TunerModel, entry
from luthier.models.tuners._prefix_attention import Prefix, heads_of, of_rows, use_interface
from luthier.models.tuners.bottleneck import width_of

NAME = "unipelt"
_real: ContextVar[Tensor | None] = ContextVar("real_tokens", default=None)
"""(batch, tokens), not zero where a text that an encoder reads has a token; None: everywhere."""


@dataclass
class UnipeltConfig(PeftConfig):
    """``target_modules`` names every layer that is changed. ``loras``: layer -> the ranges [first, last) of its outputs that get LoRA of ``rank`` and
    ``scale`` s; ``queries``: layers that make an attention's queries, which gets a prefix of ``prefix_length``; ``forwards``: layers whose
    output gets an adapter with ``size`` units."""

    target_modules: list[str] | str | None = None
    loras: dict[str, list[list[int]]] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)
    forwards: list[str] = field(default_factory=list)
    each_token: bool = True
    rank: int = 8
    scale: float = 2.0
    prefix_length: int = 10
    size: int = 48
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.UNIPELT
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be {' | '.join(ACTIVATIONS)}; got {self.activation!r}")


class Gate(nn.Module):
    """sigmoid(w x + b) for ``count`` parts: (batch, tokens, count), or with ``each_token`` False its mean over real tokens (batch, 1, count)."""

    def __init__(self, width: int, count: int, *, each_token: bool) -> None:
        super().__init__()
        self.each_token = each_token
        self.weight = nn.Parameter(torch.randn(count, width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(count))

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, tokens, width)."""
        open_ = torch.sigmoid(linear(x.to(self.weight.dtype), self.weight, self.bias))
        if self.each_token:
            return open_
        real = _real.get()
        if real is None or real.shape != x.shape[:-1]:
            return open_.mean(1, keepdim=True)
        weights = real.to(open_.dtype)[..., None]
        mean: Tensor = (open_ * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
        return mean


class LowRank(nn.Module):
    """g(x) s B A x for each of the ranges of a layer's outputs; B is zero at the start."""

    def __init__(self, inputs: int, ranges: list[list[int]], config: UnipeltConfig) -> None:
        super().__init__()
        self.ranges, self.scale = ranges, config.scale
        self.down = nn.ParameterList(nn.Parameter(torch.empty(config.rank, inputs)) for _ in ranges)
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(last - first, config.rank)) for first, last in ranges)
        self.gate = Gate(inputs, len(ranges), each_token=config.each_token)
        for a in self.down:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """Outputs ``y`` with the corrections for inputs ``x``."""
        x = x.to(self.down[0].dtype)
        gates = self.gate(x)
        parts: list[Tensor] = [
            (linear(linear(x, a), b) * (self.scale * gates[..., number, None])).to(y.dtype)
            for number, (a, b) in enumerate(zip(self.down, self.up, strict=True))
        ]
        if self.ranges == [[0, y.shape[-1]]]:
            return y + parts[0]
        more = torch.zeros_like(y)
        for (first, last), part in zip(self.ranges, parts, strict=True):
            more[..., first:last] = part
        return y + more


class GatedPrefix(nn.Module):
    """A prefix whose keys and values are multiplied by g(x)."""

    def __init__(self, inputs: int, attention: Any, config: UnipeltConfig) -> None:
        super().__init__()
        self.prefix = Prefix(config.prefix_length, *heads_of(attention))
        self.gate = Gate(inputs, 1, each_token=config.each_token)

    def forward(self, x: Tensor) -> Beginning:
        """What an attention begins with whose queries come from ``x``."""
        return self.prefix.beginning(self.gate(x)[..., 0], each_query=self.gate.each_token)


class GatedAdapter(nn.Module):
    """h + g(h) A(h)."""

    def __init__(self, width: int, config: UnipeltConfig) -> None:
        super().__init__()
        self.inner = Bottleneck(width, config.size, activation=config.activation)
        self.gate = Gate(width, 1, each_token=config.each_token)

    def added(self, y: Tensor) -> Tensor:
        """The sum, in the dtype of ``y``."""
        more: Tensor = self.gate(y) * self.inner.added(y)
        return y + more.to(y.dtype)


class UnipeltLayer(TunerLayer):
    """A linear layer of the base with the gated parts that an adapter has there. ``attention``: the module that calls it."""

    adapter_layer_names = ("unipelt_loras", "unipelt_prefixes", "unipelt_adapters")
    NO_MERGE = "its gates depend on the input, so no weight could hold them"

    def __init__(self, base_layer: nn.Module, attention: nn.Module) -> None:
        super().__init__(base_layer)
        self.unipelt_loras = nn.ModuleDict()
        self.unipelt_prefixes = nn.ModuleDict()
        self.unipelt_adapters = nn.ModuleDict()
        self.attention = [attention]  # in a list it is not a part of this module

    def update_layer(self, adapter: str, config: UnipeltConfig, key: str) -> None:
        """Give the adapter its parts of this layer, which is called ``key``."""
        base = self.get_base_layer()
        outputs = width_of(base)
        inputs = int(getattr(base, "in_features", 0) or base.nx)
        if ranges := entry(config.loras, key):
            self.unipelt_loras[adapter] = LowRank(inputs, config.loras[ranges], config)
        if entry(config.queries, key):
            self.unipelt_prefixes[adapter] = GatedPrefix(inputs, self.attention[0], config)
        if entry(config.forwards, key):
            self.unipelt_adapters[adapter] = GatedAdapter(outputs, config)
        self._move_adapter_to_device_of_base_layer(adapter)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output with the selected adapter's parts, or each row's own. Raises UnsupportedError for several adapters at once."""
        names = rows.current()
        active: Sequence[str] = () if self.disable_adapters else self.active_adapters
        if names is not None:
            active = [name for name in dict.fromkeys(names) if name is not None]
        elif len(active) > 1:
            raise UnsupportedError(f"adapters of type UNIPELT answer one at a time; got {', '.join(active)}")
        if self.unipelt_prefixes:
            found = {name: self.unipelt_prefixes[name](x) for name in active if name in self.unipelt_prefixes}
            whole = next(iter(found.values()), None) if names is None else of_rows(found, names)
            announce(self.attention[0], whole)
        plain: Tensor = self.base_layer(x, *args, **kwargs)
        y = plain
        for name in active:
            own = plain
            if name in self.unipelt_loras:
                own = self.unipelt_loras[name].added(x, own)  # type: ignore[operator]
            if name in self.unipelt_adapters:
                own = self.unipelt_adapters[name].added(own)  # type: ignore[operator]
            if own is not plain:
                y = own if names is None else torch.where(_mine(names, name, own), own, y)
        return y


def _mine(names: Sequence[str | None], name: str, like: Tensor) -> Tensor:
    """(batch, 1, 1) booleans: the rows that the adapter answers."""
    return torch.tensor([each == name for each in names], device=like.device)[:, None, None]


class UnipeltModel(TunerModel):
    """A model with gated LoRA, prefixes and adapters in it."""

    prefix = "unipelt_"
    tuner_layer_cls = UnipeltLayer

    def _create_and_replace(
        self,
        peft_config: UnipeltConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        use_interface(self.model)
        layer = self._wrapped(UnipeltLayer, target, target_name, parent, parent)
        layer.update_layer(adapter_name, peft_config, current_key)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT enters this around a forward; here the gates learn which tokens are padding."""
        mask = kwargs.get("attention_mask")
        token = _real.set(mask if isinstance(mask, Tensor) and mask.ndim == 2 else None)
        try:
            yield
        finally:
            _real.reset(token)


CONFIG, MODEL = UnipeltConfig, UnipeltModel
