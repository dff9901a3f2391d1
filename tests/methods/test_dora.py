"""DoRA against the paper's equation, its gradient and its bounds."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny import each_linear

from luthier.core.errors import InputError
from luthier.methods.dora import Config, build, trained_parameters
from luthier.models.fast import speed_up
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

COUNTS = each_linear(lambda i, o: 8 * (i + o) + o)


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def test_weights_are_magnitude_times_direction(model: LoadedModel) -> None:
    """Equation 5 of the paper, and section 4.3: the norm is a constant for the gradient."""
    layer = build(model, Config(rank=4, alpha=10)).module.base_model.model.model.layers[1].mlp.up_proj
    w, a, b = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    m = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(m, w.norm(dim=1))
    speed_up(model.module)
    with torch.no_grad():
        b.normal_()
        m.mul_(1.5)
    x = torch.randn(5, w.shape[1])
    got = layer(x)
    merged = w + 10 / 4 * b @ a
    norm = merged.detach().norm(dim=1)
    expected = x @ ((m / norm)[:, None] * merged).T
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(got)
    ours = torch.autograd.grad((got * weights).sum(), [a, b, m])
    theirs = torch.autograd.grad((expected * weights).sum(), [a, b, m])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_magnitudes_come_on_top_of_lora(model: LoadedModel) -> None:
    config = Config(rank=4, targets=["q_proj", "down_proj"])
    expected = 2 * (4 * (32 + 32) + 32 + 4 * (64 + 32) + 32)
    assert trained_parameters(model.module, config) == expected
    built = build(model, config).module
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == expected


def test_bounds(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"method\.rank must be at most 16"):
        build(model, Config(rank=17))
    with pytest.raises(InputError, match=r"got 'k_porj'.*Did you mean 'k_proj'"):
        build(model, Config(targets=["k_porj"]))
