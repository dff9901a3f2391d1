from __future__ import annotations

import itertools
import math

import pytest

from luthier.core.errors import InputError
from luthier.scorers._score import Answer, Target
from luthier.scorers.pass_at_k import Config, pass_at_k, score

TARGET = Target("", meta={"test_list": ["assert f() == 1"]})
RIGHT, WRONG = "def f(): return 1", "def f(): return 2"


@pytest.mark.parametrize(
    ("n", "c", "k"), [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)]
)
def test_it_is_the_share_of_draws_of_k_with_at_least_one_that_passes(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))


def test_large_numbers_do_not_overflow() -> None:
    assert pass_at_k(20_000, 100, 1000) == pytest.approx(1 - math.comb(19_900, 1000) / math.comb(20_000, 1000))


def test_samples_are_run_and_counted() -> None:
    answer = Answer(RIGHT, samples=(RIGHT, WRONG, WRONG, "def f("))
    got = score(answer, TARGET, Config(k=2))
    assert got.value == pytest.approx(0.5)
    assert (got.detail["n"], got.detail["c"]) == (4, 1)
    assert score(Answer(RIGHT), TARGET, Config()).value == 1.0


def test_too_few_samples_are_an_error_that_says_what_to_set() -> None:
    with pytest.raises(InputError, match="samples: 5"):
        score(Answer(RIGHT, samples=(RIGHT, RIGHT)), TARGET, Config(k=5))
