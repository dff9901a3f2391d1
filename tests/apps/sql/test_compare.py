from __future__ import annotations

import decimal

import pytest

from luthier.apps.sql.compare import same_rows


@pytest.mark.parametrize(
    ("one", "other", "ordered", "same"),
    [
        ([(1, "a")], [(1.0, "a")], True, True),
        ([(1,), (2,)], [(2,), (1,)], False, True),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], True, True),
        ([(1, 2), (2, 3)], [(2, 3), (1, 2)], True, False),
        ([(1, "a"), (2, "b")], [("b", 1), ("a", 2)], False, False),
        ([(1, 2), (3, 4)], [(2, 1), (4, 3)], False, True),
        ([(1, 2), (3, 4)], [(2, 1), (3, 4)], False, False),
        ([(1,)], [(1,), (1,)], False, False),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False),
        ([(1,)], [(1, 2)], False, False),
        ([], [], True, True),
        ([(None,)], [("",)], False, False),
        ([(None,)], [(None,)], False, True),
        ([(0.1 + 0.2,)], [(0.3,)], False, True),
        ([(decimal.Decimal("2.50"),)], [(2.5,)], False, True),
        ([("1",)], [(1,)], False, False),
        ([(True,)], [(1,)], False, True),
    ],
)
def test_same_rows(one: list[tuple[object, ...]], other: list[tuple[object, ...]], ordered: bool, same: bool) -> None:
    assert same_rows(one, other, ordered=ordered) is same
    assert same_rows(other, one, ordered=ordered) is same
