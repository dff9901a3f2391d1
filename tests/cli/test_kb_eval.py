"""``luthier kb eval``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.engines.fake import Config, FakeEngine
from luthier.knowledge.base import create_base


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def questions(home: Path, tmp_path: Path) -> str:
    """A base ``towns`` of the fake embedder, and questions about it."""
    folder = tmp_path / "towns"
    folder.mkdir()
    rows = []
    for number, name in enumerate(("Dresden", "Hamburg", "杭州", "苏州")):
        text = f"{name} has {number + 3} bridges." if name.isascii() else f"{name}有{number + 3}座桥。"
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
        asked = f"How many bridges has {name}?" if name.isascii() else f"{name}有几座桥？"
        rows.append({"question": asked, "answers": [str(number + 3)], "source": f"{name}.md"})
    with create_base("towns", embedder="fake", engine=FakeEngine("fake", Config())) as made:
        made.add([folder])
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_figures_and_a_comparison_with_an_earlier_run(questions: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("kb", "eval", "towns", "--questions", questions, "--k", "1,3")
    assert run(*asked, "--retrieval", "keyword") == 0
    said = capsys.readouterr()
    for text in ("kb:towns on questions", "recall@1", "ndcg@3", "95% interval", "p99", "luthier show run_"):
        assert text in said.out
    first = said.err.split("--against ")[1].split()[0]
    assert run(*asked, "--retrieval", "[{name: dense, exact: true}]", "--against", first) == 0
    assert "paired bootstrap over 4 questions" in " ".join(capsys.readouterr().out.split())


def test_json_and_the_page(questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert (
        run("kb", "eval", "towns", "--questions", questions, "--retrieval", "keyword", "--json", "--html", str(page))
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["scores"]["recall@5"]["value"] == 1.0
    assert found["model"] == "kb:towns"
    assert "<svg" in page.read_text(encoding="utf-8")


def test_answers(questions: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (
        "kb",
        "eval",
        "towns",
        "--questions",
        questions,
        "--answers",
        "--model",
        "fake",
        "--judge",
        "fake",
        "--json",
    )
    assert run(*asked) == 0
    assert {"token_f1", "faithfulness", "citation_recall", "recall@5"} <= set(
        json.loads(capsys.readouterr().out)["scores"]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "is not known"),
        (("towns", "--k", "one"), "k must be whole numbers"),
        (("towns", "--k", "0"), "k must be numbers from 1"),
        (("towns", "--retrieval", "denser"), "denser"),
        (("towns", "--retrieval", "[3]"), "retrieval"),
        (("towns", "--retrieval", "nothing.yaml"), "nothing.yaml"),
        (("towns", "--answers"), "--answers needs the model"),
        (("towns", "--judge", "fake"), "add --answers"),
        (("towns", "--answers", "--model", "fake", "--mode", "stuf"), "stuf"),
        (("towns", "--against", "run_none"), "run_none"),
    ],
)
def test_bad_input(questions: str, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("kb", "eval", *arguments, "--questions", questions) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_broken_file(questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "x"\n', encoding="utf-8")
    assert run("kb", "eval", "towns", "--questions", str(broken)) == 2
    assert "broken.jsonl:1" in capsys.readouterr().err
