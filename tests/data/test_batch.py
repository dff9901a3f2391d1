from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import InputError
from luthier.data.batch import CHUNK_STEPS, order_by_length, pad, padding_share, plan

LENGTHS = st.lists(st.integers(0, 60), max_size=120)


@given(LENGTHS, st.integers(1, 12), st.integers(1, 200), st.integers(0, 5), st.booleans())
def test_every_row_once_and_no_batch_over_budget(
    lengths: list[int], batch_size: int, max_tokens: int, epoch: int, group: bool
) -> None:
    steps = plan(lengths, batch_size=batch_size, max_tokens=max_tokens, seed=0, epoch=epoch, group=group)
    rows = [row for step in steps for micro in step for row in micro]
    assert sorted(rows) == list(range(len(lengths)))
    sizes = sorted(sum(len(micro) for micro in step) for step in steps)
    assert sizes[1:] == [batch_size] * (len(sizes) - 1)
    for step in steps:
        for micro in step:
            longest = max(lengths[row] for row in micro)
            assert len(micro) == 1 or len(micro) * longest <= max_tokens
            assert lengths[micro[0]] == longest
    assert steps == plan(lengths, batch_size=batch_size, max_tokens=max_tokens, seed=0, epoch=epoch, group=group)


@given(LENGTHS, st.integers(1, 200), st.integers(1, 9))
def test_inference_order_is_from_long_to_short(lengths: list[int], max_tokens: int, max_rows: int) -> None:
    batches = order_by_length(lengths, max_tokens, max_rows=max_rows)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    assert all(len(batch) <= max_rows for batch in batches)
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= max_tokens for batch in batches)


def test_a_plan_by_hand() -> None:
    assert order_by_length([3, 9, 2, 8, 1], 18) == [[1, 3], [0, 2, 4]]
    assert order_by_length([3, 9, 2, 8, 1], 18, max_rows=2) == [[1, 3], [0, 2], [4]]
    assert order_by_length([100, 1], 10) == [[0], [1]]
    (step,) = plan([3, 9, 2, 8, 1], batch_size=5, max_tokens=18, seed=3, epoch=0)
    assert step == [[1, 3], [0, 2, 4]]


def test_epochs_and_seeds_shuffle_differently() -> None:
    lengths = [7] * 64
    plans = [plan(lengths, batch_size=4, max_tokens=64, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert plans[0] != plans[1] != plans[2] != plans[0]


def test_like_lengths_come_together_yet_steps_come_in_random_order() -> None:
    lengths = [(at * 7919) % 500 + 1 for at in range(4 * CHUNK_STEPS * 8)]

    def waste(group: bool) -> float:
        steps = plan(lengths, batch_size=8, max_tokens=10_000, seed=0, epoch=0, group=group)
        return padding_share(lengths, [micro for step in steps for micro in step])

    assert waste(group=True) < 0.02
    assert waste(group=False) > 0.3
    steps = plan(lengths, batch_size=8, max_tokens=10_000, seed=0, epoch=0)
    longest = [max(lengths[row] for micro in step for row in micro) for step in steps]
    assert 0.4 < sum(b > a for a, b in pairwise(longest)) / len(longest) < 0.6


def test_padding_share_by_hand() -> None:
    assert padding_share([1, 3, 4], [[1, 0], [2]]) == pytest.approx(1 - 8 / 10)
    assert padding_share([], []) == 0.0


def test_pad_either_side() -> None:
    right = pad([[5, 6, 7], [8]], 0)
    assert right.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert right.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    left = pad([[5, 6, 7], [8]], 9, side="left")
    assert left.ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert tuple(pad([], 0).ids.shape) == (0, 0)
    with pytest.raises(InputError, match="side must be left or right"):
        pad([[1]], 0, side="middle")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"max_tokens": 0}])
def test_sizes_below_one_are_refused(wrong: dict[str, int]) -> None:
    sizes = {"batch_size": 1, "max_tokens": 1, **wrong}
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be at least 1; got 0"):
        plan([1], **sizes, seed=0, epoch=0)
