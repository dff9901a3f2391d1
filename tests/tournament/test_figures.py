from __future__ import annotations

import pytest

from luthier.tournament import figures


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (7, "7"), (999, "999"), (3_850, "3.9 K"), (460_800, "461 K"), (22_713_216, "22.7 M"), (135e6, "135 M"), (1.24e9, "1.2 B"), (999_960, "1.0 M")],
)  # fmt: skip
def test_counts(value: float | None, text: str) -> None:
    assert figures.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.00002, "< 0.1 ms"),
        (0.0042, "4.2 ms"),
        (0.00996, "10 ms"),
        (0.0421, "42 ms"),
        (0.9994, "999 ms"),
        (1.25, "1.2 s"),
    ],
)
def test_latency(value: float | None, text: str) -> None:
    assert figures.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.0161, "16 kB"), (3.74, "3.7 MB"), (45.4, "45 MB"), (269.1, "269 MB"), (14_200.0, "14.2 GB")],
)  # fmt: skip
def test_sizes(value: float | None, text: str) -> None:
    assert figures.megabytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (4.21, "4.2 s"), (11.4, "11 s"), (59.7, "1 min 00 s"), (214, "3 min 34 s"), (7384, "2 h 03 min")]
)  # fmt: skip
def test_durations(value: float | None, text: str) -> None:
    assert figures.duration(value) == text


def test_differences_and_probabilities() -> None:
    assert [figures.signed(v) for v in (0.123, -0.123, -0.001, 0.0)] == ["+0.12", "−0.12", "+0.00", "+0.00"]
    assert [figures.probability(p) for p in (0.0002, 0.004, 0.21, 1.0)] == [
        "p < 0.001",
        "p = 0.004",
        "p = 0.21",
        "p = 1.00",
    ]
    assert figures.metric("macro_f1") == "macro F1"
    assert figures.metric("accuracy") == "accuracy"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0, "0"), (0.000123, "0.00012"), (0.05, "0.05"), (0.1, "0.10"), (12.345, "12.35")],
)
def test_money_is_never_nothing_when_it_is_not_known(value: float | None, text: str) -> None:
    assert figures.money(value) == text


def test_tokens_and_shares() -> None:
    assert [figures.tokens(v) for v in (None, 3.21, 9.96, 1234.5)] == ["–", "3.2", "10", "1,234"]
    assert figures.share(0.125) == "12%"


def test_earlier_predictions() -> None:
    from luthier.training.preflight import Errors

    assert figures.prediction_errors(None) == "no earlier run to compare a prediction with"
    assert (
        figures.prediction_errors(Errors(1, 0.04, 0.2, True))
        == "1 earlier prediction: off by 20% in time, 4% in memory"
    )
    assert figures.prediction_errors(Errors(3, 0.04, 0.2, False)).startswith("3 earlier predictions of other kinds")
