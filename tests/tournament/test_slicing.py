from __future__ import annotations

from luthier.core.run import Run
from luthier.evaluation.result import EvalResult
from luthier.tournament.board import Board, Standing, rank
from luthier.tournament.slicing import simpson_warnings, slice_rows, slices_over_seeds


def part(examples: int, value: float) -> dict[str, float]:
    return {"examples": examples, "value": value}


def standing(name: str, value: float, **slices: dict[str, float]) -> Standing:
    return Standing(
        name, "w", "m", "done", score={"value": value, "low": value, "high": value}, slices={"lang": slices}
    )


PAIR = (
    standing("one", 0.7, de=part(10, 0.5), en=part(90, 0.72)),
    standing("two", 0.65, de=part(10, 0.6), en=part(90, 0.73)),
)


def test_simpsons_paradox_is_told() -> None:
    said = simpson_warnings(PAIR)
    assert len(said) == 1
    assert "by lang, two is better in every slice, yet one over all examples" in said[0]
    assert simpson_warnings(PAIR, lower_is_better=True)
    assert simpson_warnings([Standing("x", "w", "m", "failed")]) == []


def test_rows_name_the_best_of_each_part() -> None:
    task = {"primary": "accuracy", "lower_is_better": []}
    board = Board("r", "t", "now", task, rank(PAIR), (), {})
    rows = slice_rows(board)
    assert [(r["key"], r["value"], r["examples"]) for r in rows] == [("lang", "de", 10), ("lang", "en", 90)]
    assert [[c["best"] for c in r["cells"]] for r in rows] == [[False, True], [False, True]]
    falling = Board("r", "t", "now", {**task, "lower_is_better": ["accuracy"]}, PAIR, (), {})
    assert [[c["best"] for c in r["cells"]] for r in slice_rows(falling)] == [[True, False], [True, False]]


def test_parts_are_averaged_over_seeds() -> None:
    results = [
        EvalResult(Run("r", "eval", "done"), "m", "t", "test", "own", "s", {}, slices={"lang": {"de": part(4, value)}})
        for value in (0.5, 0.7)
    ]
    assert slices_over_seeds(results)["lang"]["de"] == {"examples": 4, "value": 0.6}
