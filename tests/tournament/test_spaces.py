from __future__ import annotations

import re
from typing import Any

import pytest

from luthier.core import catalog
from luthier.core.errors import InputError
from luthier.tournament.spaces import Choice, Range, applied, default_space, grid_size, read_space


def test_ranges_and_choices() -> None:
    space = read_space(
        {
            "train.learning_rate": [1e-5, 1e-3, "log"],
            "method.dropout": [0.0, 0.2, "linear"],
            "method.rank": [4, 8, 16],
            "train.batch_size": {"low": 8, "high": 64, "log": True},
            "train.schedule": ["cosine", "linear"],
            "method.alpha": [None, 16],
        },
        "search",
    )
    assert space["train.learning_rate"] == Range(1e-5, 1e-3, log=True)
    assert space["method.dropout"] == Range(0.0, 0.2)
    assert space["method.rank"] == Choice((4, 8, 16))
    batch = space["train.batch_size"]
    assert isinstance(batch, Range)
    assert batch.whole
    assert batch.log
    assert space["train.schedule"] == Choice(("cosine", "linear"))
    assert space["method.alpha"].holds(None)
    assert Range(1, 4).holds(3)
    assert not Range(1, 4).holds(True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", [1, 2], "'learning_rate' is not a section and a setting"),
        ("trian.epochs", [1, 2], "Did you mean 'train'"),
        ("train.seed", [1, 2], "see the key seeds"),
        ("train.epochs", [], r"must be a list of values"),
        ("train.epochs", "3", r"must be a list of values"),
        ("train.epochs", [[1]], r"must be a list of values"),
        ("train.epochs", {"low": 1}, "a range is"),
        ("train.epochs", [3, 1, "log"], "low must be below high"),
        ("train.epochs", [0, 1, "log"], "above 0 for a log scale"),
        ("train.epochs", [float("nan"), 1, "linear"], "low must be below high"),
    ],
)
def test_what_is_no_space_is_told(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message) if "(" not in message else message):
        read_space({key: value}, "search")


def test_default_spaces_follow_from_the_method() -> None:
    lora = default_space(catalog.load("methods", "lora"), {"rank": 6}, {"learning_rate": 1e-3})
    assert lora["train.learning_rate"] == Range(2.5e-4, 4e-3, log=True)
    assert lora["method.rank"] == Choice((4, 6, 8, 16, 32))
    full = default_space(catalog.load("methods", "full"), {"embeddings": True}, {"learning_rate": 1e-4})
    assert set(full) == {"train.learning_rate"}


def test_a_method_may_state_its_own_space(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog.load("methods", "full")
    monkeypatch.setattr(entry.module, "SPACE", {"train.weight_decay": [0.0, 0.1]}, raising=False)
    assert default_space(entry, {}, {"learning_rate": 1.0}) == {"train.weight_decay": Choice((0.0, 0.1))}


def test_grids_need_lists() -> None:
    assert grid_size({"method.rank": Choice((4, 8)), "train.epochs": Choice((1, 2, 3))}) == 6
    with pytest.raises(InputError, match="sampler grid needs lists"):
        grid_size({"train.learning_rate": Range(0.1, 1.0)})


def test_changes_go_into_a_copy() -> None:
    before = {"model": "m", "train": {"epochs": 1}, "method": {"name": "lora"}}
    after = applied(before, {"train.learning_rate": 0.1, "method.rank": 4, "objective.x": 1})
    assert after == {
        "model": "m",
        "train": {"epochs": 1, "learning_rate": 0.1},
        "method": {"name": "lora", "rank": 4},
        "objective": {"x": 1},
    }
    assert before["train"] == {"epochs": 1}
