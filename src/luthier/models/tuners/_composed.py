"""Networks made of adapters that were trained before and stay as they are: a fusion of several, a task's on top of a language's.

What is frozen is held in buffers that are not part of the saved state: ``models.parts`` reads it from the store, by digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import NotFoundError
from luthier.models.tuners._bottleneck import Bottleneck

SETTINGS = ("size", "activation", "norm", "scale", "learn_scale")
"""What of a bottleneck adapter's configuration says how it computes; its dropout was for its own training."""


def frozen_adapter(width: int, part: Mapping[str, Any]) -> Bottleneck:
    """The bottleneck network that ``part`` (entries as in ``SETTINGS``) describes, without trainable parameters."""
    options = {key: part[key] for key in SETTINGS if key in part}
    return freeze(Bottleneck(width, options.pop("size"), **options))  # type: ignore[no-any-return]


def freeze(module: Any) -> Any:
    """Make every parameter a buffer outside the saved state: nothing can train it, and a file of what was trained leaves it out."""
    for each in module.modules():
        for key, parameter in list(each.named_parameters(recurse=False)):
            delattr(each, key)
            # on meta it is zeros: no file fills it for PEFT
            held = torch.zeros(parameter.shape) if parameter.is_meta else parameter.detach()
            each.register_buffer(key, held, persistent=False)
    module.filled = False
    return module


def require_filled(module: Any) -> None:
    """Raise NotFoundError while a frozen network has no tensors: PEFT alone loads only what was trained on top of it."""
    if not getattr(module, "filled", True):
        raise NotFoundError(
            "the adapter is built on others, which are not in its file and were not put in",
            hint="load it with luthier.models.load.load_model, or give them: luthier.models.parts.fill",
        )


class Fusion(nn.Module):
    """AdapterFusion (Pfeiffer et al. 2021, section 3.2) of frozen adapters A_n for tokens v.

    z_n = A_n(v), weights softmax_n((Q v) . (K z_n)), and sum_n weight_n V z_n is added to ``onto``. As in the authors' code Q and K
    have biases and start at a normal of 0.02, V is a matrix that starts at the identity (1e-6 elsewhere).
    """

    def __init__(self, width: int, parts: list[Mapping[str, Any]]) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width, bias=False)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if not self.value.weight.is_meta:
            with torch.no_grad():
                self.value.weight.fill_(1e-6).fill_diagonal_(1.0)
        self.parts = nn.ModuleList(frozen_adapter(width, part) for part in parts)

    def weights(self, v: Tensor, z: Tensor) -> Tensor:
        """Softmax over the adapters, (..., adapters), for tokens v (..., width) and outputs z (..., adapters, width)."""
        scores = torch.einsum("...d,...nd->...n", self.query(v), self.key(z))
        return scores.float().softmax(-1).to(v.dtype)

    def forward(self, v: Tensor, onto: Tensor, rule: Tensor | None = None) -> Tensor:
        """``onto`` plus the weighted outputs. V is linear, so it is applied once, to the weighted sum."""
        v = v.to(self.value.weight.dtype)
        frozen: list[Any] = list(self.parts)
        require_filled(frozen[0])
        z = torch.stack([part.added(v) for part in frozen], -2)
        mixed = torch.einsum("...n,...nd->...d", self.weights(v, z), z)
        added: Tensor = self.value(mixed)
        return onto + added.to(onto.dtype)


class Stacked(nn.Module):
    """A task's adapter on a language's (MAD-X: Pfeiffer et al. 2020, section 2.2.2): LA = A_L(h) + r, and A_T(LA) + r leaves.

    h is what the adapters read and r the residual: ``onto``, except where the block adds the residual stream only later
    (``placement`` residual: r is then v, and only A_T(LA) is added here). A_L is frozen.
    """

    def __init__(self, own: Bottleneck, part: Mapping[str, Any], placement: str) -> None:
        super().__init__()
        self.own = own
        self.parts = nn.ModuleList([frozen_adapter(own.down.in_features, part)])  # type: ignore[arg-type]
        self.placement = placement

    def forward(self, v: Tensor, onto: Tensor, rule: Tensor | None = None) -> Tensor:
        """``onto`` + A_T(r + A_L(v))."""
        language: Any = self.parts[0]
        require_filled(language)
        below = language(v, v if self.placement == "residual" else onto)
        return self.own(below, onto)  # type: ignore[no-any-return]


class Coupling(nn.Module):
    """An invertible adapter (MAD-X, section 2.2.3; NICE: Dinh et al. 2015): y1 = x1 + F(x2), y2 = x2 + G(y1) for halves of a token.

    F and G are a linear layer to 1 / ``reduction`` of their inputs, ReLU, and a linear layer that is zero at the start: then y = x.
    """

    def __init__(self, width: int, reduction: float) -> None:
        super().__init__()
        self.sizes = [width // 2, width - width // 2]
        self.f = self._network(self.sizes[1], self.sizes[0], reduction)
        self.g = self._network(self.sizes[0], self.sizes[1], reduction)

    @staticmethod
    def _network(inputs: int, outputs: int, reduction: float) -> nn.Sequential:
        units = max(1, int(inputs / reduction))
        last = nn.Linear(units, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(inputs, units), nn.ReLU(), last)

    @staticmethod
    def count(width: int, reduction: float) -> int:
        """Parameters: both matrices and biases of F and G."""
        halves = (width // 2, width - width // 2)
        pairs = [(halves[1], halves[0]), (halves[0], halves[1])]
        units = [max(1, int(i / reduction)) for i, _ in pairs]
        return sum(i * k + k + k * o + o for (i, o), k in zip(pairs, units, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """y, of the shape of x (..., width)."""
        first, second = torch.split(x, self.sizes, -1)
        first = first + self.f(second)
        return torch.cat([first, second + self.g(first)], -1)

    def inverse(self, y: Tensor) -> Tensor:
        """The x that ``forward`` maps to y."""
        first, second = torch.split(y, self.sizes, -1)
        second = second - self.g(first)
        return torch.cat([first - self.f(second), second], -1)


def frozen_parts(module: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """(number of the part, frozen network) inside one adapter's module at one place."""
    yield from enumerate(getattr(module, "parts", ()))
