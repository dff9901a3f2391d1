from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize

from luthier.core.errors import EvaluationError, InputError
from luthier.evaluation.ratings import CENTRE, SCALE, Match, bradley_terry, elo, tally, trueskill

# Win rates over 1,000 matches a pair, from a lecture on arenas: row over column.
RATES = {
    (1, 2): 0.90, (1, 3): 0.40, (1, 4): 0.15, (1, 5): 0.10, (2, 3): 0.60,
    (2, 4): 0.80, (2, 5): 0.80, (3, 4): 0.70, (3, 5): 0.10, (4, 5): 0.20,
}  # fmt: skip


def played(rates: dict[tuple[int, int], float], matches: int = 1000) -> list[Match]:
    out = []
    for (i, j), rate in rates.items():
        won = round(rate * matches)
        out += [Match(str(i), str(j), "first")] * won + [Match(str(i), str(j), "second")] * (matches - won)
    return out


def drawn(draw: np.random.Generator, strengths: dict[str, float], matches: int, nu: float = 0.0) -> list[Match]:
    """Matches from known strengths (nats); ``nu`` is Davidson's."""
    pairs = list(combinations(sorted(strengths), 2))
    out = []
    for _ in range(matches):
        i, j = pairs[draw.integers(len(pairs))]
        a, b = math.exp(strengths[i]), math.exp(strengths[j])
        weights = np.array([a, b, nu * math.sqrt(a * b)])
        kind = ("first", "second", "tie")[draw.choice(3, p=weights / weights.sum())]
        if draw.random() < 0.5:
            i, j, kind = j, i, {"first": "second", "second": "first", "tie": "tie"}[kind]
        out.append(Match(i, j, kind))  # type: ignore[arg-type]
    return out


def test_win_rates_count_ties_as_half() -> None:
    counted = tally(
        [Match("a", "b", "first"), Match("b", "a", "tie"), Match("c", "a", "first"), Match("a", "c", "first")]
    )
    assert counted.names == ("a", "b", "c")
    assert counted.win_rates[0].tolist()[1:] == [0.75, 0.5]
    assert counted.win_rates[1, 0] == 0.25
    assert np.isnan(counted.win_rates[1, 2])
    assert counted.games.tolist() == [[0, 2, 2], [2, 0, 0], [2, 0, 0]]


def test_bradley_terry_is_logistic_regression_and_a_general_optimiser() -> None:
    from sklearn.linear_model import LogisticRegression

    matches = played(RATES)
    ours = bradley_terry(matches, resamples=0)
    rows, won = [], []
    for (i, j), rate in RATES.items():
        row = np.zeros(5)
        row[i - 1], row[j - 1] = 1, -1
        for outcome, weight in ((1, rate), (0, 1 - rate)):
            rows += [row] * round(1000 * weight)
            won += [outcome] * round(1000 * weight)
    theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(rows, won).coef_[0]
    expected = CENTRE + SCALE * (theirs - theirs.mean())
    assert ours.values == pytest.approx(expected, abs=0.05)

    def loss(s: np.ndarray) -> float:  # type: ignore[type-arg]
        return sum(
            1000 * (rate * np.log1p(np.exp(s[j - 1] - s[i - 1])) + (1 - rate) * np.log1p(np.exp(s[i - 1] - s[j - 1])))
            for (i, j), rate in RATES.items()
        )

    found = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-6}).x
    assert ours.values == pytest.approx(CENTRE + SCALE * (found - found.mean()), abs=0.05)
    assert sum(ours.values) == pytest.approx(5 * CENTRE)
    assert not ours.steadied


def test_two_models_have_the_log_odds() -> None:
    ours = bradley_terry(played({(1, 2): 0.75}, 400), resamples=0)
    assert ours.of("1") - ours.of("2") == pytest.approx(400 * math.log10(3))
    tied = [Match("1", "2", "tie")] * 10 + [Match("1", "2", "first")] * 10
    assert bradley_terry(tied, resamples=0).of("1") - bradley_terry(tied, resamples=0).of("2") == pytest.approx(
        400 * math.log10(3)
    ), "a tie is half a win"


