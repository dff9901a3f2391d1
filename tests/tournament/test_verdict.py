from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from luthier.tournament.board import Comparison, Standing, rank
from luthier.tournament.verdict import decide, simplicity

COST: dict[str, tuple[int, float, float]] = {
    # trained parameters, MB of the base, latency
    "zero_shot": (0, 370.0, 0.2),
    "few_shot": (0, 370.0, 0.4),
    "lora": (900_000, 370.0, 0.2),
    "full": (22_000_000, 91.0, 0.006),
    "linear_probe": (4_000, 91.0, 0.006),
}


def standing(name: str, value: float, **more: object) -> Standing:
    trained, base, latency = COST.get(name, (0, 1.0, 1.0))
    values: dict[str, object] = {
        "name": name,
        "way": name,
        "model": "minilm-l6" if base == 91.0 else "smollm2-135m",
        "status": "done",
        "score": {"value": value, "low": value - 0.05, "high": value + 0.05, "level": 0.95},
        "counts": {"examples": 280},
        "trainable_parameters": trained,
        "base_mb": base,
        "latency_p50_s": latency,
    }
    return Standing(**{**values, **more})  # type: ignore[arg-type]


def compared(standings: tuple[Standing, ...], level: float = 0.06) -> list[Comparison]:
    """Differences under ``level`` are not detected."""
    done = [s for s in standings if s.status == "done"]
    out = []
    for a, b in combinations(reversed(done), 2):  # the leader comes last, as ``second``
        gap = a.score["value"] - b.score["value"]
        p = 0.21 if abs(gap) < level else 0.0002
        out.append(Comparison(a.name, b.name, gap, gap - 0.04, gap + 0.04, p / 3, p))
    return out


def verdict_on(*standings: Standing):  # type: ignore[no-untyped-def]
    ranked = rank(standings)
    return decide(ranked, compared(ranked), "macro_f1")


def test_a_clear_winner() -> None:
    verdict = verdict_on(standing("zero_shot", 0.25), standing("full", 0.87), standing("lora", 0.7))
    assert verdict.sentence == (
        "full on minilm-l6 wins: macro F1 0.87 [0.82, 0.92], +0.17 over lora (p < 0.001), +0.62 over zero_shot (p < 0.001)."
    )
    assert (verdict.leader, verdict.keep, verdict.level_with) == ("full", "full", ())
    assert verdict.reasons == ()


def test_no_detectable_difference_keeps_the_simpler() -> None:
    verdict = verdict_on(standing("zero_shot", 0.25), standing("full", 0.87), standing("linear_probe", 0.86))
    assert verdict.sentence == (
        "full on minilm-l6 leads: macro F1 0.87 [0.82, 0.92], +0.62 over zero_shot (p < 0.001); no detectable difference to "
        "linear_probe (−0.01, p = 0.21): keep the simplest, linear_probe."
    )
    assert (verdict.leader, verdict.keep, verdict.level_with) == ("full", "linear_probe", ("linear_probe",))
    assert verdict.reasons[0] == "linear_probe is simpler than full: it trains 4.0 K parameters against 22.0 M."
    assert "280 test examples, a true difference under about 0.06" in verdict.reasons[1]


def test_the_leader_can_be_the_simplest_itself() -> None:
    verdict = verdict_on(standing("linear_probe", 0.87), standing("full", 0.86))
    assert verdict.sentence.endswith("keep linear_probe, which is also the simplest of them.")
    assert verdict.keep == "linear_probe"


@pytest.mark.parametrize(
    ("simpler", "other"),
    [("zero_shot", "linear_probe"), ("linear_probe", "full"), ("full", "lora"), ("zero_shot", "few_shot")],
)
def test_the_order_of_simplicity(simpler: str, other: str) -> None:
    assert simplicity(standing(simpler, 0.5)) < simplicity(standing(other, 0.9))


def test_what_is_not_known_is_not_simple() -> None:
    assert simplicity(standing("x", 0.5, base_mb=None)) > simplicity(standing("zero_shot", 0.5))
    assert simplicity(standing("x", 0.5, latency_p50_s=None)) > simplicity(standing("x", 0.5))


def test_failed_entrants_are_left_out() -> None:
    failed = standing("lora", 0.0, status="failed", reason="out of memory", score={})
    verdict = verdict_on(standing("zero_shot", 0.3), failed, standing("full", 0.8))
    assert "lora" not in verdict.sentence
    assert verdict_on(failed).sentence == "No entrant finished, so there is nothing to compare."
    alone = verdict_on(failed, standing("full", 0.8))
    assert alone.sentence.startswith("Only full on minilm-l6: macro F1 0.80 [0.75, 0.85] finished")
    assert alone.keep == "full"


def test_answers_that_were_no_labels_are_told() -> None:
    verdict = verdict_on(
        standing("zero_shot", 0.3, counts={"examples": 50, "unparsed": 12, "errors": 1}), standing("full", 0.8)
    )
    assert "zero_shot: 12 of its answers were none of the labels and count as wrong." in verdict.reasons
    assert "zero_shot: 1 of the examples were refused by its engine and count as wrong." in verdict.reasons


def test_many_that_cannot_be_told_apart_are_counted() -> None:
    verdict = verdict_on(*(standing(f"e{i}", 0.8 - i / 1000) for i in range(6)))
    assert "and 2 more: keep" in verdict.sentence


def test_a_little_less_latency_decides_nothing() -> None:
    verdict = verdict_on(standing("x", 0.8, latency_p50_s=0.0050), standing("y", 0.79, latency_p50_s=0.0049))
    assert verdict.keep == "x", "of equally simple ones, the better score"
    halved = verdict_on(standing("x", 0.8, latency_p50_s=0.0050), standing("y", 0.79, latency_p50_s=0.0020))
    assert halved.keep == "y"
    assert halved.reasons[0] == "y is simpler than x: it answers in 2.0 ms against 5.0 ms."


def test_equal_answers_are_told_as_such() -> None:
    a, b = standing("a", 0.8), standing("b", 0.8)
    verdict = decide((a, b), [Comparison("a", "b", 0.0, 0.0, 0.0, 1.0, 1.0)], "accuracy")
    assert "Their answers score alike on all 280 test examples." in verdict.reasons


def test_where_lower_is_better_the_words_say_so() -> None:
    standings = rank(
        [standing("a", 9.0), standing("b", 12.0)],
        lower_is_better=True,
    )
    assert [s.name for s in standings] == ["a", "b"]
    found = decide(
        standings, [Comparison("a", "b", -3.0, -4.0, -2.0, 0.001, 0.001)], "perplexity", lower_is_better=True
    )
    assert found.leader == found.keep == "a"
    assert found.sentence.startswith("a on smollm2-135m wins: perplexity (lower is better) 9.00")
    assert "−3.00 against b" in found.sentence


def test_seeds_searches_and_the_frontier_are_among_the_reasons() -> None:
    trained = replace(
        standing("a", 0.9), trainable_parameters=10, seeds=({"seed": 0}, {"seed": 1}), trials=({"number": 0},) * 8
    )
    standings = rank([trained, standing("b", 0.5)])
    found = decide(
        standings,
        [Comparison("a", "b", 0.4, 0.3, 0.5, 0.001, 0.001)],
        "accuracy",
        frontiers={"latency": ["b", "a"], "memory": ["b"]},
    )
    assert "Scores of a are means over 2 seeds" in found.reasons[0]
    assert "trials: a 8" in found.reasons[1]
    assert found.test.startswith("Student's t over test examples and seeds")
    assert found.reasons[2] == "Nobody scores better than a at its latency or less."
