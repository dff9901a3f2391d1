"""Best-of-n on line: which answer is kept, its cross-entropy against plain forwards, and rewards that rise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.objectives.preferences import loaded, log_prob

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.errors import DataError, InputError, NotFoundError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.models.rollout import Answer
from luthier.objectives._rollout import Moment
from luthier.objectives._rows import Limits
from luthier.objectives.best_of_n import BestRow, Config, best_of, collate, loss, prepare, rollout
from luthier.training.tune import tune

SHORT = {"name": "overlong", "most": 1, "margin": 40, "unit": "characters"}
NONE = Dataset("none", "question", ())
ASKED = ["Where is my parcel?", "Refund?", "Who is the teacher now?", "我的包裹呢?"]


def questions() -> Dataset:
    rows = (Example(str(i), user(q), target="e", source=f"q.jsonl:{i}") for i, q in enumerate(ASKED, 1))
    return Dataset("q", "question", tuple(rows))


def test_the_best_of_those_that_ended_is_kept() -> None:
    group = [Answer([5], [-1.0], ended) for ended in (True, True, False, True)]
    assert best_of(group, [0.0, 1.0, 9.0, 1.0], None) is group[1]  # the third did not end; of equals the first
    assert best_of(group, [0.0, 1.0, 9.0, 1.0], 1.0) is group[1] and best_of(group, [0.0, 1.0, 9.0, 1.0], 1.1) is None
    assert best_of([Answer([5], [-1.0], False)], [1.0], None) is None


def test_the_loss_is_the_mean_cross_entropy_of_the_answers(tiny_decoder: str) -> None:
    model = loaded(tiny_decoder)
    rows = [BestRow([5, 6, 7], [8, 9, 10], "a"), BestRow([7, 8], [11], "b")]
    found = loss(model, collate(rows, model), Config(rewards=("answered",)))
    wanted = -sum(log_prob(model.module, row.prompt, row.answer) for row in rows) / 4
    assert found.count == 4 and float(found.value.detach()) == pytest.approx(float(wanted), abs=1e-6)  # type: ignore[arg-type]
    nothing = loss(model, [BestRow([5], [6, 7], "c", 0.0)], Config(rewards=("answered",)))
    assert float(nothing.value.detach()) == 0.0


def test_what_a_rollout_keeps(tiny_decoder: str) -> None:
    model = loaded(tiny_decoder)
    config = Config(rewards=(SHORT,), samples=12, max_new_tokens=40)
    rows = prepare(questions(), model, PromptTemplate(), config, Limits(2048))
    played = rollout(model, config).play(rows, Moment(0, 0, 2048))
    again = rollout(model, config).play(rows, Moment(0, 0, 2048))
    assert [row.answer for row in played.rows] == [row.answer for row in again.rows]
    assert played.metrics["best_reward"] > played.metrics["reward"] and 0 <= played.metrics["kept"] <= 1
    none = rollout(model, Config(rewards=(SHORT,), samples=2, max_new_tokens=1, least=0.5)).play(
        rows, Moment(0, 0, 2048)
    )
    assert none.metrics["kept"] == 0.0 and [row.learnt for row in none.rows] == [0.0]


def train(base: str, sink: Any, **objective: Any) -> Any:
    return tune(
        {
            "model": base,
            "method": "full",
            "objective": {"name": "best_of_n", "rewards": [SHORT], "samples": 8, "max_new_tokens": 24, **objective},
            "train": {
                "max_steps": 12,
                "epochs": 12,
                "learning_rate": 1e-2,
                "batch_size": 4,
                "dtype": "fp32",
                "device": "cpu",
            },
        },
        splits=Splits(questions(), NONE, NONE),
        metrics=sink,
    )


def test_the_reward_rises(tiny_decoder: str) -> None:
    records: list[Mapping[str, Any]] = []
    train(tiny_decoder, records.append)
    first, last = (sum(r["reward"] for r in part) / 3 for part in (records[:3], records[-3:]))
    assert last > first + 0.1 and torch.isfinite(torch.tensor([r["loss"] for r in records])).all(), (first, last)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"rewards": ["exakt"]}, NotFoundError, "Did you mean 'exact'"),
        ({"samples": 1}, InputError, "samples"),
        ({"rewards": ["number"]}, DataError, r"q\.jsonl:1: number: the target has no number"),
    ],
)
def test_bad_input(tiny_decoder: str, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        train(tiny_decoder, None, **options)
