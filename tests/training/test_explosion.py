"""When a loss counts as exploded, and what is left then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.toy import toy_module, toy_rows, toy_work

from luthier.core.errors import TrainingError
from luthier.objectives._loss import Loss
from luthier.training import checkpoint
from luthier.training.checkpoint import Position
from luthier.training.config import TrainConfig
from luthier.training.explosion import WINDOW, bound, explosion, note
from luthier.training.loop import train
from luthier.training.work import Work


def watch(losses: list[float], max_rise: float = 3.0) -> tuple[int, Position]:
    """The step at which it is said to have exploded (0: never), and what is remembered then."""
    at = Position()
    for loss in losses:
        at.step += 1
        note(at, loss, [f"rows.jsonl:{at.step}"], max_rise)
        if explosion(at, max_rise):
            return at.step, at
    return 0, at


@pytest.mark.parametrize(
    "losses",
    [
        [2.0 - 0.001 * i for i in range(200)],
        [10.8] * 5 + [9.0 - 0.01 * i for i in range(300)],
        [0.7, 0.2] + [0.01] * 60 + [2.5] + [0.01] * 60,  # one bad batch
        [0.0] * 40 + [0.6, -0.8] * 40,  # a loss about zero
        [2.0] * 12 + [1000.0] * 5 + [2.0] * 40,  # five bad batches in ten
        [-5.0] * 40 + [4.0] * 40,
    ],
    ids=["falling", "from scratch", "outlier", "about zero", "bad batches", "negative"],
)
def test_it_does_not_fire(losses: list[float]) -> None:
    assert watch(losses)[0] == 0


def test_it_fires_on_the_sixth_of_ten_and_names_the_first() -> None:
    step, at = watch([2.0] * 30 + [9.5] * 20)
    assert (step, at.suspect_step, at.suspect_rows) == (36, 31, ["rows.jsonl:31"])
    assert bound(at, 3.0) == 9.0
    assert explosion(at, 3.0) == (
        "the loss has exploded: 9.5 over the last 10 steps, 2 over the first; it first passed 9 at step 31"
    )
    assert watch([2.0] * 30 + [8.9] * 20)[0] == 0
    assert watch([2.0] * 30 + [9.5] * 20, max_rise=0)[0] == 0, "off"


def test_an_old_suspicion_is_forgotten() -> None:
    _, at = watch([2.0] * 10 + [50.0] + [2.0] * 20)
    assert (at.suspect_step, at.suspect_rows) == (0, [])


def exploding(from_step: int, factor: float) -> tuple[torch.nn.Module, Work]:
    module = toy_module(dropout=0.0)
    inner, calls = toy_work(module, toy_rows()), [0]

    def loss(batch: Any) -> Loss:
        calls[0] += 1
        found = inner.loss(batch)
        return Loss(found.value * (factor if calls[0] > from_step else 1.0), found.count)

    return module, Work(inner.rows, list, loss)


def test_training_stops_and_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    module, work = exploding(20, 1000.0)
    records: list[Mapping[str, Any]] = []
    config = TrainConfig(epochs=20, batch_size=8, checkpoint_every=1, max_tokens_per_batch=999)
    with pytest.raises(TrainingError, match=r"exploded: .* at step 21 \(rows toy\.jsonl:\d+, ") as raised:
        train(module, work, config, folder=tmp_path, metrics=records.append)
    assert len(records) == 26, "every step is on record"
    kept = checkpoint.latest(tmp_path)
    assert kept is not None and kept.position.step == 20
    assert raised.value.hint is not None and "checkpoint of step 20 is kept" in raised.value.hint
    assert len(kept.position.first_losses) == len(kept.position.last_losses) == WINDOW


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    module, work = exploding(20, 1000.0)
    config = TrainConfig(epochs=20, batch_size=8, max_rise=0, max_tokens_per_batch=999)
    assert train(module, work, config, folder=tmp_path, metrics=lambda record: None).ended == "epochs"
