"""4-bit weights against the paper's definition, worked out here from the quantiles of the normal distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from luthier.models.load import load_model
from luthier.models.quantize import Quantization, QuantizedLinear, quantize, quantized_layers
from luthier.store.database import open_store


def levels() -> torch.Tensor:
    """Appendix E: quantiles of N(0, 1), eight for the negative and nine for the positive half with zero in both, scaled to [-1, 1].

    Equation 4 with the offset (1 - 1/30 + 1 - 1/32) / 2 of the authors' code.
    """
    end = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
    positive = norm.ppf(np.linspace(end, 0.5, 9))[:-1]
    negative = -norm.ppf(np.linspace(end, 0.5, 8))[:-1]
    found = np.sort(np.concatenate([negative, [0.0], positive]))
    return torch.tensor(found / np.abs(found).max(), dtype=torch.float32)


def by_hand(weight: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest level of each number over its block's largest magnitude; and those magnitudes."""
    blocks = weight.to(torch.bfloat16).float().reshape(-1, blocksize)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks[:, :, None] / largest[:, :, None] - levels()).abs().argmin(-1)
    return (levels()[nearest] * largest).reshape(weight.shape), largest[:, 0]


@pytest.mark.parametrize("shape", [(64, 96), (33, 128), (8, 40)])
@pytest.mark.parametrize("blocksize", [64, 128])
def test_nf4_is_the_nearest_of_sixteen_levels_in_each_block(shape: tuple[int, int], blocksize: int) -> None:
    torch.manual_seed(1)
    weight = torch.randn(shape) * torch.rand(shape[0], 1)
    filled = torch.cat([weight.reshape(-1), torch.zeros(-weight.numel() % blocksize)])  # the last block may be shorter
    expected = by_hand(filled, blocksize)[0][: weight.numel()].reshape(shape)
    layer = QuantizedLinear(weight, None, Quantization("nf4", False, blocksize))
    torch.testing.assert_close(layer.dequantized(), expected, rtol=0, atol=1e-6 * float(weight.abs().max()))


def test_double_quantization_moves_each_magnitude_by_less_than_its_own_error() -> None:
    """Section 3: the magnitudes, less their mean, in 8 bits over blocks of 256. A step of the 8-bit float is at most 1.6% of its block's range."""
    torch.manual_seed(2)
    weight = torch.randn(256, 320)
    single = QuantizedLinear(weight, None, Quantization(double=False)).dequantized()
    double = QuantizedLinear(weight, None, Quantization()).dequantized()
    _, largest = by_hand(weight, 64)
    moved = (double - single).reshape(-1, 64).abs().amax(1)
    spread = (largest - largest.mean()).abs().max()
    assert 0 < float(moved.max()) <= 0.016 * float(spread)
    error = (single - weight).square().mean()
    assert float((double - weight).square().mean()) == pytest.approx(float(error), rel=0.01)


def test_the_error_on_normal_weights_is_what_nf4_promises_and_below_fp4() -> None:
    """Figure 3 and table 2 of the paper: NF4 is nearer than FP4. 16 levels of a normal block of 64 leave about 9% of its deviation."""
    torch.manual_seed(3)
    weight = torch.randn(512, 512)
    errors = [
        float((QuantizedLinear(weight, None, Quantization(kind)).dequantized() - weight).square().mean().sqrt())
        for kind in ("nf4", "fp4")
    ]
    assert 0.08 < errors[0] < 0.10 < errors[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_the_one_with_the_dequantized_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    layer = QuantizedLinear(torch.randn(48, 64), torch.randn(48).to(dtype), Quantization())
    x = torch.randn(2, 3, 64, dtype=dtype)
    expected = torch.nn.functional.linear(x, layer.dequantized().to(dtype), layer.bias)
    assert torch.equal(layer(x), expected)
    assert torch.equal(
        layer.eval()(x[:1, :1]), torch.nn.functional.linear(x[:1, :1], layer.dequantized().to(dtype), layer.bias)
    )
    before = layer.weight.clone(), layer.dequantized()
    layer.to(torch.bfloat16).float()
    assert torch.equal(layer.weight, before[0]) and torch.equal(layer.dequantized(), before[1])


def test_bits() -> None:
    assert Quantization().bits == pytest.approx(4.127, abs=5e-4)
    assert Quantization(double=False).bits == 4.5
    layer = QuantizedLinear(torch.randn(512, 512), None, Quantization())
    state = layer.state
    held = sum(t.nbytes for t in (layer.weight, state.absmax, state.state2.absmax))
    assert layer.held_bytes == held


def test_everything_linear_but_the_head(home: Path, tiny_gpt2: str) -> None:
    model = load_model(open_store(), tiny_gpt2, dtype="fp32", device="cpu")
    block = model.module.transformer.h[0]
    expected = block.mlp.c_fc.weight.detach().T.contiguous()
    x = torch.randn(3, 32)
    near = block.mlp.c_fc(x).detach()
    assert quantize(model.module, Quantization()) == 2 * 4
    names = {name.rsplit(".", 1)[-1] for name, _ in quantized_layers(model.module)}
    assert names == {"c_attn", "c_proj", "c_fc"}
    layer = block.mlp.c_fc
    assert layer.transposed and torch.equal(
        layer.dequantized(), QuantizedLinear(expected, None, Quantization()).dequantized()
    )
    assert float((layer(x) - near).norm() / near.norm()) < 0.2
    with torch.device("meta"):
        sketched = torch.nn.Linear(64, 32)
    assert QuantizedLinear(sketched.weight, sketched.bias, Quantization()).weight.shape == (1024, 1)
