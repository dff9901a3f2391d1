from __future__ import annotations

import numpy as np
import pytest

from luthier.core import catalog
from luthier.core.errors import InputError, NotFoundError
from luthier.scorers._score import Resampler, aggregate


@pytest.mark.parametrize("name", catalog.names("scorers"))
def test_every_scorer_gives_a_perfect_answer_one_and_resamples_to_its_own_figure(name: str) -> None:
    entry = catalog.load("scorers", name)
    config = entry.configure()
    targets = ["a", "b", "c", "a", "b", "a"]
    answers = ["a", "b", "a", "a", "c", "b"]
    assert entry("a", "a", config).value == 1.0
    assert entry("a", "b", config).value == 0.0
    assert aggregate(entry, config, targets, targets) == 1.0
    itself = Resampler(entry, config, answers, targets)(np.ones((1, 6), dtype=np.float32))
    assert itself == pytest.approx([aggregate(entry, config, answers, targets)])


@pytest.mark.parametrize("name", catalog.names("scorers"))
def test_resampling_equals_scoring_the_drawn_examples(name: str) -> None:
    entry = catalog.load("scorers", name)
    config = entry.configure()
    draw = np.random.default_rng(3)
    targets = [str(x) for x in draw.integers(0, 3, 60)]
    answers = [t if draw.random() < 0.7 else str(draw.integers(0, 4)) for t in targets]
    rows = draw.integers(0, 60, size=(5, 60))
    counts = np.stack([np.bincount(row, minlength=60) for row in rows]).astype(np.float32)
    expected = [aggregate(entry, config, [answers[i] for i in row], [targets[i] for i in row]) for row in rows]
    assert Resampler(entry, config, answers, targets)(counts) == pytest.approx(expected)


def test_an_aggregate_without_a_fast_path_is_resampled_by_repetition() -> None:
    entry = catalog.load("scorers", "macro_f1")

    class Slow:
        def optional(self, name: str) -> object:
            return None if name == "resampled" else entry.optional(name)

    counts = np.array([[2, 0, 1, 1], [1, 1, 1, 1]], dtype=np.float32)
    fast = Resampler(entry, entry.configure(), ["a", "b", "a", "b"], ["a", "b", "b", "b"])(counts)
    slow = Resampler(Slow(), entry.configure(), ["a", "b", "a", "b"], ["a", "b", "b", "b"])(counts)  # type: ignore[arg-type]
    assert slow == pytest.approx(fast)


def test_unknown_scorers_and_options_are_named() -> None:
    with pytest.raises(NotFoundError, match="macro_f1"):
        catalog.load("scorers", "macrof1")
    with pytest.raises(InputError, match="casefold"):
        catalog.load("scorers", "exact").configure({"casefolded": True})
