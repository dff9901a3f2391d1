"""VeRA against the paper's equation, and its random matrices, which the file does not hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.methods.tiny import each_linear

from luthier.core.errors import InputError
from luthier.core.model import ModelRecord
from luthier.methods.vera import Config, build, trained_parameters
from luthier.models.attach import attach, save_trained, select
from luthier.models.load import LoadedModel, load_model
from luthier.models.weights import read_tensors
from luthier.store.database import open_store

COUNTS = each_linear(lambda i, o: 256 + o)

IDS = torch.tensor([[5, 9, 30, 7]])


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def test_two_vectors_scale_shared_random_matrices(model: LoadedModel) -> None:
    built = build(model, Config(rank=6)).module
    layer = built.base_model.model.model.layers[0].self_attn.k_proj
    other = built.base_model.model.model.layers[1].mlp.down_proj
    w, d, b = layer.base_layer.weight, layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
    shared_a, shared_b = layer.vera_A["default"], layer.vera_B["default"]
    assert shared_a is other.vera_A["default"] and shared_b is other.vera_B["default"]
    assert torch.all(d == 0.1) and torch.count_nonzero(b) == 0
    with torch.no_grad():
        b.normal_()
    x = torch.randn(5, 32)
    expected = x @ w.T + (x @ shared_a[:, :32].T * d) @ shared_b[:16].T * b
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_different_seeds_answer_side_by_side(tiny_decoder: str, tmp_path: Path) -> None:
    """Each has random matrices of its own on one base."""
    expected = {}
    for seed in (0, 7):
        model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
        model = build(model, Config(rank=6, seed=seed, targets=["q_proj", "down_proj"]))
        torch.manual_seed(1)
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        save_trained(model, tmp_path / str(seed), {"saves": "adapter"})
        held = read_tensors(tmp_path / str(seed) / "adapter_model.safetensors")
        assert {name.rsplit(".", 1)[-1] for name in held} == {"vera_lambda_b", "vera_lambda_d"}
        expected[seed] = model.module(IDS).logits
    assert not torch.allclose(expected[0], expected[7])
    base = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    for seed in expected:
        attach(base, ModelRecord(str(seed), "adapter", "decoder", ""), str(seed), folder=tmp_path / str(seed))
    for seed in (7, 0, 7):
        select(base, str(seed))
        torch.testing.assert_close(base.module(IDS).logits, expected[seed])


def test_the_rank_may_pass_the_sides(model: LoadedModel) -> None:
    config = Config(rank=100, targets=["k_proj"])
    assert trained_parameters(model.module, config) == 2 * (100 + 16)
    assert build(model, config).module(IDS).logits.shape[-1] > 16
    with pytest.raises(InputError, match=r"got 'nothing', which matches none"):
        build(model, Config(targets=["nothing"]))
