"""Which layers of a model an adapter goes into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.errors import InputError, did_you_mean

ALL_LINEAR = "all_linear"


def linear_layers(module: Any) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs) of every linear layer except the language-model head, in the model's order."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = module.get_output_embeddings()
    found: dict[str, tuple[int, int]] = {}
    for name, layer in module.named_modules():
        if layer is head:
            continue
        if isinstance(layer, torch.nn.Linear):
            found[name] = (layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):  # GPT-2's transposed linear layer
            found[name] = (layer.weight.shape[0], layer.weight.shape[1])
    return found


def choose(module: Any, targets: str | Sequence[str], *, where: str) -> dict[str, tuple[int, int]]:
    """Full name -> (inputs, outputs) of the linear layers that ``targets`` names: all of them, or by name or end of name.

    Raises InputError for a target that matches nothing, with near names.
    """
    layers = linear_layers(module)
    if targets == ALL_LINEAR:
        return layers
    wanted = [targets] if isinstance(targets, str) else list(targets)
    chosen: dict[str, tuple[int, int]] = {}
    for target in wanted:
        matches = {n: shape for n, shape in layers.items() if n == target or n.endswith(f".{target}")}
        if not matches:
            known = {name.rsplit(".", 1)[-1] for name in layers}
            raise InputError(
                f"{where} must be {ALL_LINEAR} or names of linear layers; got {target!r}, which matches none. "
                f"{did_you_mean(target.rsplit('.', 1)[-1], known)}"
            )
        chosen |= matches
    if not chosen:
        raise InputError(f"{where} must be {ALL_LINEAR} or names of linear layers; got an empty list")
    return {name: layers[name] for name in layers if name in chosen}
