"""The loss curve as a PNG and in characters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from luthier.training.curve import draw, smooth, text

RECORDS = [
    {
        "step": s,
        "loss": 2 * math.exp(-s / 20),
        "learning_rate": 1e-3,
        **({"validation_loss": 1.0} if s % 10 == 0 else {}),
    }
    for s in range(1, 41)
]


def test_png(tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw(RECORDS, tmp_path / "curve.png", title="a run")
    pixels = imread(tmp_path / "curve.png")
    assert pixels.shape[0] > 300 and pixels.shape[1] > 600
    assert pixels[..., :3].std() > 0.02


def test_one_step_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    odd = [{"step": 1, "loss": float("nan"), "learning_rate": 1e-3}, {"step": 2, "loss": 1.0, "learning_rate": 1e-3}]
    draw(odd, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert text(odd, colour=False)
    assert text([], colour=False)


def test_characters_stay_in_their_frame_and_fall_with_the_loss() -> None:
    picture = text(RECORDS, width=60, height=12, colour=False).splitlines()
    assert len(picture) <= 12 and max(map(len, picture)) <= 60
    assert "\x1b" not in "".join(picture)
    assert "\x1b" in text(RECORDS)
    marks = [line.split("│", 1)[-1] for line in picture if "│" in line or "┤" in line]
    assert any("⠀" < c < "⣿" for line in marks for c in line)


def test_smoothing_is_unbiased_at_the_start() -> None:
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smooth([1.0, 0.0], 0.5) == pytest.approx([1.0, 0.25 / 0.75])


def test_rewards_of_sampled_answers_have_a_picture_of_their_own(tmp_path: Path) -> None:
    from matplotlib.image import imread

    judged = [r | {"reward": r["step"] / 40, "validation_reward": 0.5, "answer_tokens": 9.0} for r in RECORDS]
    draw(RECORDS, tmp_path / "plain.png")
    draw(judged, tmp_path / "judged.png", title="a run")
    assert imread(tmp_path / "judged.png").shape[0] > 1.5 * imread(tmp_path / "plain.png").shape[0]
    assert "training reward (line), validation reward (dots)" in text(judged, colour=False)
    of_a_reward_model = [r | {"reward": 0.1} for r in RECORDS]
    assert "training loss (line)" in text(of_a_reward_model, colour=False)
    draw(of_a_reward_model, tmp_path / "model.png")
    assert imread(tmp_path / "model.png").shape == imread(tmp_path / "plain.png").shape
