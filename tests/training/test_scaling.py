from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli import main
from luthier.core.errors import DataError, InputError
from luthier.store.database import open_store
from luthier.store.models import list_models
from luthier.store.runs import list_runs
from luthier.training.scaling import Cell, Report, doubts, read_grid, scaling
from luthier.training.scaling_fit import Point, fit
from luthier.training.scaling_plot import draw, text

SHAPES = [{"layers": 1, "width": width, "heads": 2} for width in (16, 32, 48)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"The parcel {n} has not arrived and the courier is late.\n\n" for n in range(120)))
    return path


def settings(**grid: Any) -> dict[str, Any]:
    return {
        "name": "parcels",
        "run": {
            "model": {
                "new": {"architecture": "llama", "context_length": 32, "tokenizer": {"train": {"vocabulary": 300}}}
            },
            "data": {"path": "corpus.txt"},
            "train": {"batch_size": 4, "dtype": "fp32", "learning_rate": 1e-2},
        },
        "grid": grid,
        "bootstrap": 0,
    }


def written(corpus: Path, **grid: Any) -> Path:
    path = corpus.parent / "scaling.yaml"
    path.write_text(yaml.safe_dump(settings(**grid)))
    return path


def test_a_grid_is_trained_once_fitted_drawn_and_kept(
    home: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(corpus, sizes=SHAPES, tokens=[400.0])
    report = scaling(path)
    assert [cell.size for cell in report.cells] == ["1x16", "1x32", "1x48"]
    assert all(0 < cell.tokens <= 400 and not cell.reused for cell in report.cells)
    assert report.cells[0].parameters < report.cells[1].parameters < report.cells[2].parameters
    assert Path(report.plot).read_bytes().startswith(b"\x89PNG")
    assert report.fit is None or report.fit.law == "parameters"
    assert Report.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    assert len({model.meta["new"]["tokenizer"]["digest"] for model in list_models(open_store(), "base")}) == 1

    again = scaling(path)
    assert all(cell.reused for cell in again.cells) and again.run == report.run
    assert len(list_runs(open_store(), "tune")) == 3 and len(list_runs(open_store(), "scaling")) == 1

    capsys.readouterr()
    assert run("show", report.run) == 0
    shown = capsys.readouterr().out
    assert "1x48" in shown and "scaling.png" in shown
    assert run("runs") == 0 and "3 trainings" in capsys.readouterr().out
    assert run("scaling", str(path), "grid.tokens=[400, 900]", "--plan", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert len(planned["trainings"]) == 6 and planned["seconds"] > 0


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_a_training_that_explodes_is_left_out(home: Path, corpus: Path) -> None:
    wanted = settings(sizes=SHAPES[:2], tokens=[300])
    wanted["run"]["data"] = {"path": str(corpus)}
    wanted["run"]["train"] |= {"learning_rate": 1e30, "clip": 0}
    report = scaling(wanted)
    assert report.cells == () and len(report.notes) == 2 and "left out, the " in report.notes[0]
    assert report.fit is None and "do not tell a scaling law" in report.why


def made_up(noise: float = 0.0) -> Report:
    cells = tuple(
        Cell(
            f"{n:.0e}",
            f"m{n}",
            "r",
            int(n),
            int(n / 2),
            int(d),
            1.7 + 400 / n**0.34 + 410 / d**0.28 + noise,
            1.0,
            False,
        )
        for n in (1e6, 4e6, 1.6e7)
        for d in (1e7, 4e7, 1.6e8)
    )
    found = fit([Point(c.parameters, c.tokens, c.loss) for c in cells], bootstrap=0)
    return Report("english", cells, found, (found.optimum(1e16),))


def test_pictures(tmp_path: Path) -> None:
    report = made_up()
    draw(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawn = text(report, width=70, colour=False)
    assert "best use of compute (line)" in drawn and max(map(len, drawn.splitlines())) <= 72
    one = Report("sizes", report.cells[::3], fit([Point(n, 1e7, n**-0.1) for n in (1e6, 1e7, 1e8)], bootstrap=0), ())
    draw(one, tmp_path / "b.png")
    assert (tmp_path / "b.png").exists()


def test_doubts_are_said() -> None:
    assert made_up().fit is not None and doubts(made_up().fit) == []  # type: ignore[arg-type]
    flat = fit(
        [Point(n, d, 400 / n**0.34 + 410 / d**0.28) for n in (1e6, 4e6, 1.6e7) for d in (1e7, 4e7, 1.6e8)], bootstrap=0
    )
    assert any("came out as nothing" in doubt for doubt in doubts(flat))


def test_the_grid_of_a_file(corpus: Path) -> None:
    wanted, planned = read_grid(written(corpus, sizes=["1m", SHAPES[0]], tokens=[5e5, 1_000_000]))
    assert wanted.name == "parcels"
    assert [(each.size, each.tokens) for each in planned] == [
        *(("1m", 500_000), ("1x16", 500_000)),
        *(("1m", 1_000_000), ("1x16", 1_000_000)),
    ]
    assert planned[0].config["model"]["new"]["size"] == "1m" and "size" not in planned[1].config["model"]["new"]
    assert planned[1].config["data"]["path"] == str(corpus) and planned[1].config["train"]["max_tokens"] == 500_000
    alone = read_grid(written(corpus, sizes=["1m", "2m", "5m"]))[1]
    assert [each.tokens for each in alone] == [None] * 3 and "max_tokens" not in alone[0].config["train"]
    other = corpus.parent / "run.yaml"
    other.write_text(yaml.safe_dump(settings()["run"]))
    assert read_grid({"run": str(other), "grid": {"sizes": ["1m"]}})[1][0].config["data"]["path"] == str(corpus)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grid": {}}, "grid must hold sizes, tokens or both"),
        ({"grid": {"sizes": ["7m"]}}, "a size must be one of 1m, .*got '7m'"),
        ({"grid": {"sizes": [{"layer": 2}]}}, "a shape holds layers, .*got 'layer'"),
        ({"grid": {"tokens": [0.5]}}, "tokens must be whole numbers of at least 1"),
        ({"run": {"model": "smollm2-135m"}}, "run.model must be a new model"),
        (
            {"run": {"model": {"new": {"architecture": "llama"}}, "name": "x"}},
            "run.name and run.model.new.name must be left out",
        ),
        ({"bootstrap": -1}, "bootstrap: .*got -1"),
        ({"grids": {}}, r"unknown key 'grids' \(python\)\. Did you mean 'grid'"),
    ],
)
def test_bad_grids(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_grid(settings(sizes=["1m"]) | change)


def test_without_held_out_rows(home: Path, corpus: Path) -> None:
    wanted = settings(sizes=SHAPES[:1], tokens=[100])
    wanted["run"]["data"] = {"train": str(corpus)}
    with pytest.raises(DataError, match="scaling compares losses on held-out rows"):
        scaling(wanted)


def test_measured_points_on_the_command_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "points.jsonl"
    rows = [{"parameters": c.parameters, "tokens": c.tokens, "loss": c.loss} for c in made_up().cells]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("scaling", "--points", str(path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fit"]["constants"]["alpha"] == pytest.approx(0.34, rel=1e-3) and len(found["optima"]) == 3
    assert run("scaling", "--points", str(path)) == 0 and "law    L = 1.700" in capsys.readouterr().out
    assert run("scaling") == 2 and "give either SCALING.yaml or --points" in capsys.readouterr().err
