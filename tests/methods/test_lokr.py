"""LoKr against the paper's equation, and how sides are cut."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lokr.layer import factorization
from tests.methods.tiny import each_linear

from luthier.core.errors import InputError
from luthier.methods.lokr import Config, build, split_side, trained_parameters
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

FIRST = {16: 4, 32: 4, 64: 8, 96: 8}  # the first factor of each side: 4 x 4, 4 x 8, 8 x 8, 8 x 12
COUNTS = each_linear(lambda i, o: FIRST[i] * FIRST[o] + (i // FIRST[i]) * (o // FIRST[o]))
CANNOT = {"gpt2": "Conv1D"}  # PEFT has no layer of this kind for them


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def test_the_correction_is_a_kronecker_product(model: LoadedModel) -> None:
    layer = build(model, Config(rank=2, alpha=6)).module.base_model.model.model.layers[0].mlp.down_proj
    w = layer.base_layer.weight
    c, b, a = layer.lokr_w1["default"], layer.lokr_w2_a["default"], layer.lokr_w2_b["default"]
    assert torch.count_nonzero(c) == 0
    with torch.no_grad():
        c.normal_()
    x = torch.randn(5, 64)
    torch.testing.assert_close(layer(x), x @ (w + 6 / 2 * torch.kron(c, b @ a)).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"rank": 1, "decompose_both": True}, {"rank": 2, "factor": 4}])
def test_the_formula_counts_what_peft_makes(model: LoadedModel, options: dict[str, int]) -> None:
    config = Config(**options)  # type: ignore[arg-type]
    expected = trained_parameters(model.module, config)
    built = build(model, config).module
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("factor", [None, 2, 4, 7, 16])
@pytest.mark.parametrize("side", [1, 12, 32, 97, 128, 192, 384, 576, 1536, 4096, 11008, 49152])
def test_sides_are_cut_as_peft_cuts_them(side: int, factor: int | None) -> None:
    assert split_side(side, factor) == factorization(side, factor or -1)


def test_bounds(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"method\.rank must be at most 16"):
        build(model, Config(rank=17))
