"""``luthier kb sweep``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    rows = []
    for number, name in enumerate(("Dresden", "Hamburg", "杭州", "苏州")):
        (tmp_path / "texts" / f"{name}.md").write_text(f"{name} {number + 3}", encoding="utf-8")
        rows.append({"question": f"{name} ?", "answers": [str(number + 3)], "source": f"{name}.md"})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def test_a_board_and_a_base(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["kb", "sweep", "--documents", str(folder / "texts"), "--questions", str(folder / "q.jsonl")]
    assert run(*asked, "--embedder", "fake", "--retrieval", "keyword,mmr+dense", "-k", "1,2", "--create", "best") == 0
    said = capsys.readouterr()
    for text in ("recursive / fake / keyword", "recursive / fake / mmr + dense", "verdict"):
        assert text in said.out
    assert "held-out questions" in " ".join(said.out.replace("│", " ").split())
    assert run("kb", "list", "--json") == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["best"]


def test_a_file_and_what_is_said_beside_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "towns.yaml"
    path.write_text("documents: texts\nquestions: q.jsonl\nembedders: fake\nretrievers: [dense]\n", encoding="utf-8")
    assert run("kb", "sweep", str(path), "--retrieval", "keyword", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"] == "recursive / fake / keyword"
    assert found["against"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--questions", "q.jsonl"), "--documents is missing"),
        (("--documents", "texts"), "--questions is missing"),
        (("nothing.yaml",), "nothing.yaml"),
        (("--documents", "nowhere", "--questions", "q.jsonl", "--embedder", "fake"), "nowhere"),
        (("--documents", "texts", "--questions", "q.jsonl", "-k", "x"), "k must be"),
    ],
)
def test_bad_input(
    folder: Path,
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert run("kb", "sweep", *arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())
