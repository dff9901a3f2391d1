from __future__ import annotations

import re
from typing import Any

import pytest

from luthier.core.errors import InputError
from luthier.tasks.own import Config
from luthier.tournament.budget import Spent, limits, total
from luthier.tournament.settings import Budget, Price, Search, read_search, read_settings


def settings(**keys: Any) -> Any:
    return read_settings(Config(data={"path": "x"}, **keys))


def test_nothing_said_is_nothing_asked() -> None:
    found = settings()
    assert (found.budget, found.search, found.seeds, found.jobs, found.prices, found.machine) == (
        None,
        None,
        (),
        "auto",
        {},
        None,
    )


def test_short_forms() -> None:
    assert settings(search=12).search == Search(trials=12)
    assert settings(search=0).search is None
    assert settings(seeds=3).seeds == (0, 1, 2)
    assert settings(seeds=[4, 7]).seeds == (4, 7)
    assert settings(jobs=2).jobs == 2
    assert settings(prices={"prompt": 1, "completion": 2}).prices == {"*": Price(prompt=1, completion=2)}
    assert settings(prices={"openai:m@u": {"prompt": 1, "completion": 2}}).prices["openai:m@u"].completion == 2
    assert settings(machine={"per_hour": 0.1}).machine.per_hour == 0.1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"budget": {}}, "budget: give seconds, tokens or both"),
        ({"budget": {"seconds": -1}}, "budget.seconds: .*greater than 0; got -1"),
        ({"budget": {"minutes": 1}}, "unknown key 'budget.minutes'"),
        ({"search": {"trails": 3}}, "Did you mean 'trials'"),
        ({"search": {"sampler": "gird"}}, "search.sampler: .*'tpe', 'random' or 'grid'; got 'gird'"),
        ({"seeds": 0}, "seeds: must be how many"),
        ({"seeds": [1, 1]}, "seeds: must be how many"),
        ({"seeds": True}, "seeds: must be how many"),
        ({"jobs": 0}, "jobs: must be auto"),
        ({"jobs": "all"}, "jobs: must be auto"),
        ({"machine": {"per_hour": 0}}, "machine.per_hour"),
        ({"prices": {"m": {"prompt": 1}}}, "prices.m.completion is required"),
    ],
)
def test_bad_settings_name_the_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**keys)


def test_an_entrants_own_search() -> None:
    assert read_search(3, "entrant x") == Search(trials=3)
    assert read_search("none", "entrant x") is None
    with pytest.raises(
        InputError, match=re.escape("entrant x: search must be a number of trials, or a mapping; got 'many'")
    ):
        read_search("many", "entrant x")


def test_a_budget_is_shared_by_trials_and_tighter_limits_stay() -> None:
    budget = Budget(seconds=60, tokens=1000)
    assert limits(budget, 4, {}) == {"max_seconds": 15, "max_tokens": 250}
    assert limits(budget, 1, {"max_seconds": 5}) == {"max_seconds": 5, "max_tokens": 1000}
    assert limits(Budget(tokens=3), 8, {}) == {"max_tokens": 1}
    assert limits(None, 1, {}) == {}


def test_what_was_spent_adds_up() -> None:
    assert total([Spent(1.5, 10, 1), Spent(2.0, 5, 1)]).as_dict() == {"seconds": 3.5, "tokens": 15, "trainings": 2}
    assert total([]) == Spent()
