"""What happens to rows that are too long or of the wrong kind."""

from __future__ import annotations

import pytest

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.message import user
from luthier.objectives._rows import Limits, require_kind, require_labels

ROW = Example("id", user("x"), "a", source="file.jsonl:3")


def test_a_row_that_fits_is_admitted() -> None:
    limits = Limits(10)
    assert limits.admit(ROW, 10, lambda: False)
    limits.check()


def test_error_collects_rows_and_names_the_first_ones() -> None:
    limits = Limits(10)
    for _ in range(12):
        assert not limits.admit(ROW, 11, lambda: True)
    with pytest.raises(
        DataError, match=r"(?s)12 rows are longer than the model's context of 10 tokens:.*3: 11 tokens.*and 2 more"
    ):
        limits.check()


def test_truncate_drops_what_cannot_be_cut() -> None:
    limits = Limits(10, "truncate")
    assert limits.admit(ROW, 11, lambda: True)
    assert not limits.admit(ROW, 11, lambda: False)
    assert (limits.truncated, limits.dropped) == (["file.jsonl:3"], ["file.jsonl:3"])
    limits.check()


def test_kinds_and_labels() -> None:
    data = Dataset("d", "labelled", (ROW,))
    require_kind(data, ("labelled",), "classify")
    require_labels(data, ("a",))
    with pytest.raises(UnsupportedError, match="objective sft needs data of kind chat; d is labelled"):
        require_kind(data, ("chat",), "sft")
    with pytest.raises(DataError, match=r"label 'a' does not occur in training \(file\.jsonl:3\); training has 'b'"):
        require_labels(data, ("b",))
