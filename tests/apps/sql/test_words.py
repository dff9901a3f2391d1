from __future__ import annotations

import pytest

from luthier.apps.sql.limits import Result
from luthier.apps.sql.words import grounded, plain

RESULT = Result(("city", "total"), (("Oslo", 1234.567), ("Bergen", 5)))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Oslo has 1,234.57.", True), ("Oslo has 1235.", True), ("Oslo has 1234.567 and Bergen 5.", True), ("There are 2 cities.", True),
        ("In 2026 it was 5.", True), ("Oslo has 1,233.", False), ("Oslo has 12345.67.", False), ("No numbers at all.", True), ("Oslo has 1234.5.", False),
        ("```sql\nSELECT 5\n```", False), ("SELECT total FROM t", False), ("With 5, Bergen is last.", True),
    ],
)  # fmt: skip
def test_numbers_must_be_the_results(text: str, good: bool) -> None:
    assert grounded(text, "How much in 2026?", RESULT) is good


def test_plain_statements() -> None:
    assert plain("q", Result(("a",))) == "No rows match: the query returned nothing."
    assert plain("问", Result(("a",))) == "没有符合条件的数据:查询结果为空。"
    assert plain("q", Result(("a", "b"), ((1, None),))) == "a: 1; b: NULL"
    assert plain("q", RESULT) == "The query returned 2 rows."
    assert "more than 2 rows" in plain("q", Result(("a",), ((1,), (2,)), cut=True))
