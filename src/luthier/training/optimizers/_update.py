"""What the loop and an optimizer agree on: flat fp32 memory of weights and gradients, and a rule that updates it in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Trained:
    """What the cost of a trained parameter follows from. ``hidden``: a matrix of a repeated layer; ``embedding``: a table."""

    shape: tuple[int, ...]
    hidden: bool = False
    embedding: bool = False

    @property
    def size(self) -> int:
        """Its elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Buffer:
    """Trained parameters that share dtype, device and weight decay, one after another in flat fp32 memory.

    ``masters`` are the weights and ``gradients`` what a step sums up, both flat, with gaps so that each parameter starts on a cache line.
    ``hidden`` names the matrices of repeated layers, ``embeddings`` the tables: some rules treat the one or the other in a way of its own.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    masters: Tensor
    gradients: Tensor
    weight_decay: float = 0.0
    hidden: frozenset[str] = frozenset()
    embeddings: frozenset[str] = frozenset()

    def cut(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of one flat tensor in the parameters' shapes, under their names."""
        pieces = zip(self.names, self.offsets, self.shapes, strict=True)
        return {name: flat[start : start + shape.numel()].view(shape) for name, start, shape in pieces}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Views of the masters by name, each with its part of the gradients as ``grad``: what a torch optimizer takes."""
        gradients = self.cut(self.gradients)
        return {name: parameter_of(piece, gradients[name]) for name, piece in self.cut(self.masters).items()}


class Update(Protocol):
    """An optimizer at work on the buffers that it was built for."""

    def step(self, rate: float) -> None:
        """Change the masters in place by their gradients, which may be overwritten."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, besides the masters, to go on exactly."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``; there may be other tensors beside."""


@dataclass(frozen=True)
class Cost:
    """``state_bytes`` are kept from step to step, ``working_bytes`` come and go within one; ``flops`` of one step."""

    state_bytes: int
    working_bytes: int
    flops: float


def parameter_of(masters: Tensor, gradients: Tensor) -> nn.Parameter:
    """The same memory as a parameter with its gradient."""
    parameter = nn.Parameter(masters)
    parameter.grad = gradients
    return parameter


def total(trained: Iterable[Trained]) -> int:
    """Elements of all of them."""
    return sum(each.size for each in trained)


def largest(trained: Iterable[Trained]) -> int:
    """Elements of the largest."""
    return max((each.size for each in trained), default=0)