def test_davidson_is_the_maximum_of_its_likelihood_and_finds_the_true_parameters() -> None:
    strengths = {"a": 0.8, "b": 0.1, "c": -0.2, "d": -0.7}
    matches = drawn(np.random.default_rng(0), strengths, 4000, nu=0.9)
    ours = bradley_terry(matches, ties="davidson", resamples=0)

    def loss(x: np.ndarray) -> float:  # type: ignore[type-arg]
        s, nu = dict(zip("abcd", x, strict=False)), math.exp(x[4])
        total = 0.0
        for m in matches[:]:
            a, b = math.exp(s[m.first]), math.exp(s[m.second])
            tie = nu * math.sqrt(a * b)
            total -= math.log({"first": a, "second": b, "tie": tie}[m.winner] / (a + b + tie))
        return total

    at = [(v - CENTRE) / SCALE for v in ours.values] + [math.log(ours.tie_parameter or 0)]
    best = loss(np.array(at))
    for k in range(5):
        for step in (-0.01, 0.01):
            moved = list(at)
            moved[k] += step
            assert loss(np.array(moved)) > best
    assert ours.tie_parameter == pytest.approx(0.9, abs=0.08)
    assert at[:4] == pytest.approx(list(strengths.values()), abs=0.1)


def test_davidson_without_ties_is_bradley_terry() -> None:
    matches = played(RATES, 50)
    assert bradley_terry(matches, ties="davidson", resamples=0) == bradley_terry(matches, resamples=0)


@pytest.mark.parametrize("ties", ["half", "davidson"])
def test_intervals_hold_the_truth(ties: str) -> None:
    strengths = {"a": 0.6, "b": 0.0, "c": -0.6}
    draw = np.random.default_rng(4)
    held = total = 0
    for _ in range(60):
        matches = drawn(draw, strengths, 200, nu=0.6 if ties == "davidson" else 0.0)
        found = bradley_terry(matches, ties=ties, resamples=200, seed=1)  # type: ignore[arg-type]
        for name, low, high in zip(found.names, found.low, found.high, strict=True):
            held += low <= CENTRE + SCALE * strengths[name] <= high
            total += 1
        assert all(low <= v <= high for low, v, high in zip(found.low, found.values, found.high, strict=True))
    assert 0.9 <= held / total <= 0.99


def test_matches_over_one_prompt_are_drawn_together() -> None:
    """Ten copies of each match say no more than one: with groups the interval knows it."""
    once = drawn(np.random.default_rng(0), {"a": 0.5, "b": 0.0, "c": -0.5}, 120)
    ten = [match for match in once for _ in range(10)]
    groups = [i for i in range(120) for _ in range(10)]
    alone, copied = bradley_terry(once, seed=3), bradley_terry(ten, seed=3)
    grouped = bradley_terry(ten, groups=groups, seed=3)
    width = [high - low for low, high in zip(alone.low, alone.high, strict=True)]
    assert [high - low for low, high in zip(grouped.low, grouped.high, strict=True)] == pytest.approx(width, rel=0.02)
    assert copied.high[0] - copied.low[0] < 0.5 * width[0]
    with pytest.raises(InputError, match="one group a match; got 2 for 120"):
        bradley_terry(once, groups=[1, 2])


def test_equal_matches_give_equal_ratings() -> None:
    matches = drawn(np.random.default_rng(0), {"a": 0.5, "b": 0.0, "c": -0.5}, 60)
    assert bradley_terry(matches) == bradley_terry(matches)
    assert elo(matches) == elo(matches)
    assert bradley_terry(matches[::-1], resamples=0).values == pytest.approx(bradley_terry(matches, resamples=0).values)


def test_who_never_lost_is_steadied_and_stays_finite() -> None:
    matches = played({(1, 2): 1.0, (2, 3): 0.6, (1, 3): 1.0}, 10)
    found = bradley_terry(matches, resamples=200)
    assert found.steadied
    assert found.values[0] > max(found.values[1:])
    assert all(math.isfinite(v) for v in (*found.values, *found.low, *found.high))
    more = bradley_terry(played({(1, 2): 1.0, (2, 3): 0.6, (1, 3): 1.0}, 100), resamples=0)
    assert more.values[0] > found.values[0], "the more it won, the higher"


def test_groups_that_never_met_cannot_be_compared() -> None:
    matches = [Match("a", "b", "first"), Match("b", "a", "first"), Match("c", "d", "tie")]
    with pytest.raises(EvaluationError, match=r"2 groups that never met.*a, b \| c, d"):
        bradley_terry(matches)


