from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.errors import StoreError
from luthier.core.message import user
from luthier.core.run import Run
from luthier.core.task import PromptTemplate, Task
from luthier.evaluation.records import Record
from luthier.evaluation.result import EvalResult, summarise
from luthier.tournament.board import BOARD_HTML, BOARD_JSON, Board, Standing, compare_all, rank

Make = Callable[..., Board]


def test_a_board_survives_the_disk_and_holds_plain_data_only(make_board: Make, tmp_path: Path) -> None:
    board = make_board()
    board.save(tmp_path)
    again = Board.load(tmp_path)
    plain = json.loads(json.dumps(board.as_dict()))
    assert json.loads((tmp_path / BOARD_JSON).read_text()) == plain == json.loads(json.dumps(again.as_dict()))
    assert again.folder == str(tmp_path)
    assert again.finished[0].name == "full"
    assert (tmp_path / BOARD_HTML).read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("content", [None, "{not json", "{}"])
def test_a_missing_or_damaged_board_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / BOARD_JSON).write_text(content)
    with pytest.raises(StoreError, match=r"board\.json: no readable board"):
        Board.load(tmp_path)


def test_ranks(make_board: Make) -> None:
    board = make_board()
    assert [(s.rank, s.name.split()[0]) for s in board.standings] == [
        (1, "full"),
        (2, "linear-probe"),
        (3, "lora"),
        (4, "few-shot"),
        (5, "zero-shot"),
        (0, "remote"),
    ]
    first, second, third = board.finished[:3]
    tied = rank([third, replace(second, score=first.score), first])
    assert [(s.rank, s.name.split()[0]) for s in tied] == [(1, "linear-probe"), (1, "full"), (3, "lora")]


def test_comparisons_with_the_leader_point_away_from_it(make_board: Make) -> None:
    board = make_board()
    assert board.against_leader("full") is None
    assert board.against_leader("remote") is None
    found = board.against_leader("few-shot")
    assert found is not None
    assert (found.first, found.value) == ("full", pytest.approx(0.885 - 0.31))
    swapped = replace(
        board, comparisons=tuple(replace(c, first=c.second, second=c.first, value=-c.value, low=-c.high, high=-c.low) for c in board.comparisons)
    )  # fmt: skip
    assert swapped.against_leader("few-shot") == found


def answered(targets: np.ndarray, answers: np.ndarray, task: Task) -> EvalResult:  # type: ignore[type-arg]
    pairs = enumerate(zip(targets, answers, strict=True))
    records = [Record(i, str(i), "", "", str(t), str(a), {"accuracy": float(t == a)}) for i, (t, a) in pairs]
    rest = {"model": "m", "task": "t", "split": "test", "strategy": "own", "latency": {}, "memory": {}, "seconds": 0.0}
    return EvalResult.from_run(Run("r", "eval", "done", summary={**summarise(task, records), **rest}), records)


def test_all_pairs_are_compared_on_the_same_examples() -> None:
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, 300)
    empty = Dataset("x", "labelled", ())
    rows = Dataset("x", "labelled", tuple(Example(str(i), user("x"), str(t)) for i, t in enumerate(targets)))
    task = Task(
        "t", "classify", Splits(empty, empty, rows), PromptTemplate(labels=("0", "1", "2")), (("accuracy", {}),)
    )
    systems = {
        name: np.where(draw.random(300) < right, targets, draw.integers(0, 3, 300))
        for name, right in (("good", 0.9), ("same", 0.88), ("bad", 0.3))
    }
    results = {name: [answered(targets, answers, task)] for name, answers in systems.items()}
    found = {(c.first, c.second): c for c in compare_all(task, results)}
    assert set(found) == {("good", "same"), ("good", "bad"), ("same", "bad")}
    right = {name: (answers == targets).astype(float) for name, answers in systems.items()}
    for (a, b), c in found.items():
        assert c.value == pytest.approx(right[a].mean() - right[b].mean())
        assert c.low <= c.value <= c.high
        assert c.p == pytest.approx(stats.ttest_rel(right[a], right[b]).pvalue, abs=0.06)
        assert c.p_adjusted >= c.p
    assert found["good", "bad"].p_adjusted < 0.001 < 0.05 < found["good", "same"].p_adjusted
    assert compare_all(task, {"good": results["good"]}) == ()


def test_a_board_of_an_earlier_version_is_read_and_drawn(make_board: Make, tmp_path: Path) -> None:
    board = make_board()
    old = json.loads(json.dumps(board.as_dict()))
    for key in ("frontiers", "settings"):
        del old[key]
    new = (
        "seeds",
        "trials",
        "chosen",
        "spent",
        "repeats",
        "predicted",
        "prompt_tokens",
        "completion_tokens",
        "price_per_1000",
        "slices",
    )
    for line in old["standings"]:
        for key in new:
            del line[key]
    (tmp_path / BOARD_JSON).write_text(json.dumps(old))
    again = Board.load(tmp_path)
    assert [s.name for s in again.standings] == [s.name for s in board.standings]
    assert not again.lower_is_better
    again.save(tmp_path)
    assert "unknown" in (tmp_path / BOARD_HTML).read_text(), "what was not measured then is not 0"


def test_where_lower_is_better_the_lowest_leads() -> None:
    standings = [Standing(name, "w", "m", "done", score={"value": value}) for name, value in (("a", 3.0), ("b", 2.0))]
    assert [(s.name, s.rank) for s in rank(standings, lower_is_better=True)] == [("b", 1), ("a", 2)]
    assert [(s.name, s.rank) for s in rank(standings)] == [("a", 1), ("b", 2)]
