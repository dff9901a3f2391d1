"""What the plan over a prefix tree promises: every token of every prompt, once or as often as it pays."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.models.trie import Leaf, Shared, Unit, plan

prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=12)


def units(*given: tuple[int, ...], continuation: tuple[int, ...] = (7,)) -> list[Unit]:
    return [Unit(prompt, ((number, continuation),)) for number, prompt in enumerate(given)]


def walk(node: Shared, start: int = 0, above: tuple[int, ...] = ()) -> list[tuple[Unit, int]]:
    """(unit, tokens in memory when it is computed), checking that each beginning continues the one above it."""
    assert node.ids[:start] == above[:start]
    out = []
    for leaf in node.leaves():
        for unit in leaf.units:
            assert unit.prompt[: node.depth] == node.ids[: node.depth]
            assert len(unit.prompt) > node.depth
            assert unit.prompt[: leaf.depth] == leaf.units[0].prompt[: leaf.depth]
            out.append((unit, node.depth))
    for inner in node.inner():
        assert inner.depth > node.depth
        out += walk(inner, node.depth, node.ids)
    return out


@settings(max_examples=300, deadline=None)
@given(prompts, st.integers(1, 30), st.integers(0, 20))
def test_every_unit_is_computed_once_after_its_own_beginning(
    given: list[tuple[int, ...]], most: int, cost: int
) -> None:
    asked = units(*given)
    found = walk(plan(asked, most=most, forward=cost))
    assert sorted(place for unit, _ in found for place, _ in unit.continuations) == list(range(len(asked)))


@settings(max_examples=200, deadline=None)
@given(prompts, st.integers(0, 20))
def test_a_row_of_several_units_fits_a_forward(given: list[tuple[int, ...]], cost: int) -> None:
    waiting = [plan(units(*given, continuation=(1, 2, 3)), most=20, forward=cost)]
    while waiting:
        node = waiting.pop()
        for leaf in node.leaves():
            assert len(leaf.units) == 1 or leaf.size(node.depth) <= 20
        waiting += node.inner()


def test_subjects_with_their_own_examples_are_beginnings_under_a_common_one() -> None:
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1000) for _ in range(count))

    opening = ids(40)
    subjects = [opening + ids(500) for _ in range(3)]
    root = plan(units(*(subject + ids(80) for subject in subjects for _ in range(30))), most=1024, forward=32)
    (top,) = root.items
    assert isinstance(top, Shared) and top.depth == 40
    assert sorted(inner.depth for inner in top.inner()) == [540, 540, 540] and not top.leaves()
    assert all(len(inner.leaves()) == 30 for inner in top.inner())


def test_a_small_family_goes_side_by_side_in_one_row() -> None:
    document = tuple(range(100))
    root = plan(units(*((*document, 200 + n, 300) for n in range(4))), most=1024, forward=32)
    (leaf,) = root.items
    assert isinstance(leaf, Leaf) and len(leaf.units) == 4 and leaf.size(0) == 100 + 4 * 2


def test_a_short_beginning_is_read_again() -> None:
    root = plan(units(*((1, 2, *([n] * 400)) for n in range(5, 8))), most=1024, forward=32)
    assert len(root.leaves()) == 3


def test_a_long_prompt_is_read_in_pieces_and_many_continuations_in_parts() -> None:
    (first,) = plan(units(tuple(range(250))), most=100, forward=32).items
    assert isinstance(first, Shared) and first.depth == 100
    (second,) = first.items
    assert isinstance(second, Shared) and second.depth == 200 and second.leaves()[0].size(200) == 50
    many = Unit((1, 2, 3), tuple((n, (n, n, n, n)) for n in range(60)))
    parts = walk(plan([many], most=100, forward=32))
    assert len(parts) > 1 and sum(len(unit.continuations) for unit, _ in parts) == 60
    assert all(unit.tokens <= 100 for unit, _ in parts)


def test_a_thousand_prompts_that_continue_each_other() -> None:
    found = walk_flat(plan(units(*(tuple(range(n + 1)) for n in range(1000))), most=10_000, forward=0))
    assert found == 1000


def walk_flat(root: Shared) -> int:
    count, waiting = 0, [root]
    while waiting:
        node = waiting.pop()
        count += sum(len(leaf.units) for leaf in node.leaves())
        waiting += node.inner()
    return count
