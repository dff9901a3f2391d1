from __future__ import annotations

from itertools import combinations

import pytest

from luthier.tournament import figures
from luthier.tournament.plots import HEIGHT, WIDTH, Measured, Plot, _box, plot


def measured(name: str, x: float | None, value: float, kept: bool = False) -> Measured:
    return Measured(name, 0, x, value, value - 0.04, value + 0.04, name, kept)


def drawn(*points: Measured) -> Plot:
    return plot("t", "x", "y", points, figures.count)


def test_points_are_where_their_figures_are() -> None:
    p = drawn(measured("a", 10, 0.2), measured("b", 1000, 0.8), measured("c", 100, 0.5))
    a, b, c = p.points
    assert a.x < c.x < b.x
    assert c.x == pytest.approx((a.x + b.x) / 2, abs=0.2), "the axis is logarithmic"
    assert c.y == pytest.approx((a.y + b.y) / 2, abs=0.2)
    assert b.y < a.y, "up is better"
    for point in p.points:
        assert point.high < point.y < point.low
        assert p.left <= point.x <= p.right
        assert p.top - 0.1 <= point.high <= point.low <= p.bottom + 0.1


def test_nothing_trained_has_a_place_of_its_own() -> None:
    p = drawn(measured("none", 0, 0.3), measured("some", 5000, 0.8))
    none, some = p.points
    assert p.divider is not None
    assert none.x < p.divider < some.x
    assert p.x_ticks[0].text == "none"
    assert drawn(measured("a", 5, 0.3)).divider is None


def test_only_free_and_only_unknown_costs() -> None:
    p = drawn(measured("a", 0, 0.3), measured("b", 0, 0.5))
    assert [t.text for t in p.x_ticks] == ["none"]
    assert p.divider is None
    p = drawn(measured("a", None, 0.3), measured("b", 3, 0.5))
    assert p.missing == ("a",)
    assert [x.name for x in p.points] == ["b"]
    assert drawn(measured("a", None, 0.5)).points == ()


@pytest.mark.parametrize("costs", [(5.0,), (1.0, 1.1), (3.0, 40.0), (0.004, 0.19), (3850.0, 22.6e6), (1.0, 1e12)])
def test_ticks_are_few_round_and_inside(costs: tuple[float, ...]) -> None:
    p = drawn(*(measured(str(c), c, 0.5) for c in costs))
    assert 1 <= len(p.x_ticks) <= 7
    assert all(p.left - 0.1 <= t.at <= p.right + 0.1 for t in p.x_ticks)
    assert [t.at for t in p.x_ticks] == sorted({t.at for t in p.x_ticks})
    assert 2 <= len(p.y_ticks) <= 8


@pytest.mark.parametrize(("low", "high"), [(0.86, 0.88), (0.1, 0.9), (0.0, 0.02), (0.97, 1.0), (-30.0, 45.0)])
def test_the_score_axis_holds_every_interval(low: float, high: float) -> None:
    p = drawn(measured("a", 1, low), measured("b", 2, high))
    assert all(p.top - 0.2 <= x.high <= x.low <= p.bottom + 6 for x in p.points)
    assert len({t.text for t in p.y_ticks}) == len(p.y_ticks)


def test_names_do_not_cover_each_other() -> None:
    p = drawn(
        measured("full", 0.0042, 0.885),
        measured("linear-probe", 0.0041, 0.868, kept=True),
        measured("lora", 0.064, 0.845),
        measured("zero-shot", 0.061, 0.14),
        measured("few-shot", 0.19, 0.15),
    )
    boxes = [_box((x.label_x, x.label_y, x.anchor), len(x.name) * 6.3) for x in p.points]
    for a, b in combinations(boxes, 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])
    assert all(box[0] >= 0 and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT for box in boxes)
