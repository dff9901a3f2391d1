"""UniPELT against the paper's equations, worked out with hooks on an untouched model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.methods.attention_reference import (
    IDS,
    MASK,
    compare,
    install,
    rows_answer_as_alone,
    said,
    same_in_every_way_of_reading,
)
from tests.methods.tiny import FIXTURES, HEAD, KV, LAYERS, D
from torch import Tensor

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods.unipelt import Config, build, trained_parameters
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.tuners.unipelt import UnipeltLayer
from luthier.store.database import open_store

KEYS = {"llama": KV, "gpt2": D, "bert": D}
GATE = D + 1
COUNTS = {
    kind: LAYERS * (8 * (D + D) + 8 * (D + keys) + 2 * 10 * keys + 2 * D * 2 + 2 + D + 4 * GATE) + HEAD[kind]
    for kind, keys in KEYS.items()
}


def opened(x: Tensor, weight: Tensor, bias: Tensor, kind: str) -> Tensor:
    """sigmoid(w x + b), for an encoder its mean over each text's real tokens: (batch, tokens or 1, 1)."""
    each = 1 / (1 + torch.exp(-(x @ weight + bias)))
    if kind != "bert":
        return each[..., None]
    means = [row[: int(mask.sum())].mean() for row, mask in zip(each, MASK, strict=True)]
    return torch.stack(means)[:, None, None]


def by_the_paper(bare: Any, inner: Any, kind: str) -> tuple[list[Tensor], list[Tensor]]:
    """Let ``bare`` compute what ``inner`` should; returns the trained tensors of ``inner`` and their copies in ``bare``."""
    own: list[Tensor] = []
    other: list[Tensor] = []

    def copies(*tensors: Tensor) -> list[Tensor]:
        made = [each.detach().clone().requires_grad_() for each in tensors]
        own.extend(tensors)
        other.extend(made)
        return made

    prefixes: dict[str, Any] = {}
    for name, layer in [(n, each) for n, each in inner.named_modules() if isinstance(each, UnipeltLayer)]:
        plain = name.removeprefix("base_model.model.")
        if "default" in layer.unipelt_loras:
            part = layer.unipelt_loras["default"]
            w, b, *low = copies(part.gate.weight, part.gate.bias, *part.down, *part.up)

            def lora(m: Any, a: Any, h: Tensor, w: Any = w, b: Any = b, low: Any = low) -> Tensor:
                x, count = a[0], len(low) // 2
                gates = [2.0 * opened(x, w[n], b[n], kind) for n in range(count)]
                adds = [gates[n] * ((x @ low[n].T) @ low[count + n].T) for n in range(count)]
                if count == 1:
                    return h + adds[0]
                query, key, value = h.chunk(3, -1)
                return torch.cat([query + adds[0], key, value + adds[1]], -1)

            bare.get_submodule(plain).register_forward_hook(lora)
        if "default" in layer.unipelt_prefixes:
            part = layer.unipelt_prefixes["default"]
            w, b, p_k, p_v = copies(part.gate.weight, part.gate.bias, part.prefix.keys, part.prefix.values)
            gate = lambda x, w=w, b=b: opened(x, w[0], b[0], kind)[..., 0].expand(x.shape[:2])  # noqa: E731
            prefixes[plain.rpartition(".")[0]] = (p_k, p_v, gate)
        if "default" in layer.unipelt_adapters:
            part = layer.unipelt_adapters["default"]
            net = part.inner
            tensors = (net.down.weight, net.down.bias, net.up.weight, net.up.bias)
            w, b, *mats = copies(part.gate.weight, part.gate.bias, *tensors)

            def adapter(m: Any, a: Any, h: Tensor, w: Any = w, b: Any = b, mats: Any = mats) -> Tensor:
                w_down, b_down, w_up, b_up = mats
                return h + opened(h, w[0], b[0], kind) * (torch.relu(h @ w_down.T + b_down) @ w_up.T + b_up)

            bare.get_submodule(plain).register_forward_hook(adapter)
    install(bare, prefixes)
    return own, other


def drawn(model: LoadedModel) -> Any:
    """The inner model, everything that is trained in it set to numbers that can be seen."""
    inner = inner_of(model).eval()
    torch.manual_seed(1)
    for parameter in inner.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.4)
    return inner


@pytest.mark.parametrize("kind", sorted(COUNTS))
def test_outputs_and_gradients_are_those_of_the_papers_equations(
    kind: str, home: Path, request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(FIXTURES[kind])
    bare = inner_of(load_model(open_store(), name, dtype="fp32", device="cpu")).requires_grad_(False)
    inner = drawn(
        build(load_model(open_store(), name, dtype="fp32", device="cpu"), Config(prefix_length=5, bottleneck=16))
    )
    before = said(bare, kind)
    own, other = by_the_paper(bare, inner, kind)
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
    same_in_every_way_of_reading(drawn(model), monkeypatch)


def test_an_encoders_text_does_not_depend_on_its_padding(tiny_encoder: str) -> None:
    inner = drawn(build(load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu"), Config()))
    with torch.no_grad():
        padded = inner(input_ids=IDS, attention_mask=MASK).last_hidden_state[1, :4]
        alone = inner(input_ids=IDS[1:, :4], attention_mask=MASK[1:, :4]).last_hidden_state[0]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_each_row_of_a_batch_can_have_its_own(
    kind: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    configs = [Config(prefix_length=2, bottleneck=3), Config(prefix_length=5, bottleneck=8)]
    rows_answer_as_alone(request.getfixturevalue(FIXTURES[kind]), build, configs, tmp_path)


def test_it_cannot_be_merged(tiny_decoder: str) -> None:
    model = build(load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu"), Config())
    with pytest.raises(UnsupportedError, match="UNIPELT cannot be merged") as error:
        merge(model)
    assert "engine torch" in error.value.hint


def test_bounds(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(InputError, match=r"method\.rank must be at most 16, the smaller side of .*v_proj"):
        build(model, Config(rank=17))
    with pytest.raises(InputError, match=r"method\.bottleneck must be at most 32"):
        build(model, Config(bottleneck=33))
    with pytest.raises(InputError, match=r"method\.blocks must be numbers from 0 to 1; got 2"):
        build(model, Config(blocks=[2]))
    with pytest.raises(ValidationError, match="give one of them"):
        Config(bottleneck=4, reduction=2)
    one = trained_parameters(model.module, Config(blocks=[1]))
    assert one == COUNTS["llama"] // LAYERS


def test_models_whose_queries_cannot_be_told_apart_are_refused(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    attention = model.module.model.layers[0].self_attn
    attention.mixed = attention.v_proj
    del attention.v_proj
    with pytest.raises(
        UnsupportedError, match=r"finds no queries and values of their own in model\.layers\.0\.self_attn"
    ):
        build(model, Config())
