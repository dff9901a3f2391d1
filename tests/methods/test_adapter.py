"""Adapters after Houlsby et al. against the paper's equation, where they go, and their bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.methods.bottlenecks import (
    ATTENTION,
    CROSS_ATTENTION,
    FORWARD,
    answer,
    compare,
    numbered,
    plain,
    randomised,
    trained,
    untouched,
    weights_of,
)
from tests.methods.tiny import FIXTURES, HEAD, KINDS, LAYERS, NORMS, D

from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.methods.adapter import Config, build, trained_parameters
from luthier.models.adapters import ADAPTER, inner_of, load_adapter, save_adapter
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.weights import read_tensors, write_tensors
from luthier.store.database import open_store

UNITS = D // 16
ONE = 2 * D * UNITS + UNITS + D
COUNTS = {
    "llama": LAYERS * 2 * ONE + NORMS["llama"] * D,
    "gpt2": LAYERS * 2 * ONE + NORMS["gpt2"] * 2 * D,
    "bert": LAYERS * 2 * ONE + NORMS["bert"] * 2 * D + HEAD["bert"],
    "t5": 2 * LAYERS * 2 * ONE + NORMS["t5"] * D,
}


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_papers(kind: str, home: object, request: pytest.FixtureRequest) -> None:
    """y + W_up gelu(W_down y + b) + b after attention and feed-forward of every block, norms trained."""
    model = load_model(open_store(), request.getfixturevalue(FIXTURES[kind]), dtype="fp32", device="cpu")
    base = untouched(model, norms=True)
    start = answer(kind, base)
    model = build(model, Config(bottleneck=6))
    torch.testing.assert_close(answer(kind, inner_of(model).eval()), start, rtol=0, atol=0)
    weights = weights_of(randomised(model))
    assert set(weights) == {*numbered(ATTENTION[kind]), *numbered(FORWARD[kind])}
    for target, own in weights.items():
        network = plain(own, torch.nn.functional.gelu)
        base.get_submodule(target).register_forward_hook(lambda _, __, y, network=network: y + network(y))
    compare(kind, model, base, weights)


def test_cross_attention_blocks_and_targets_are_options(home: object, tiny_t5: str, model: LoadedModel) -> None:
    t5 = load_model(open_store(), tiny_t5, dtype="fp32", device="cpu")
    config = Config(cross_attention=True, blocks=[1], train_norms=False)
    count = trained_parameters(t5.module, config)
    names = {*ATTENTION["t5"], *FORWARD["t5"], *CROSS_ATTENTION}
    assert count == len(names) * ONE
    assert set(weights_of(build(t5, config))) == set(numbered([*names], (1,)))
    config = Config(targets=["layers.0.mlp.down_proj", "o_proj"], train_norms=False, norm="before")
    count = trained_parameters(model.module, config)
    built = build(model, config)
    assert set(weights_of(built)) == {"model.layers.0.mlp.down_proj", *numbered(ATTENTION["llama"])}
    assert sum(p.numel() for p in trained(built).values()) == count == 3 * (ONE + 2 * D)


@pytest.mark.parametrize("norm", ["before", "after"])
@pytest.mark.parametrize("activation", ["relu", "gelu_new", "silu", "tanh"])
def test_norms_of_its_own_and_other_activations(norm: str, activation: str, model: LoadedModel) -> None:
    from transformers.activations import ACT2FN

    model = randomised(build(model, Config(bottleneck=5, norm=norm, activation=activation, targets=["down_proj"])))
    layer = inner_of(model).base_model.model.model.layers[0].mlp.down_proj
    part = layer.bottleneck_adapters["default"]
    x = torch.randn(2, 3, 64)
    y = layer.base_layer(x)
    own = part.before if norm == "before" else part.after
    v = torch.nn.functional.layer_norm(y, (D,), own.weight, own.bias) if norm == "before" else y
    up = ACT2FN[activation](v @ part.down.weight.T + part.down.bias) @ part.up.weight.T + part.up.bias
    up = torch.nn.functional.layer_norm(up, (D,), own.weight, own.bias) if norm == "after" else up
    torch.testing.assert_close(layer(x), y + up)


def test_dropout_acts_on_the_units_while_training(model: LoadedModel) -> None:
    model = randomised(build(model, Config(bottleneck=8, dropout=0.5, targets=["down_proj"])))
    layer = inner_of(model).base_model.model.model.layers[0].mlp.down_proj
    part, x = layer.bottleneck_adapters["default"], torch.randn(4, 64)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    y = layer.base_layer(x)
    torch.manual_seed(0)
    got = layer(x)
    torch.manual_seed(0)
    units = torch.nn.functional.dropout(torch.nn.functional.gelu(part.down(y)), 0.5)
    assert (units == 0).any()
    torch.testing.assert_close(got, y + part.up(units))


def test_size(model: LoadedModel) -> None:
    assert trained_parameters(model.module, Config(reduction=5, train_norms=False)) == 4 * (2 * D * 6 + 6 + D)
    assert trained_parameters(model.module, Config(reduction=1000, train_norms=False)) == 4 * (2 * D + 1 + D)
    with pytest.raises(InputError, match=r"method\.bottleneck must be at most 32, .*got 33"):
        build(model, Config(bottleneck=33))
    with pytest.raises(ValueError, match="bottleneck and reduction say the same thing"):
        Config(bottleneck=4, reduction=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["dwon_proj"]}, r"method\.targets .*got 'dwon_proj'.*Did you mean 'down_proj'"),
        ({"targets": ["q_proj", "k_proj"]}, r"must return one width; got layers of 16, 32"),
        ({"targets": ["o_proj"], "blocks": [0]}, r"method\.blocks is for targets auto"),
        ({"blocks": [0, 2]}, r"method\.blocks must be numbers from 0 to 1; got 2"),
        ({"blocks": []}, r"method\.blocks must be numbers from 0 to 1; got an empty list"),
    ],
)
def test_bad_input(options: dict[str, object], message: str, model: LoadedModel) -> None:
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    with pytest.raises(InputError, match=message):
        build(model, Config(**options))
    assert set(before) == set(dict(model.module.named_parameters()))  # nothing was put in


def test_a_file_of_another_width_is_refused_and_leaves_the_base_alone(
    model: LoadedModel, tiny_decoder: str, tmp_path: Path
) -> None:
    base = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    save_adapter(randomised(build(model, Config(bottleneck=4))).module, tmp_path, "base")
    tensors = read_tensors(tmp_path / ADAPTER)
    cut = {name: tensor[:, :16] if name.endswith("down.weight") else tensor for name, tensor in tensors.items()}
    write_tensors(tmp_path / ADAPTER, {name: tensor.contiguous() for name, tensor in cut.items()})
    expected = answer("llama", base.module.eval())
    with pytest.raises(MismatchError, match=r"(?s)does not fit tiny-decoder.*down\.weight"):
        load_adapter(base, tmp_path)
    assert not hasattr(base.module, "peft_config")
    assert torch.equal(answer("llama", base.module), expected)


def test_no_cross_attention_and_no_merging(model: LoadedModel) -> None:
    with pytest.raises(UnsupportedError, match="finds no cross-attention") as error:
        build(model, Config(cross_attention=True))
    assert "method.targets" in (error.value.hint or "")
    with pytest.raises(UnsupportedError, match="nonlinear") as error:
        merge(build(model, Config()))
    assert "engine torch" in (error.value.hint or "")
