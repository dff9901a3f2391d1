"""Forgetting: the papers' equations on a triangle worked out by hand, and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import InputError
from luthier.evaluation.forgetting import draw, forgetting

R = [[0.9], [0.95, 0.8], [0.6, 0.7, 0.5]]


def test_the_equations() -> None:
    found = forgetting(R)
    assert found.average == pytest.approx((0.6 + 0.7 + 0.5) / 3)
    assert found.learning == pytest.approx((0.9 + 0.8 + 0.5) / 3)
    assert found.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert found.by_task == pytest.approx((0.95 - 0.6, 0.8 - 0.7))  # the first was best after the second step
    assert found.forgetting == pytest.approx((0.35 + 0.1) / 2)


def test_less_is_better() -> None:
    """A perplexity that rose from 2 to 5 was forgotten."""
    found = forgetting([[2.0], [5.0, 3.0]], lower_is_better=True)
    assert (found.forgetting, found.backward_transfer, found.average) == (3.0, -3.0, 4.0)


def test_one_task_has_nothing_to_forget() -> None:
    found = forgetting([[0.7]])
    assert (found.average, found.learning, found.backward_transfer, found.forgetting) == (0.7, 0.7, None, None)


@pytest.mark.parametrize("bad", [[], [[0.1, 0.2]], [[0.1], [0.2]]])
def test_other_shapes(bad: list[list[float]]) -> None:
    with pytest.raises(InputError, match=r"row i must hold i \+ 1 scores"):
        forgetting(bad)


def test_the_picture(tmp_path: Path) -> None:
    draw(R, ["autumn", "winter", "spring"], tmp_path / "a.png", title="support")
    draw(R[:1], ["autumn", "winter", "spring"], tmp_path / "b.png")  # after the first step
    draw([[20.0], [30.0, 20.0]], ["a", "b"], tmp_path / "c.png")
    pictures = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png")]
    assert all(picture[:4] == b"\x89PNG" for picture in pictures) and len(set(pictures)) == 3
