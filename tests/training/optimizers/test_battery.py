"""Every optimizer of the catalogue: it learns, goes on exactly, keeps what it says, and takes no unknown option."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.optimizers.reference import backward, optimizer
from tests.training.toy import run_toy, toy_stack

from luthier.core import catalog
from luthier.core.errors import InputError
from luthier.training.config import Chosen
from luthier.training.optimizer import cost, trained

NAMES = catalog.names("optimizers")
SMALL: dict[str, dict[str, Any]] = {"galore": {"rank": 4, "update_every": 3}, "adamw_8bit": {"min_size": 100}}
"""Options that make sense of a tiny model."""
RATES = {"sgd": 3e-2, "lion": 3e-3}


def chosen(name: str) -> Chosen:
    return Chosen(name=name, **SMALL.get(name, {}))


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_it_learns(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    losses = []
    module = toy_stack(dropout=0.0, dtype=dtype)
    run_toy(tmp_path, module, losses.append, epochs=12, optimizer=chosen(name), learning_rate=RATES.get(name, 1e-2))
    validated = [record["validation_loss"] for record in losses if "validation_loss" in record]
    assert validated[-1] < 0.5 * validated[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_state_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    def steps(module: torch.nn.Module, rule: Any, seeds: range) -> None:
        for seed in seeds:
            backward(module, seed)
            rule.accumulate()
            rule.step(1e-2, 1.0)

    straight = toy_stack(dropout=0.0, dtype=dtype)
    broken = copy.deepcopy(straight)
    steps(straight, optimizer(straight, name, **SMALL.get(name, {})), range(8))
    first = optimizer(broken, name, **SMALL.get(name, {}))
    begun = {key: tensor.clone() for key, tensor in first.state().items()}
    steps(broken, first, range(5))
    kept = {key: tensor.clone() for key, tensor in first.state().items()}
    other = toy_stack(dropout=0.0, dtype=dtype)
    second = optimizer(other, name, **SMALL.get(name, {}))
    second.load_state(
        begun | {"rng.cpu": torch.get_rng_state()}
    )  # of before the first step, with what else is in a checkpoint
    second.load_state(kept)
    steps(other, second, range(5, 8))
    assert torch.equal(flat(straight), flat(other))
    again, reference = second.state(), kept
    assert set(again) == set(reference)


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    def sink(record: Any) -> None:
        if record["step"] == 5:
            raise KeyboardInterrupt

    straight, resumed = toy_stack(), toy_stack()
    run_toy(tmp_path / "a", straight, optimizer=chosen(name))
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "b", toy_stack(), sink, optimizer=chosen(name))
    run_toy(tmp_path / "b", resumed, optimizer=chosen(name))
    assert torch.equal(flat(straight), flat(resumed))


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_as_many_bytes_as_it_says(name: str) -> None:
    module = toy_stack(dropout=0.0)
    told = cost(chosen(name), list(trained(module).values()))
    rule = optimizer(module, name, **SMALL.get(name, {}))
    backward(module, 0)
    rule.step(1e-2, 1.0)
    kept = sum(
        tensor.numel() * tensor.element_size()
        for key, tensor in rule.state().items()
        if not key.startswith("master.") and tensor.numel() > 1
    )
    assert told.state_bytes == pytest.approx(kept, rel=0.02)
    assert told.working_bytes >= 0 and told.flops > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_with_the_near_one(name: str) -> None:
    entry = catalog.load("optimizers", name)
    option = next(iter(entry.config_class.model_fields))
    with pytest.raises(InputError, match=rf"optimizer {name}: unknown key '{option}x'.*{option}"):
        entry.configure({option + "x": 1})
    assert entry.optional("PAPER")
