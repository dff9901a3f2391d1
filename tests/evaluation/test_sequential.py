from __future__ import annotations

import random

import pytest

from luthier.evaluation.sequential import WorseRate


def watch(
    old: float,
    new: float,
    share: float,
    requests: int,
    alpha: float,
    seed: int,
    *,
    later: tuple[int, float] | None = None,
) -> tuple[int, int] | None:
    """(requests, requests of the new system) until the test speaks; None when it never does. ``later``: from when on the new rate is another."""
    draw, test, asked = random.Random(seed), WorseRate(), 0
    for number in range(requests):
        if draw.random() < share:
            rate = new if later is None or number < later[0] else later[1]
            asked += 1
            test.new(draw.random() < rate)
        else:
            test.old(draw.random() < old)
        if test.rejects(alpha):
            return number + 1, asked
    return None


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.1), (0.01, 0.5), (0.05, 0.1), (0.3, 0.5), (0.05, 0.9)])
def test_it_seldom_accuses_the_innocent_however_often_it_looks(rate: float, share: float) -> None:
    """200 pairs with equal rates, looked at after each of 3,000 requests, at alpha 0.1: 20 are allowed; the chance of 33 or more is 0.2%."""
    accused = sum(watch(rate, rate, share, 3000, 0.1, seed) is not None for seed in range(200))
    assert accused <= 32


def test_a_rate_that_changes_for_both_is_nobodys_fault() -> None:
    """Both systems fail more at night."""
    accused = 0
    for seed in range(100):
        draw, test = random.Random(seed), WorseRate()
        for number in range(3000):
            bad = draw.random() < (0.3 if number // 500 % 2 else 0.01)
            (test.new if draw.random() < 0.2 else test.old)(bad)
            if test.rejects(0.1):
                accused += 1
                break
    assert accused <= 19


@pytest.mark.parametrize(
    ("old", "new", "share", "most"),
    [(0.01, 1.0, 0.05, 8), (0.01, 0.5, 0.05, 40), (0.01, 0.1, 0.05, 300), (0.05, 0.2, 0.2, 400)],
)
def test_it_finds_what_is_worse_after_few_requests(old: float, new: float, share: float, most: int) -> None:
    found = [watch(old, new, share, 200_000, 0.005, seed) for seed in range(20)]
    assert all(each is not None and each[1] <= most for each in found)


def test_a_change_that_comes_late_is_found_as_well() -> None:
    """After 20,000 good requests the new system begins to fail half of the time."""
    for seed in range(3):
        found = watch(0.01, 0.01, 0.1, 30_000, 0.005, seed, later=(20_000, 0.5))
        assert found is not None
        assert 20_000 < found[0] < 21_000


def test_what_is_better_is_never_accused() -> None:
    assert all(watch(0.3, 0.1, 0.5, 3000, 0.1, seed) is None for seed in range(20))


def test_the_e_variable_has_a_mean_of_at_most_one() -> None:
    """Exactly, by summing over every outcome of a block, for several pairs of rates with new <= old."""
    from itertools import product
    from math import comb

    test = WorseRate(margin=0.05)
    for _ in range(10):
        test.old(False)
        test.new(True)  # it expects much worse
    for old, new, (first, second) in product((0.05, 0.2, 0.6), (0.05, 0.2, 0.6), ((1, 1), (7, 1), (1, 4))):
        mean = 0.0
        for old_bad, new_bad in product(range(first + 1), range(second + 1)):
            test._block = (first, old_bad, second, new_bad)
            chance = comb(first, old_bad) * old**old_bad * (1 - old) ** (first - old_bad)
            chance *= comb(second, new_bad) * new**new_bad * (1 - new) ** (second - new_bad)
            mean += chance * test._factor()
        assert new > old or mean <= 1 + 1e-12
        assert (old, new) != (0.05, 0.6) or mean > 1


def test_nothing_is_known_before_both_were_seen() -> None:
    test = WorseRate()
    for _ in range(100):
        test.new(True)
    assert (test.evidence, test.blocks, test.rates) == (1.0, 0, (0.0, 1.0))
