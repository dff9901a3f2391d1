"""Replay: how many old rows, of which groups, the same each time, and what a smaller memory forgets for good."""

from __future__ import annotations

from collections import Counter

import pytest

from luthier.core.dataset import Dataset, Example
from luthier.core.message import user
from luthier.data.replay import remember, with_replay


def rows(name: str, labels: str, counts: tuple[int, ...], *, kind: str = "labelled") -> Dataset:
    made = [
        Example(f"{name}-{label}-{i}", user(f"{name} {label} {i}"), label)
        for label, count in zip(labels, counts, strict=True)
        for i in range(count)
    ]
    return Dataset(name, kind, tuple(made))  # type: ignore[arg-type]


FIRST, SECOND = rows("first", "ab", (90, 10)), rows("second", "cd", (40, 60))
NEW = rows("new", "ef", (45, 45))


def shares(examples: tuple[Example, ...]) -> Counter[str]:
    return Counter(str(example.target) for example in examples)


def ids(examples: tuple[Example, ...]) -> set[str]:
    return {example.id for example in examples}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 10), (0.25, 30), (0.5, 90), (0.9, 200)])
def test_the_share_of_old_rows(share: float, count: int) -> None:
    """10% old rows are 10 beside 90 new ones; never more than there are."""
    mixed, drawn = with_replay(NEW, [FIRST, SECOND], share=share, size=None, keep="balanced", seed=0)
    assert len(drawn) == count and len(mixed) == 90 + count
    assert mixed.examples[:90] == NEW.examples and mixed.examples[90:] == drawn
    assert len(ids(mixed.examples)) == len(mixed)
    if not count:
        assert mixed is NEW


def test_balanced_takes_equally_of_every_label_and_reservoir_as_they_come() -> None:
    _, drawn = with_replay(NEW, [FIRST, SECOND], share=0.4, size=None, keep="balanced", seed=0)
    assert shares(drawn)["b"] == 10 and max(shares(drawn).values()) - min(shares(drawn)[x] for x in "acd") <= 1
    counts: Counter[str] = Counter()
    for seed in range(60):
        counts += shares(remember([FIRST, SECOND], 40, "reservoir", seed))
    assert counts.total() == 2400
    for label, size in {"a": 90, "b": 10, "c": 40, "d": 60}.items():
        assert counts[label] / 2400 == pytest.approx(size / 200, abs=0.03)


def test_without_labels_the_datasets_are_the_groups() -> None:
    one, other = (rows(name, "ab", (n, n), kind="question") for name, n in (("big", 100), ("small", 20)))
    held = remember([one, other], 30, "balanced", 0)
    assert Counter(example.id.split("-")[0] for example in held) == {"big": 15, "small": 15}


@pytest.mark.parametrize("keep", ["balanced", "reservoir"])
def test_what_is_forgotten_does_not_come_back(keep: str) -> None:
    before = ids(remember([FIRST], 40, keep, 7))  # type: ignore[arg-type]
    after = remember([FIRST, SECOND], 40, keep, 7)  # type: ignore[arg-type]
    assert len(before) == len(after) == 40
    assert {e.id for e in after if e.id.startswith("first")} <= before
    assert ids(remember([FIRST, SECOND], 20, keep, 7)) < ids(after)  # type: ignore[arg-type]
    _, drawn = with_replay(NEW, [FIRST, SECOND], share=0.9, size=40, keep=keep, seed=7)  # type: ignore[arg-type]
    assert ids(drawn) == ids(after)


def test_the_same_each_time_and_other_rows_for_another_seed_or_step() -> None:
    def drawn(seed: int, *earlier: Dataset) -> set[str]:
        return ids(with_replay(NEW, earlier, share=0.1, size=None, keep="reservoir", seed=seed)[1])

    assert drawn(0, FIRST, SECOND) == drawn(0, FIRST, SECOND)
    assert drawn(0, FIRST, SECOND) != drawn(1, FIRST, SECOND)
    third = rows("third", "g", (1,))
    assert drawn(0, FIRST, SECOND) != drawn(0, FIRST, SECOND, third) - ids(third.examples)


def test_a_row_that_is_new_again_is_not_drawn() -> None:
    again = Dataset("again", "labelled", FIRST.examples[:50])
    _, drawn = with_replay(again, [FIRST, FIRST], share=0.9, size=None, keep="balanced", seed=0)
    assert ids(drawn) == ids(FIRST.examples[50:]) and len(drawn) == 50
