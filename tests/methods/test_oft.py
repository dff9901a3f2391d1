"""OFT against the paper's equations, and what must divide."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny import each_linear

from luthier.core.errors import InputError
from luthier.methods.oft import Config, build, trained_parameters
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

COUNTS = each_linear(lambda i, o: i // 32 * (32 * 31 // 2))
CANNOT = {"gpt2": "Conv1D"}  # PEFT has no layer of this kind for them


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def rotation(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Cayley's transform of the skew-symmetric matrices whose upper halves are the rows of ``weight``, block by block."""
    blocks = []
    for row in weight:
        q = torch.zeros(size, size, dtype=torch.float64)
        q[tuple(torch.triu_indices(size, size, 1))] = row.detach().double()
        q = q - q.T
        blocks.append((torch.eye(size) + q) @ torch.linalg.inv(torch.eye(size) - q))
    return torch.block_diag(*blocks)


def test_inputs_turn_in_blocks(model: LoadedModel) -> None:
    layer = build(model, Config(block_size=8)).module.base_model.model.model.layers[0].mlp.down_proj
    weight = layer.oft_R["default"].weight
    assert weight.shape == (64 // 8, 8 * 7 // 2)
    assert torch.count_nonzero(weight) == 0
    with torch.no_grad():
        weight.normal_(std=0.3)
    r = rotation(weight, 8)
    torch.testing.assert_close(r @ r.T, torch.eye(64, dtype=torch.float64), atol=1e-9, rtol=0)
    x = torch.randn(5, 64)
    w = layer.base_layer.weight
    either = [(x.double() @ turn @ w.double().T).float() for turn in (r, r.T)]  # the sign of Q is a convention
    got = layer(x)
    assert any(torch.allclose(got, expected, rtol=1e-4, atol=1e-5) for expected in either)
    w_new = torch.linalg.lstsq(torch.eye(64), layer(torch.eye(64))).solution.T
    torch.testing.assert_close(w_new.norm(dim=1), w.norm(dim=1), rtol=1e-4, atol=1e-5)  # neurons keep their length
    torch.testing.assert_close(w_new @ w_new.T, w @ w.T, rtol=1e-3, atol=1e-4)  # and their angles


@pytest.mark.parametrize("options", [{"block_size": 16}, {"share": True}, {"neumann": True}, {"constraint": 1e-3}])
def test_the_formula_counts_what_peft_makes(model: LoadedModel, options: dict[str, float]) -> None:
    config = Config(**options)  # type: ignore[arg-type]
    expected = trained_parameters(model.module, config)
    before = model.module(torch.tensor([[5, 9, 30]])).logits
    built = build(model, config).module
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == expected
    torch.testing.assert_close(built(torch.tensor([[5, 9, 30]])).logits, before, rtol=1e-5, atol=1e-6)


def test_a_block_size_that_does_not_divide_names_near_ones(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"method\.block_size must divide .* got 12, and .* has 32\. .*: 8, 16, 4"):
        build(model, Config(block_size=12))
