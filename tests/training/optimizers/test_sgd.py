"""SGD against torch's, and its decay written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.training.optimizers.reference import DECAY, RATE, compare
from tests.training.toy import Stack

from luthier.core.catalog import load
from luthier.core.errors import InputError


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.7, True)])
def test_equals_torch_with_the_decay_taken_out(momentum: float, nesterov: bool) -> None:
    def reference(model: Stack) -> Callable[[], None]:
        inner = torch.optim.SGD(model.parameters(), lr=RATE, momentum=momentum, nesterov=nesterov)

        def step() -> None:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 - RATE * DECAY if parameter.ndim >= 2 else 1.0)
            inner.step()

        return step

    compare("sgd", reference, momentum=momentum, nesterov=nesterov)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(InputError, match="nesterov needs momentum"):
        load("optimizers", "sgd").configure({"momentum": 0, "nesterov": True})
