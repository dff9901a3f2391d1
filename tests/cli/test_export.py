"""``luthier export``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.models.gguf import check_gguf


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_it_says_what_it_made_and_where(tiny_decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.gguf"
    assert run("export", tiny_decoder, "--type", "q8_0", "--name", "small", "--out", str(copy)) == 0
    said = capsys.readouterr().out
    assert "small" in said and "whole model, Q8_0" in said and str(copy) in said and "luthier serve small" in said
    assert check_gguf(copy).quantization == "Q8_0"


def test_json(tiny_decoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", tiny_decoder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["target"], found["holds"], found["type"]) == (
        "tiny-decoder-f16",
        tiny_decoder,
        "model",
        "F16",
    )
    assert Path(found["file"]).stat().st_size == found["bytes"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nobody"], 2, "luthier pull"),
        (["tiny-decoder", "--type", "Q9"], 2, "Q8_0"),
        (["tiny-decoder", "--swap"], 2, "no LoRA file"),
    ],
)
def test_errors(
    arguments: list[str], code: int, text: str, tiny_decoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", *arguments) == code
    assert text in capsys.readouterr().err


def test_certify_prints_the_certificate_and_decides_the_exit_code(
    tiny_decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = tmp_path / "task.yaml"
    task.write_text("name: sorting\ndata: {path: rows.jsonl}\nscorers: accuracy\n")
    assert run("export", tiny_decoder, "--certify", str(task), "--margin", "0.9") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "certify PASS" in said
    assert "within the margin of 0.9" in said
    assert run("export", tiny_decoder, "--certify", str(task), "--margin", "0.001", "--json") == 1
    found = json.loads(capsys.readouterr().out)["certificate"]
    assert found["verdict"] == "inconclusive"
    assert found["needed"] > found["examples"] == 10
