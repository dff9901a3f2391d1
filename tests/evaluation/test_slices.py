from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from luthier.core import catalog
from luthier.core.errors import InputError
from luthier.evaluation.loop import Scorer
from luthier.evaluation.records import Record
from luthier.evaluation.slices import Part, parts_of, reversals, slice_figures
from luthier.evaluation.statistics import holm, wilson_interval


def scorer(name: str) -> Scorer:
    entry = catalog.load("scorers", name)
    return Scorer(name, entry, entry.configure())


def records(draw: np.random.Generator, sizes: dict[str, tuple[int, float]]) -> list[Record]:
    """Right with the probability of their part; every third lacks the second key."""
    out = []
    for value, (count, right) in sizes.items():
        for _ in range(count):
            i = len(out)
            target = "ab"[i % 2]
            answer = target if draw.random() < right else "ba"[i % 2]
            slices = {"length": value} | ({"source": "mail" if i % 4 < 2 else "web"} if i % 3 else {})
            score = {"accuracy": float(target == answer), "macro_f1": float(target == answer)}
            out.append(Record(i, str(i), "", "", target, answer, score, slices=slices))
    return out


@pytest.fixture
def rows() -> list[Record]:
    return records(np.random.default_rng(0), {"short": (150, 0.9), "long": (60, 0.5), "middle": (90, 0.8)})


def test_every_slice_has_its_figure_and_interval(rows: list[Record]) -> None:
    found = slice_figures(scorer("accuracy"), rows, resamples=2000)
    assert [(s.key, s.value) for s in found][:3] == [("length", "short"), ("length", "middle"), ("length", "long")]
    assert {(s.key, s.value) for s in found[3:]} == {("source", "mail"), ("source", "web")}
    for s in found:
        part = [r for r in rows if r.slices.get(s.key) == s.value]
        right = np.mean([r.scores["accuracy"] for r in part])
        expected = wilson_interval(float(right), len(part))
        assert (s.examples, s.figure.value) == (len(part), pytest.approx(right))
        assert (s.figure.low, s.figure.high) == pytest.approx((expected.low, expected.high))


def test_what_differs_from_the_rest_is_told_with_holm(rows: list[Record]) -> None:
    found = slice_figures(scorer("accuracy"), rows, resamples=4000)
    by_value = {s.value: s for s in found}
    inside = [r.scores["accuracy"] for r in rows if r.slices["length"] == "long"]
    outside = [r.scores["accuracy"] for r in rows if r.slices["length"] != "long"]
    assert by_value["long"].difference == pytest.approx(np.mean(inside) - np.mean(outside))
    assert [s.p_adjusted for s in found] == pytest.approx(holm([s.p for s in found]))  # type: ignore[misc]
    assert by_value["long"].p_adjusted < 0.01 < 0.05 < by_value["mail"].p_adjusted  # type: ignore[operator]
    middle = by_value["middle"]
    inside = [r.scores["accuracy"] for r in rows if r.slices["length"] == "middle"]
    outside = [r.scores["accuracy"] for r in rows if r.slices["length"] != "middle"]
    assert middle.p == pytest.approx(stats.ttest_ind(inside, outside, equal_var=False).pvalue, abs=0.03)


def test_other_figures_and_chosen_keys(rows: list[Record]) -> None:
    from sklearn.metrics import f1_score

    found = slice_figures(scorer("macro_f1"), rows, ["source"], resamples=300)
    assert {s.key for s in found} == {"source"}
    for s in found:
        part = [r for r in rows if r.slices.get("source") == s.value]
        assert s.figure.value == pytest.approx(
            f1_score([r.target for r in part], [r.answer for r in part], average="macro")
        )
        assert s.figure.low < s.figure.value < s.figure.high


def test_a_slice_that_is_everything_has_no_rest() -> None:
    rows = records(np.random.default_rng(0), {"short": (30, 0.9)})
    found = slice_figures(scorer("accuracy"), rows, ["length"], resamples=100)
    assert (found[0].difference, found[0].p, found[0].p_adjusted) == (None, None, None)
    assert slice_figures(scorer("accuracy"), []) == []


def test_equal_slices_are_seldom_told_apart() -> None:
    draw = np.random.default_rng(4)
    wrong = 0
    for _ in range(150):
        rows = records(draw, {"a": (60, 0.7), "b": (60, 0.7), "c": (60, 0.7)})
        wrong += min(s.p_adjusted for s in slice_figures(scorer("accuracy"), rows, ["length"], resamples=300)) < 0.05  # type: ignore[type-var]
    assert wrong / 150 <= 0.09


KIDNEY = {  # two treatments of kidney stones (Charig et al., 1986): success by size of the stone
    "open surgery": {"size": {"small": Part(87, 81 / 87), "large": Part(263, 192 / 263)}},
    "percutaneous": {"size": {"small": Part(270, 234 / 270), "large": Part(80, 55 / 80)}},
}
WHOLE = {"open surgery": 273 / 350, "percutaneous": 289 / 350}


def test_the_kidney_stones_are_a_paradox() -> None:
    assert [round(100 * v) for v in WHOLE.values()] == [78, 83]
    (found,) = reversals(KIDNEY, WHOLE)
    assert (found.slices_winner, found.whole_winner) == ("open surgery", "percutaneous")
    assert (found.key, found.won, found.slices) == ("size", 2, 2)
    assert "by size, open surgery is better in every slice, yet percutaneous over all examples (0.826 to 0.780)" in str(
        found
    )


def test_where_less_is_better_the_other_one_wins() -> None:
    failures = {
        name: {"size": {v: Part(p.examples, 1 - p.figure) for v, p in parts["size"].items()}}
        for name, parts in KIDNEY.items()
    }
    (found,) = reversals(failures, {name: 1 - v for name, v in WHOLE.items()}, lower_is_better=True)
    assert found.slices_winner == "open surgery"


def test_who_wins_most_slices_and_loses_the_whole_is_told_and_no_paradox_is_silent() -> None:
    def parts(*figures: float) -> dict[str, dict[str, Part]]:
        return {"topic": {str(i): Part(10, figure) for i, figure in enumerate(figures)}}

    most = {"a": parts(0.9, 0.9, 0.1), "b": parts(0.8, 0.8, 0.9)}
    (found,) = reversals(most, {"a": 0.63, "b": 0.83})
    assert (found.slices_winner, found.won, found.slices) == ("a", 2, 3) and "2 of 3 slices" in str(found)
    assert reversals({"a": parts(0.9, 0.1), "b": parts(0.8, 0.9)}, {"a": 0.5, "b": 0.85}) == [], (
        "one of two is no majority"
    )
    assert reversals(most, {"a": 0.9, "b": 0.83}) == []
    assert reversals(most, {"a": 0.83, "b": 0.83}) == []
    assert reversals({"a": parts(0.9), "b": parts(0.8)}, {"a": 0.1, "b": 0.2}) == [], "one slice is no pattern"


def test_slices_of_a_result_fit() -> None:
    slices = {"size": {"small": {"examples": 87, "value": 0.93}}}
    assert parts_of(slices) == {"size": {"small": Part(87, 0.93)}}
    with pytest.raises(InputError, match="no figure for percutaneous; it has open surgery"):
        reversals(KIDNEY, {"open surgery": 0.78})
