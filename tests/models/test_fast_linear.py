"""The faster fp32 product gives the same numbers, and steps aside where it must."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.models import fast_linear
from luthier.models.fast_linear import speed_up_linear

usable = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN")


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module]:
    monkeypatch.setattr(fast_linear, "is_worth_it", lambda: True)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 8, bias=False))
    fast = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 8, bias=False))
    fast.load_state_dict(plain.state_dict())
    assert speed_up_linear(fast) == 2 and speed_up_linear(fast) == 2
    return plain, fast


@usable
@pytest.mark.parametrize("shape", [(24,), (2, 24), (5, 24), (2, 7, 24)])
def test_same_numbers(pair: tuple[nn.Module, nn.Module], shape: tuple[int, ...]) -> None:
    plain, fast = pair
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), atol=1e-5, rtol=1e-5)


@usable
def test_gradients_and_other_dtypes_go_the_plain_way(pair: tuple[nn.Module, nn.Module]) -> None:
    plain, fast = pair
    x = torch.randn(6, 24, requires_grad=True)
    (ours,) = torch.autograd.grad(fast(x).sum(), x)
    (theirs,) = torch.autograd.grad(plain(x).sum(), x)
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        x = x.bfloat16()
        torch.testing.assert_close(fast.bfloat16()(x), plain.bfloat16()(x))


def test_nothing_is_changed_where_it_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_linear, "is_worth_it", lambda: False)
    layer = nn.Linear(4, 4)
    assert speed_up_linear(layer) == 0 and "forward" not in vars(layer)
