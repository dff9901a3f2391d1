"""Adapters written out with hooks on an untouched model, to compare outputs and gradients with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

Network = Callable[[Tensor], Tensor]
Weights = dict[str, Tensor]
T5_ENCODER, T5_DECODER = "encoder.block.{}.layer.", "decoder.block.{}.layer."
ATTENTION = {
    "llama": ["model.layers.{}.self_attn.o_proj"],
    "gpt2": ["transformer.h.{}.attn.c_proj"],
    "bert": ["encoder.layer.{}.attention.output.dense"],
    "t5": [T5_ENCODER + "0.SelfAttention.o", T5_DECODER + "0.SelfAttention.o"],
}
CROSS_ATTENTION = [T5_DECODER + "1.EncDecAttention.o"]
FORWARD = {
    "llama": ["model.layers.{}.mlp.down_proj"],
    "gpt2": ["transformer.h.{}.mlp.c_proj"],
    "bert": ["encoder.layer.{}.output.dense"],
    "t5": [T5_ENCODER + "1.DenseReluDense.wo", T5_DECODER + "2.DenseReluDense.wo"],
}
"""Kind -> names of output projections, for the number of a block."""


def numbered(names: list[str], blocks: tuple[int, ...] = (0, 1)) -> list[str]:
    return [name.format(block) for name in names for block in blocks]


def randomised(model: LoadedModel) -> LoadedModel:
    """Every trained parameter anything but what it starts as; in evaluation mode."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in inner_of(model).parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    model.module.eval()
    return model


def trained(model: LoadedModel) -> dict[str, Tensor]:
    """What is trained inside a PEFT model, by name in the plain model: ``o_proj.down.weight``, ``input_layernorm.weight``, ``o_proj.rules``."""
    found = {}
    for name, parameter in inner_of(model).named_parameters():
        if parameter.requires_grad:
            plain = name.removeprefix("base_model.model.").replace(".bottleneck_rules.default", ".rules")
            found[plain.replace("bottleneck_adapters.default.", "").replace("bottleneck_norms.default.", "")] = (
                parameter
            )
    return found


def weights_of(model: LoadedModel) -> dict[str, Weights]:
    """Target -> copies of its adapter's tensors that want gradients."""
    out: dict[str, Weights] = {}
    for name, parameter in trained(model).items():
        target, found, key = name.partition(".down.") if ".down." in name else name.partition(".up.")
        if found:
            own = parameter.detach().clone().requires_grad_()
            out.setdefault(target, {})[f"{found.strip('.')}.{key}"] = own
    return out


def plain(weights: Weights, activation: Callable[[Tensor], Tensor], scale: float = 1.0) -> Network:
    """s (W_up f(W_down v + b) + b)."""

    def network(v: Tensor) -> Tensor:
        units = activation(v @ weights["down.weight"].T + weights["down.bias"])
        return scale * (units @ weights["up.weight"].T + weights["up.bias"])

    return network


def answer(kind: str, module: nn.Module) -> Tensor:
    ids = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])
    if kind == "bert":
        return module(ids).last_hidden_state
    return module(ids, **({"decoder_input_ids": ids.flip(1)} if kind == "t5" else {})).logits


def untouched(model: LoadedModel, *, norms: bool) -> nn.Module:
    """A copy of the base; its norms want gradients where they are trained."""
    base = copy.deepcopy(inner_of(model)).eval()
    base.requires_grad_(False)
    for part in base.modules():
        if norms and type(part).__name__.endswith("Norm"):
            part.requires_grad_(True)
    return base


def compare(kind: str, model: LoadedModel, base: nn.Module, weights: Mapping[str, Weights], shared: Any = None) -> None:
    """Outputs and all gradients of ``model`` and of ``base``, whose hooks read ``weights`` (and ``shared`` matrices)."""
    ours, theirs = trained(model), dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.items():
            if name in theirs:  # a trained norm
                theirs[name].copy_(parameter)
    for target, own in weights.items():
        theirs |= {f"{target}.{key}": tensor for key, tensor in own.items()}
    if shared is not None:
        theirs |= dict.fromkeys((name for name in ours if name.endswith(".rules")), shared)
    assert set(ours) <= set(theirs)
    got, expected = answer(kind, inner_of(model)), answer(kind, base)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, parameter in ours.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4, msg=name)
