"""The average of the weights against its formula, in the loop, and after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.toy import run_toy, toy_module, toy_rows, toy_work
from torch import nn

from luthier.training import checkpoint
from luthier.training.average import Average
from luthier.training.config import TrainConfig
from luthier.training.loop import train
from luthier.training.optimizer import Optimizer


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in module.parameters()])


def weighted(seen: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Kingma and Ba 2015, section 7.2: the sum of (1 - d) d^(t-i) w_i over 1 - d^t."""
    shares = [(1 - decay) * decay ** (len(seen) - 1 - i) / (1 - decay ** len(seen)) for i in range(len(seen))]
    assert sum(shares) == pytest.approx(1)
    return sum((share * each.double() for share, each in zip(shares, seen, strict=True)), torch.zeros(())).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_equals_the_formula_and_leaves_the_weights_as_they_were(dtype: torch.dtype) -> None:
    module = toy_module(dropout=0.0, dtype=dtype)
    optimizer = Optimizer(module)
    average, seen = Average(optimizer, 0.7), []
    before = flat(module)
    with average.shown():
        assert torch.equal(flat(module), before), "no update yet"
    for seed in range(6):
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        optimizer.accumulate()
        optimizer.step(0.1, clip=0)
        average.update()
        masters = optimizer.masters()
        seen.append(torch.cat([masters[name].flatten() for name, _ in module.named_parameters()]))
        now = flat(module)
        with average.shown():
            shown = optimizer.masters()
            found = torch.cat([shown[name].flatten() for name, _ in module.named_parameters()])
            torch.testing.assert_close(found, weighted(seen, 0.7), rtol=1e-5, atol=1e-6)
            assert torch.equal(flat(module), found.to(dtype).float())
        assert torch.equal(flat(module), now)
        assert torch.equal(
            torch.cat([p.flatten() for p in optimizer.masters().values()]).sort().values, seen[-1].sort().values
        )


def test_what_is_validated_and_kept_is_the_average(tmp_path: Path) -> None:
    module, rows = toy_module(), toy_rows()
    optimizer_weights: list[torch.Tensor] = []
    shown: list[torch.Tensor] = []
    losses = iter([3.0, 1.0, 2.0, 4.0])

    def validate() -> dict[str, float]:
        shown.append(flat(module))
        return {"loss": next(losses)}

    def sink(record: Mapping[str, Any]) -> None:
        optimizer_weights.append(flat(module))

    config = TrainConfig(epochs=4, batch_size=8, learning_rate=1e-2, ema=0.8)
    outcome = train(module, toy_work(module, rows), config, folder=tmp_path, metrics=sink, validate=validate)
    assert outcome.best_step == 6
    for number, step in enumerate((3, 6, 9, 12)):
        torch.testing.assert_close(shown[number], weighted(optimizer_weights[:step], 0.8), rtol=1e-4, atol=1e-6)
    assert torch.equal(flat(module), shown[1])


def test_without_validation_the_last_average_is_the_result(tmp_path: Path) -> None:
    module, seen = toy_module(), []
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2, ema=0.8)
    train(
        module,
        toy_work(module, toy_rows()),
        config,
        folder=tmp_path,
        metrics=lambda record: seen.append(flat(module)),
    )
    torch.testing.assert_close(flat(module), weighted(seen, 0.8), rtol=1e-4, atol=1e-6)
    plain = toy_module()
    train(
        plain,
        toy_work(plain, toy_rows()),
        config.model_copy(update={"ema": None}),
        folder=tmp_path / "plain",
        metrics=lambda record: None,
    )
    assert torch.equal(flat(plain), seen[-1]), "the weights themselves go the same way"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_stopped_run_ends_with_the_same_average(tmp_path: Path, dtype: torch.dtype) -> None:
    def sink(record: Mapping[str, Any]) -> None:
        if record["step"] == 5:
            raise KeyboardInterrupt

    straight, resumed = toy_module(dtype=dtype), toy_module(dtype=dtype)
    run_toy(tmp_path / "a", straight, ema=0.9)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "b", toy_module(dtype=dtype), sink, ema=0.9)
    kept = checkpoint.latest(tmp_path / "b")
    assert kept is not None and kept.position.step == 4
    run_toy(tmp_path / "b", resumed, ema=0.9)
    assert torch.equal(flat(straight), flat(resumed))
