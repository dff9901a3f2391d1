"""Optimizers in torch's form as a rule of the loop, with their state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.training.optimizers._update import Buffer

_PREFIX = "state."


class TorchUpdate:
    """Steps one or several torch optimizers, which hold the parameters ``named``."""

    def __init__(self, named: Mapping[str, nn.Parameter], *optimizers: torch.optim.Optimizer) -> None:
        self._named, self.optimizers = dict(named), optimizers

    def step(self, rate: float) -> None:
        """See ``Update``."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """``state.KIND.NAME``; a plain number becomes a scalar of 64 bits."""
        return {
            f"{_PREFIX}{kind}.{name}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=_wide(value))
            for optimizer, name, parameter in self._owned()
            for kind, value in optimizer.state.get(parameter, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises KeyError where a parameter has none but others do."""
        kinds: dict[str, dict[str, Any]] = {}
        for key, value in state.items():
            if key.startswith(_PREFIX):
                kind, _, name = key.removeprefix(_PREFIX).partition(".")
                plain = value.ndim == 0 and value.dtype in (torch.int64, torch.float64)
                kinds.setdefault(name, {})[kind] = value.item() if plain else value
        if not kinds:
            return
        for optimizer, name, parameter in self._owned():
            optimizer.state[parameter] = {
                kind: value.clone().to(parameter.device) if isinstance(value, Tensor) else value
                for kind, value in kinds[name].items()
            }

    def _owned(self) -> list[tuple[torch.optim.Optimizer, str, nn.Parameter]]:
        names = {parameter: name for name, parameter in self._named.items()}
        return [
            (optimizer, names[parameter], parameter)
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]


def adamw(
    buffers: Sequence[Buffer], wanted: Mapping[str, nn.Parameter], betas: tuple[float, float], epsilon: float
) -> TorchUpdate:
    """torch's AdamW for ``wanted``, which may be nothing: for what another rule leaves over."""
    options = groups(buffers, wanted)
    adam = [torch.optim.AdamW(options, lr=0.0, betas=betas, eps=epsilon, fused=True)] if options else []
    return TorchUpdate(wanted, *adam)


def _wide(value: float) -> torch.dtype:
    return torch.int64 if isinstance(value, int) else torch.float64


def groups(buffers: Sequence[Buffer], wanted: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """torch's parameter groups: those of ``wanted`` with their buffer's weight decay; buffers without any are left out."""
    found: list[dict[str, Any]] = [
        {"params": [wanted[name] for name in buffer.names if name in wanted], "weight_decay": buffer.weight_decay}
        for buffer in buffers
    ]
    return [group for group in found if group["params"]]
