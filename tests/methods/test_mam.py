"""Mix-and-match against the paper's equations, worked out with a plain attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.methods.attention_reference import compare, install, rows_answer_as_alone, said, same_in_every_way_of_reading
from tests.methods.tiny import FIXTURES, FORWARD, HEAD, KV, LAYERS, D
from torch import Tensor

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods.mam import Config, build, trained_parameters
from luthier.models.adapters import inner_of
from luthier.models.load import load_model
from luthier.models.merge import merge
from luthier.models.tuners.bottleneck import BottleneckLayer
from luthier.models.tuners.mam import PrefixLayer
from luthier.store.database import open_store

ATTENTIONS = {"llama": LAYERS, "gpt2": LAYERS, "bert": LAYERS, "t5": 3 * LAYERS}
KEYS = {"llama": KV, "gpt2": D, "bert": D, "t5": D}
FORWARDS = {"llama": LAYERS, "gpt2": LAYERS, "bert": LAYERS, "t5": 2 * LAYERS}
COUNTS = {
    kind: ATTENTIONS[kind] * 2 * 30 * KEYS[kind] + FORWARDS[kind] * (2 * D * D // 2 + D + D // 2) + HEAD[kind]
    for kind in FORWARD
}


def by_the_paper(bare: Any, inner: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Let ``bare`` compute what ``inner`` should; returns the trained tensors of ``inner`` and their copies in ``bare``."""
    own, other = [], []
    prefixes: dict[str, Any] = {}
    for name, layer in list(inner.named_modules()):
        plain = name.removeprefix("base_model.model.")
        if isinstance(layer, PrefixLayer):
            found = layer.bottleneck_prefixes["default"]
            copies = [each.detach().clone().requires_grad_() for each in (found.keys, found.values)]
            own += [found.keys, found.values]
            other += copies
            prefixes[plain.rpartition(".")[0]] = (*copies, None)
        elif isinstance(layer, BottleneckLayer) and layer.placements:
            parts = layer.bottleneck_adapters["default"]
            tensors = [parts.down.weight, parts.down.bias, parts.up.weight, parts.up.bias]
            copies = [each.detach().clone().requires_grad_() for each in tensors]
            own += tensors
            other += copies
            source = next(name for name, each in inner.named_modules() if each is layer.sources["default"])
            _beside(bare, source.removeprefix("base_model.model."), plain, *copies)
    install(bare, prefixes)
    return own, other


def _beside(bare: Any, source: str, target: str, w_down: Tensor, b_down: Tensor, w_up: Tensor, b_up: Tensor) -> None:
    """Table 1, scaled parallel adapter: h + 4 relu(x W_down + b) W_up + b."""
    kept: list[Tensor] = []
    bare.get_submodule(source).register_forward_pre_hook(lambda m, a: kept.append(a[0]))
    bare.get_submodule(target).register_forward_hook(
        lambda m, a, h: h + 4 * (torch.relu(kept.pop() @ w_down.T + b_down) @ w_up.T + b_up)
    )


@pytest.mark.parametrize("kind", sorted(FIXTURES))
def test_outputs_and_gradients_are_those_of_the_papers_equations(
    kind: str, home: Path, request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(FIXTURES[kind])
    bare = inner_of(load_model(open_store(), name, dtype="fp32", device="cpu")).requires_grad_(False)
    model = build(load_model(open_store(), name, dtype="fp32", device="cpu"), Config(prefix_length=5))
    inner = inner_of(model).eval()
    torch.manual_seed(1)
    for parameter in inner.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    before = said(bare, kind).detach()
    own, other = by_the_paper(bare, inner)
    assert len(own) == sum(p.requires_grad for p in inner.parameters())
    ours = said(inner, kind)
    assert float((ours - before).detach().abs().max()) > 0.01
    compare(ours, said(bare, kind), own, other)
    with inner.disable_adapter():
        torch.testing.assert_close(said(inner, kind), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_decoder_says_the_same_however_it_is_read(
    kind: str, home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = request.getfixturevalue(FIXTURES[kind])
    model = build(load_model(open_store(), name, dtype="fp32", device="cpu"), Config(prefix_length=3))
    torch.manual_seed(1)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    same_in_every_way_of_reading(model.module, monkeypatch)


def test_only_the_prefix_moves_outputs_before_training(tiny_decoder: str) -> None:
    bare = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    model = build(load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu"), Config())
    moved = float((said(model.module, "llama") - said(bare.module, "llama")).detach().abs().max())
    assert moved > 0
    for layer in model.module.modules():
        if isinstance(layer, PrefixLayer):
            layer.bottleneck_prefixes.clear()
    torch.testing.assert_close(said(model.module, "llama"), said(bare.module, "llama"), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_each_row_of_a_batch_can_have_its_own(
    kind: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    configs = [Config(prefix_length=2, bottleneck=3), Config(prefix_length=5, bottleneck=8)]
    rows_answer_as_alone(request.getfixturevalue(FIXTURES[kind]), build, configs, tmp_path)


def test_it_cannot_be_merged(tiny_decoder: str) -> None:
    model = build(load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu"), Config())
    with pytest.raises(UnsupportedError, match="MAM cannot be merged") as error:
        merge(model)
    assert "engine torch" in error.value.hint


def test_bounds(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(InputError, match=r"method\.bottleneck must be at most 32"):
        build(model, Config(bottleneck=33))
    with pytest.raises(InputError, match=r"method\.blocks must be numbers from 0 to 1; got 2"):
        build(model, Config(blocks=[2]))
    with pytest.raises(ValidationError, match="give one of them"):
        Config(bottleneck=4, reduction=2)
    assert trained_parameters(model.module, Config(blocks=[1], prefix_length=2, bottleneck=3)) == (
        2 * 2 * KV + 2 * D * 3 + D + 3
    )
