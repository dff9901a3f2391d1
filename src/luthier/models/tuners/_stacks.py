"""The stacks of transformer blocks in a model, found by what they are: lists of modules with attention, and the norm after the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Stack:
    """Full names of the ``blocks`` from the bottom up and of the ``norm`` after the last (None where blocks end normalised, as in
    BERT). ``owner`` is the module that holds them; ``feeds`` says that another stack attends to what this one gives (T5's encoder)."""

    blocks: tuple[str, ...]
    norm: str | None
    owner: Any
    feeds: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks and, if there is one, the norm."""
        return (*self.blocks, self.norm) if self.norm else self.blocks


def stacks(module: nn.Module) -> list[Stack]:
    """All stacks of ``module``, encoder first; empty when it has none."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{other}.") for other, _ in found)
        if isinstance(child, nn.ModuleList) and not inside and len(child) and _attends(child[0]):
            found.append((name, child))
    out = []
    for number, (name, blocks) in enumerate(found):
        place = name.rpartition(".")[0]
        owner = module.get_submodule(place)
        out.append(
            Stack(
                blocks=tuple(f"{name}.{each}" for each in range(len(blocks))),
                norm=_norm_after(owner, place, blocks),
                owner=owner,
                feeds=number + 1 < len(found),
            )
        )
    return out


def attention_modules(block: nn.Module) -> list[Any]:
    """The modules of a block that compute attention: those with a number of their own in a key-value cache."""
    return [each for each in block.modules() if hasattr(each, "layer_idx")]


def _attends(block: nn.Module) -> bool:
    return any("Attention" in type(each).__name__ for each in block.modules())


def _norm_after(owner: nn.Module, place: str, blocks: nn.ModuleList) -> str | None:
    """The last norm among the children of the module that holds the blocks, after them; BART lists that of its embeddings there too."""
    after, name = False, None
    for key, child in owner.named_children():
        kind = type(getattr(child, "base_layer", child)).__name__  # perhaps wrapped by a tuner
        if child is blocks:
            after = True
        elif after and kind.endswith("Norm") and "embed" not in key:
            name = f"{place}.{key}" if place else key
    return name
