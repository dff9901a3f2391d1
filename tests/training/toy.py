"""A toy problem for the loop: noisy linear regression with dropout, so that random state matters. Also a script to be killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.objectives._loss import Loss
from luthier.store.runs import MetricsLog
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.loop import Outcome, train
from luthier.training.work import Work


@dataclass(frozen=True)
class ToyRow:
    values: tuple[float, ...]
    length: int
    weight: int
    source: str


def toy_rows(count: int = 24) -> list[ToyRow]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(count, 4, generator=generator)
    sizes = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [
        ToyRow(tuple(v.tolist()), n, n, f"toy.jsonl:{i + 1}")
        for i, (v, n) in enumerate(zip(values, sizes, strict=True))
    ]


def toy_module(dropout: float = 0.2, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)).to(dtype)


class Stack(nn.Module):
    """An embedding-like first layer, two repeated layers with wide and tall matrices, and a head: what optimizers tell apart."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Dropout(dropout), nn.Linear(24, 16)) for _ in range(2)
        )
        self.head = nn.Linear(16, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        scores: torch.Tensor = self.head(hidden)
        return scores.tanh().sum(-1, keepdim=True)


def toy_stack(dropout: float = 0.2, dtype: torch.dtype = torch.float32) -> Stack:
    torch.manual_seed(0)
    return Stack(dropout).to(dtype)


def toy_work(module: nn.Module, rows: Sequence[ToyRow]) -> Work:
    """The loss of a row is (prediction - sum of its values)^2, counted ``weight`` times."""
    dtype = next(module.parameters()).dtype

    def loss(batch: Sequence[ToyRow]) -> Loss:
        inputs = torch.tensor([row.values for row in batch], dtype=dtype)
        weights = torch.tensor([float(row.weight) for row in batch])
        errors = (module(inputs).squeeze(-1).float() - inputs.float().sum(1)).square()
        return Loss((errors * weights).sum() / weights.sum(), int(weights.sum()))

    return Work(rows, list, loss)


def run_toy(
    folder: Path,
    module: nn.Module,
    sink: Callable[[Mapping[str, Any]], None] = lambda record: None,
    **settings: Any,
) -> Outcome:
    """Train, going on at the last checkpoint of ``folder``; validates on the training rows without dropout."""
    rows = toy_rows()
    config = TrainConfig(
        **{
            "epochs": 4,
            "batch_size": 8,
            "max_tokens_per_batch": 24,
            "learning_rate": 1e-2,
            "checkpoint_every": 2,
            **settings,
        }
    )
    work = toy_work(module, rows)

    def validate() -> dict[str, float]:
        with torch.no_grad():
            return {"loss": float(work.loss(rows).value.detach())}

    return train(module, work, config, folder=folder, metrics=sink, validate=validate, resume=checkpoint.latest(folder))


def main(folder: Path, slow_down_at: int) -> None:
    """Train and write metrics and final weights; after step ``slow_down_at`` wait to be killed."""
    torch.set_num_threads(1)
    module = toy_module()
    point = checkpoint.latest(folder)
    with MetricsLog(folder / "metrics.jsonl") as log:
        log.truncate_after(point.position.step if point else 0)

        def sink(record: Mapping[str, Any]) -> None:
            log.write(record)
            if record["step"] == slow_down_at:
                sys.stdout.write("there\n")
                sys.stdout.flush()
                sys.stdin.readline()

        run_toy(folder, module, sink)
    (folder / "weights.json").write_text(json.dumps({k: v.tolist() for k, v in module.state_dict().items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