@pytest.mark.parametrize("call", [tally, bradley_terry])
def test_without_matches_there_is_nothing_to_rate(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EvaluationError, match="no matches"):
        call([])


def test_bad_matches_and_options_are_refused() -> None:
    with pytest.raises(InputError, match="first, second or tie; got 'model_a'"):
        Match("a", "b", "model_a")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'a' against itself"):
        Match("a", "a", "tie")
    with pytest.raises(InputError, match="half or davidson"):
        bradley_terry([Match("a", "b", "tie")], ties="rao")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="k must be above 0"):
        elo([Match("a", "b", "tie")], k=0)
    with pytest.raises(InputError, match="draw_probability"):
        trueskill([Match("a", "b", "tie")], draw_probability=0.0)


def test_elo_worked_by_hand() -> None:
    found = elo([Match("a", "b", "first"), Match("a", "b", "tie")], k=32, start=1500, orders=0)
    assert found.of("a") == pytest.approx(1516 + 32 * (0.5 - 1 / (1 + 10 ** (-32 / 400))))
    assert found.of("a") + found.of("b") == pytest.approx(3000)


def test_elo_over_random_orders_is_the_mean_of_single_orders() -> None:
    matches = played(RATES, 6)
    draw = np.random.default_rng(7)
    singles = [elo([matches[i] for i in draw.permutation(len(matches))], orders=0).values for _ in range(20)]
    assert elo(matches, orders=20, seed=7).values == pytest.approx(np.mean(singles, axis=0))


def test_elo_and_bradley_terry_agree_on_the_order_of_clear_cases() -> None:
    strengths = {"a": 1.5, "b": 0.5, "c": -0.5, "d": -1.5}
    matches = drawn(np.random.default_rng(0), strengths, 1200)
    for ratings in (elo(matches), bradley_terry(matches, resamples=0)):
        assert sorted(ratings.names, key=ratings.of, reverse=True) == list("abcd")
    skills = trueskill(matches)
    assert sorted(skills, key=lambda name: skills[name].mean, reverse=True) == list("abcd")


@pytest.mark.parametrize("draw_probability", [0.1, 0.4])
def test_trueskill_is_that_of_its_package(draw_probability: float) -> None:
    import trueskill as package

    matches = drawn(np.random.default_rng(1), {"a": 1.0, "b": 0.0, "c": -1.0}, 150, nu=0.8)
    environment = package.TrueSkill(draw_probability=draw_probability)
    theirs = {name: environment.create_rating() for name in "abc"}
    for m in matches:
        one, other = (m.second, m.first) if m.winner == "second" else (m.first, m.second)
        theirs[one], theirs[other] = package.rate_1vs1(
            theirs[one], theirs[other], drawn=m.winner == "tie", env=environment
        )
    ours = trueskill(matches, draw_probability=draw_probability)
    for name in "abc":
        assert ours[name].mean == pytest.approx(theirs[name].mu, abs=1e-6)
        assert ours[name].deviation == pytest.approx(theirs[name].sigma, abs=1e-6)
        assert ours[name].conservative == pytest.approx(environment.expose(theirs[name]), abs=1e-5)


def test_trueskill_of_one_win_as_published() -> None:
    """Defaults of the paper, no ties: 25 +- 8.333 against itself becomes 29.396 +- 7.171 and 20.604 +- 7.171 with 10% draws."""
    found = trueskill([Match("a", "b", "first")], draw_probability=0.1)
    assert (found["a"].mean, found["b"].mean) == pytest.approx((29.396, 20.604), abs=1e-3)
    assert (found["a"].deviation, found["b"].deviation) == pytest.approx((7.171, 7.171), abs=1e-3)


def test_extreme_upsets_stay_finite() -> None:
    matches = [Match("a", "b", "first")] * 300 + [Match("a", "b", "second"), Match("a", "b", "tie")] * 3
    skills = trueskill(matches)
    assert all(math.isfinite(s.mean) and s.deviation > 0 for s in skills.values())


def test_many_models_are_quick() -> None:
    draw = np.random.default_rng(0)
    strengths = {f"m{i:02}": float(draw.normal()) for i in range(40)}
    found = bradley_terry(drawn(draw, strengths, 3000), resamples=100)
    assert np.corrcoef(found.values, [strengths[n] for n in found.names])[0, 1] > 0.95
