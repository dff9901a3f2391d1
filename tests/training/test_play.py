"""Rollouts in the loop: one step each, whatever number of updates; exact resume; validation with the same random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.toy import ToyRow, toy_module, toy_rows, toy_work
from torch import Tensor, nn

from luthier.core.errors import TrainingError
from luthier.objectives._rollout import Experience, Moment
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.loop import Outcome, train
from luthier.training.play import updates
from luthier.training.work import Work, mean_loss


class Noisy:
    """Two rows for each prompt, its values with noise that the module's own answer and the plays so far decide."""

    def __init__(self, module: nn.Module, *, epochs: int = 1, minibatches: int = 1, of: int = 2) -> None:
        self.module, self.epochs, self.minibatches, self.of = module, epochs, minibatches, of
        self.plays = torch.zeros(1)
        self.seen: list[tuple[Moment, list[str]]] = []

    def play(self, rows: Sequence[Any], moment: Moment) -> Experience:
        assert not self.module.training and not torch.is_grad_enabled()
        self.seen.append((moment, [row.source for row in rows]))
        if moment.training:
            self.plays = self.plays + 1
        generator = torch.Generator().manual_seed(moment.seed)
        made = []
        for row in rows:
            answer = float(self.module(torch.tensor([row.values])))
            for number in range(self.of):
                noise = torch.randn(4, generator=generator) * (1 + answer) / float(self.plays + 1)
                values = tuple((torch.tensor(row.values) + noise).tolist())
                made.append(ToyRow(values, row.length, row.weight, f"{row.source}#{number}"))
        return Experience(made, {"reward": answer, "plays": float(self.plays)}, self.epochs, self.minibatches)

    def state(self) -> dict[str, Tensor]:
        return {"plays": self.plays}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.plays = state["plays"].clone()


class Stopped(Exception):
    """Raised by a sink to end a training in the middle."""


def run(
    folder: Path, rollout: dict[str, int], stop: int | None = None, **settings: Any
) -> tuple[Outcome, Any, Noisy, Any]:
    module = toy_module()
    played = Noisy(module, **rollout)
    work = toy_work(module, toy_rows())
    work = Work(work.rows, work.collate, work.loss, rollout=played)
    config = TrainConfig(
        **{"epochs": 3, "batch_size": 8, "max_tokens_per_batch": 24, "learning_rate": 1e-2, "checkpoint_every": 1, **settings}
    )  # fmt: skip
    records: list[Mapping[str, Any]] = []

    def sink(record: Mapping[str, Any]) -> None:
        records.append(record)
        if record["step"] == stop:
            raise Stopped

    outcome = train(
        module,
        work,
        config,
        folder=folder,
        metrics=sink,
        validate=lambda: mean_loss(work, max_tokens=24),
        resume=checkpoint.latest(folder),
    )
    return outcome, records, played, {k: v.clone() for k, v in module.state_dict().items()}


def test_one_rollout_is_one_step(tmp_path: Path) -> None:
    outcome, records, played, _ = run(tmp_path, {"epochs": 2, "minibatches": 3})
    trained = [(moment, sources) for moment, sources in played.seen if moment.training]
    assert outcome.steps == 9 and [moment.step for moment, _ in trained] == list(range(9))
    assert sorted(source for _, sources in trained[:3] for source in sources) == sorted(
        row.source for row in toy_rows()
    )
    assert [record["plays"] for record in records] == list(range(1, 10))
    assert all(record["loss"] > 0 and "reward" in record for record in records)
    lengths = {row.source: row.length for row in toy_rows()}
    for record, before, (_, sources) in zip(
        records, [0, *(r["tokens"] for r in records)][: len(records)], trained, strict=True
    ):
        assert record["tokens"] - before == 2 * 2 * sum(lengths[source] for source in sources)  # two epochs, two rows


def test_as_many_optimizer_updates_as_the_experience_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.training.optimizer import Optimizer

    counted = []
    original = Optimizer.step

    def step(self: Any, *args: Any) -> float:
        counted.append(args[0])
        return original(self, *args)

    monkeypatch.setattr(Optimizer, "step", step)
    run(tmp_path, {"epochs": 2, "minibatches": 3}, epochs=1)
    assert len(counted) == 3 * 2 * 3
    assert [len(set(counted[i : i + 6])) for i in (0, 6, 12)] == [1, 1, 1]  # one learning rate a step


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_run_is_bit_equal(tmp_path: Path, stop: int) -> None:
    how = {"epochs": 2, "minibatches": 2}
    _, whole, _, weights = run(tmp_path / "whole", how)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", how, stop)
    outcome, rest, played, again = run(tmp_path / "cut", how)
    assert rest[0]["step"] == stop and outcome.steps == 9  # the checkpoint before the record that stopped it
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    assert float(played.plays) == 9
    kept = ("step", "loss", "reward", "plays", "grad_norm", "validation_loss")
    same = [{key: record.get(key) for key in kept} for record in whole[stop - 1 :]]
    assert same == [{key: record.get(key) for key in kept} for record in rest]


def test_validations_play_with_the_same_random_numbers(tmp_path: Path) -> None:
    _, records, played, _ = run(tmp_path, {})
    validated = [moment for moment, _ in played.seen if not moment.training]
    assert len(validated) == 3 and len({moment.seed for moment in validated}) == 1
    assert [record["step"] for record in records if "validation_reward" in record] == [3, 6, 9]
    assert records[-1]["validation_plays"] == 9.0


def test_a_rollout_that_gives_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"rollout of step 1 gave nothing to learn from \(8 prompts\)"):
        run(tmp_path, {"of": 0})


def test_every_row_is_in_one_update_an_epoch() -> None:
    rows = toy_rows(11)
    moment = Moment(4, 0, 20)
    made = list(updates(Experience(rows, epochs=2, minibatches=3), moment))
    assert [sum(map(len, update)) for update in made] == [3, 4, 4, 3, 4, 4]
    for epoch in (made[:3], made[3:]):
        assert sorted(row.source for update in epoch for batch in update for row in batch) == sorted(
            row.source for row in rows
        )
    for update in made:
        assert all(len(batch) * max(row.length for row in batch) <= 20 or len(batch) == 1 for batch in update)
    assert made == list(updates(Experience(rows, epochs=2, minibatches=3), moment))
    assert made[:3] != made[3:]
    assert made != list(updates(Experience(rows, epochs=2, minibatches=3), Moment(5, 0, 20)))
    assert [len(update) for update in updates(Experience(rows), moment, whole=True)] == [1]
    assert len(list(updates(Experience(rows[:2], minibatches=3), moment))) == 2
