from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from luthier.evaluation.records import Record
from luthier.tournament.board import Standing
from luthier.tournament.frontier import frontier, frontiers
from luthier.tournament.prices import per_1000, tokens_per_request
from luthier.tournament.settings import MachinePrice, Price, Settings

POINTS = [("cheap", 0.5, 1.0), ("bad", 0.4, 2.0), ("good", 0.9, 3.0), ("dear", 0.9, 4.0), ("unknown", 1.0, None)]


def test_the_frontier_is_what_nobody_beats() -> None:
    assert frontier(POINTS) == ("cheap", "good")
    assert frontier([(n, -s, c) for n, s, c in POINTS], lower_is_better=True) == ("cheap", "good")
    assert frontier([("a", 0.5, 1.0), ("b", 0.5, 1.0)]) == ("a", "b"), "equal in both"
    assert frontier([]) == ()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 5))), max_size=8),
    st.booleans(),
)
def test_it_is_the_definition(values: list[tuple[int, int | None]], falls: bool) -> None:
    points = [(str(i), float(s), None if c is None else float(c)) for i, (s, c) in enumerate(values)]
    sign = -1 if falls else 1
    known = [(n, sign * s, c) for n, s, c in points if c is not None]
    expected = {n for n, s, c in known if not any((s2 >= s and c2 <= c) and (s2 > s or c2 < c) for _, s2, c2 in known)}
    assert set(frontier(points, lower_is_better=falls)) == expected


def standing(name: str, score: float, latency: float | None, price: float | None) -> Standing:
    return Standing(
        name,
        "way",
        "m",
        "done",
        score={"value": score},
        latency_p50_s=latency,
        price_per_1000=price,
        trainable_parameters=0,
    )


def test_frontiers_of_the_costs_that_are_known() -> None:
    standings = [standing("a", 0.5, 0.1, None), standing("b", 0.9, 0.2, 0.01), Standing("c", "w", "m", "failed")]
    found = frontiers(standings)
    assert found == {"latency": ["a", "b"], "trained parameters": ["b"]}
    for (name, edge), other in itertools.product(found.items(), found):
        assert (edge == found[other]) == (name == other)


def record(prompt: int, completion: int, error: str = "") -> Record:
    return Record(0, "i", "s", "x", "t", "a", prompt_tokens=prompt, completion_tokens=completion, error=error)


def test_tokens_are_means_or_not_known() -> None:
    assert tokens_per_request([record(10, 2), record(20, 4), record(0, 0, "too long")]) == (15, 3)
    assert tokens_per_request([record(0, 2), record(20, 4)]) == (None, 3), (
        "one that is not known makes the mean unknown"
    )
    assert tokens_per_request([record(0, 0)]) == (None, None)
    assert tokens_per_request([]) == (None, None)


def test_prices_of_remote_and_local_models() -> None:
    remote = Settings(prices={"*": Price(prompt=0.15, completion=0.6)})
    told = {"prompt_tokens": 1000.0, "completion_tokens": 500.0, "request_s": 2.0}
    assert per_1000("openai:m@u", remote, **told) == (1000 * 0.15 + 500 * 0.6) / 1000
    assert per_1000("openai:m@u", remote, **{**told, "prompt_tokens": None}) is None
    assert per_1000("openai:m@u", Settings(), **told) is None
    local = Settings(machine=MachinePrice(per_hour=3.6))
    assert per_1000("mine", local, **told) == 2.0 * 1000 * 3.6 / 3600
    assert per_1000("mine", local, **{**told, "request_s": None}) is None
    assert per_1000("mine", remote, **told) is None, "unknown, not 0"
    own = Settings(prices={"openai:m@u": Price(prompt=0, completion=1)})
    assert per_1000("openai:m@u", own, **told) == 0.5
    assert per_1000("openai:other@u", own, **told) is None
