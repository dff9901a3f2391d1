"""Whether two queries mean the same, judged by their rows: execution accuracy (Yu et al. 2018, https://arxiv.org/abs/1809.08887)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from typing import Any

_MOST_ORDERS = 5040


def same_rows(one: Sequence[Sequence[Any]], other: Sequence[Sequence[Any]], *, ordered: bool) -> bool:
    """Whether two results are equal: numbers to six digits, the order of rows only when ``ordered``, that of columns never.

    Columns that are exchanged are exchanged in every row alike (Zhong et al. 2020, https://arxiv.org/abs/2010.02840).
    """
    left, right = ([tuple(map(_value, row)) for row in rows] for rows in (one, other))
    if len(left) != len(right):
        return False
    if not left:
        return True
    if len(left[0]) != len(right[0]):
        return False

    def equal(rows: list[tuple[Any, ...]]) -> bool:
        return rows == right if ordered else Counter(rows) == Counter(right)

    if equal(left):
        return True
    columns = [Counter(column) for column in zip(*left, strict=True)]
    wanted = [Counter(column) for column in zip(*right, strict=True)]
    for tried, order in enumerate(permutations(range(len(columns)))):
        if tried >= _MOST_ORDERS:
            return False
        if all(columns[at] == want for at, want in zip(order, wanted, strict=True)) and equal(
            [tuple(row[at] for at in order) for row in left]
        ):
            return True
    return False


def _value(value: Any) -> Any:
    if value is None:
        return None
    try:
        return float(f"{float(value):.6g}") if not isinstance(value, str) else value
    except (TypeError, ValueError, OverflowError):
        return str(value)
