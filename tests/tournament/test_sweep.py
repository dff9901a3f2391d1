"""Sweeps over small bases with a made-up embedder: what is shared, what is chosen, what proves it, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.document import Document
from luthier.core.errors import ConflictError, DataError, InputError, NotFoundError
from luthier.knowledge import measure as measuring
from luthier.knowledge.base import open_base
from luthier.knowledge.parse import parse_file
from luthier.store.database import open_store
from luthier.store.knowledge import list_bases
from luthier.store.runs import list_runs
from luthier.tournament import sweep as sweeping
from luthier.tournament.board import Board
from luthier.tournament.sweep import combinations_of, read_sweep, sweep

TOWNS = ("Dresden", "Hamburg", "Basel", "Cologne", "杭州", "苏州", "兰州", "济南")


@pytest.fixture
def given(home: Path, tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "towns"
    folder.mkdir()
    rows = []
    for number, name in enumerate(TOWNS, 3):
        text = f"{name} has {number} bridges." if name.isascii() else f"{name}有{number}座桥。"
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
        asked = f"How many bridges has {name} ?" if name.isascii() else f"{name}有几座桥？"
        rows += [{"question": asked, "answers": [str(number)], "source": f"{name}.md"}]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "documents": str(folder),
        "questions": str(path),
        "embedders": ["fake"],
        "chunkers": ["recursive", {"name": "fixed", "tokens": 16}],
        "retrievers": ["dense", "keyword"],
        "k": [1, 3],
    }


def test_a_sweep(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    real = parse_file

    def parse(path: str, options: Any = None) -> Document:
        parsed.append(path)
        return real(path, options)

    monkeypatch.setattr(sweeping, "parse_file", parse)
    stages: list[str] = []
    swept = sweep(given, create="best", progress=lambda stage, done, total: stages.append(stage))
    assert sorted(parsed) == sorted(set(parsed))
    assert len(parsed) == len(TOWNS)
    board = swept.board
    assert {s.name for s in board.standings} == {
        f"{chunker} / fake / {step}" for chunker in ("recursive", "fixed(tokens=16)") for step in ("dense", "keyword")
    }
    assert board.standings[0].score["value"] == 1.0
    assert "keyword" in board.standings[0].name
    assert all(s.artifact_mb for s in board.standings)
    assert set(board.frontiers) >= {"latency", "index size"}
    assert swept.chosen == board.verdict["keep"]
    asked = {record.id for s in board.standings for record in measured(s.eval_run)}
    proved = {record.id for record in measured(swept.proof["run"])}
    assert not asked & proved  # what chose does not prove
    assert len(asked) + len(proved) == len(TOWNS)
    assert "held-out questions" in board.verdict["reasons"][-1]
    assert list(Board.load(Path(board.folder)).verdict["reasons"]) == list(board.verdict["reasons"])
    assert any(stage.startswith("4/4 ") for stage in stages)
    assert [each.name for each in list_bases(open_store())] == ["best"]
    with open_base("best") as best:
        assert len(best.documents()) == len(TOWNS)
        assert best.search(f"How many bridges has {TOWNS[0]} ?", 1)[0].source.endswith(f"{TOWNS[0]}.md")


def measured(run: str) -> Any:
    from luthier.evaluation.records import load_records
    from luthier.store.runs import find_run

    store = open_store()
    return load_records(store, find_run(store, run))


def test_an_interrupted_sweep_goes_on_and_a_finished_one_is_found(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    real = measuring.measure

    def stops(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(sweeping, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        sweep(given)
    store = open_store()
    assert {run.kind: run.status for run in list_runs(store)}["tournament"] == "interrupted"
    before = {run.id for run in list_runs(store) if run.kind == "eval"}
    swept = sweep(given)
    after = {run.id for run in list_runs(store) if run.kind == "eval"}
    assert before < after
    assert {s.eval_run for s in swept.board.standings} >= before
    again = sweep(given)
    assert again.board.run == swept.board.run
    assert (again.chosen, again.proof) == (swept.chosen, swept.proof)
    assert {run.id for run in list_runs(store) if run.kind == "eval"} == after
    assert list_bases(store) == []


def test_a_combination_that_fails_is_on_the_board(given: dict[str, Any]) -> None:
    swept = sweep({**given, "chunkers": ["recursive"], "retrievers": ["keyword", [{"name": "rerank"}, "keyword"]]})
    failed = swept.board.standings[-1]
    assert failed.status == "failed"
    assert "rerank" in failed.reason
    assert swept.chosen == "recursive / fake / keyword"


def test_all_that_fail(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no combination could be measured"):
        sweep({**given, "retrievers": [["rerank"]]})


def test_a_file_with_paths_of_its_own(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("retrieval: [mmr, {name: dense, exact: true}]\n", encoding="utf-8")
    path = tmp_path / "towns-sweep.yaml"
    path.write_text(
        "documents: towns\nquestions: questions.jsonl\nembedders: fake\nretrievers: [hybrid, search.yaml]\n",
        encoding="utf-8",
    )
    config = read_sweep(path)
    assert config.name == "towns-sweep"
    assert (config.documents, config.questions) == ((given["documents"],), given["questions"])
    assert [each.name for each in combinations_of(config)] == [
        "recursive / fake / hybrid",
        "recursive / fake / mmr + dense(exact=True)",
    ]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"chunkers": ["recursiv"]}, NotFoundError, "recursiv"),
        ({"embedders": ["nobody"]}, NotFoundError, "nobody"),
        ({"retrievers": ["dense", "dense"]}, InputError, "is there twice"),
        ({"retrievers": ["nothing.yaml"]}, InputError, "nothing"),
        ({"documents": "/no/such/folder"}, InputError, "no such file"),
        ({"questions": "/no/questions.jsonl"}, DataError, "questions"),
        ({"k": [0]}, InputError, "k must be"),
        ({"share": 1.5}, InputError, "share"),
        ({"chunks": 3}, InputError, "chunks"),
        ({"documents": []}, InputError, "documents"),
    ],
)
def test_bad_input(given: dict[str, Any], changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        sweep({**given, **changes})


def test_a_name_that_is_taken_is_refused_before_anything_is_done(given: dict[str, Any]) -> None:
    sweep({**given, "chunkers": ["recursive"], "retrievers": ["keyword"]}, create="best")
    with pytest.raises(ConflictError, match="best"):
        sweep(given, create="best")
    assert measuring.KS == (1, 5, 10)
