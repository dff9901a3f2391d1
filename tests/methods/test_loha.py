"""LoHa against the paper's equation."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny import each_linear

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods.loha import Config, build, trained_parameters
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

COUNTS = each_linear(lambda i, o: 2 * 8 * (i + o))
CANNOT = {"gpt2": "Conv1D"}  # PEFT has no layer of this kind for them


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def test_the_correction_is_the_product_of_two_low_rank_matrices_entry_by_entry(model: LoadedModel) -> None:
    layer = build(model, Config(rank=3, alpha=12)).module.base_model.model.model.layers[0].mlp.down_proj
    w = layer.base_layer.weight
    b1, a1 = layer.hada_w1_a["default"], layer.hada_w1_b["default"]
    b2, a2 = layer.hada_w2_a["default"], layer.hada_w2_b["default"]
    assert torch.count_nonzero((b1 @ a1) * (b2 @ a2)) == 0
    with torch.no_grad():
        a2.normal_()
    x = torch.randn(5, 64)
    delta = 12 / 3 * (b1 @ a1) * (b2 @ a2)
    got, expected = layer(x), x @ (w + delta).T
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert torch.linalg.matrix_rank(delta) == 9  # r squared
    weights = torch.randn_like(got)
    ours = torch.autograd.grad((got * weights).sum(), [a1, b1, a2, b2])
    theirs = torch.autograd.grad((expected * weights).sum(), [a1, b1, a2, b2])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_bounds(model: LoadedModel) -> None:
    assert trained_parameters(model.module, Config(rank=2, targets=["v_proj"])) == 2 * 2 * 2 * (32 + 16)
    with pytest.raises(InputError, match=r"method\.rank must be at most 16"):
        build(model, Config(rank=17))
    with pytest.raises(InputError, match=r"got 'q_porj', which matches none"):
        build(model, Config(targets=["q_porj"]))


def test_transposed_layers_are_refused_before_training(tiny_gpt2: str) -> None:
    model = load_model(open_store(), tiny_gpt2, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match=r"method loha cannot go into tiny-gpt2: .*Conv1D.*\n.*method=lora"):
        build(model, Config())
