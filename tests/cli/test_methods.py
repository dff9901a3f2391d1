"""``luthier methods``: the table, one method in full, JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.core import catalog


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return int(raised.value.code or 0)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def lines(text: str) -> dict[str, str]:
    return {line.split()[0]: line for line in text.splitlines() if line.split()}


def test_the_list_says_models_engines_and_paper(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    said = capsys.readouterr()
    found = lines(said.out)
    assert set(catalog.names("methods")) <= set(found)
    assert all(word in found["lora"] for word in ("decoder, encoder", "swap (decoder)", "Hu et al. 2022"))
    assert "merge (decoder)" in found["freeze"] and "Ben Zaken et al. 2022" in found["bitfit"]
    assert "luthier methods show lora" in said.err


def test_parameters_of_a_model(tiny_decoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "--model", tiny_decoder) == 0
    said = capsys.readouterr()
    found = lines(said.out)
    assert "8,192" in found["lora"] and "160" in found["layer_norm"] and "100.0%" in found["full"]
    assert "bitfit: method bitfit trains bias terms; tiny-decoder" in said.err


def test_a_narrow_terminal_shows_names(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("methods") == 0
    said = capsys.readouterr().out
    assert "only the bias terms" in said and max(map(len, said.splitlines())) <= 160


def test_json_holds_everything(tiny_encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "--json", "--model", tiny_encoder) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["linear_probe"]["parameters"] == {
        "trained": 66,
        "total": found["full"]["parameters"]["total"],
        "why_not": "",
        "share": pytest.approx(66 / found["full"]["parameters"]["total"], abs=1e-8),
    }
    assert found["lora"]["serving"]["decoder"] == {"torch": "swap", "llamacpp": "swap"}
    assert {option["key"]: option["default"] for option in found["lora"]["options"]}["rank"] == 8


def test_one_method_with_its_options(tiny_decoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "show", "lora", "--model", tiny_decoder) == 0
    said = capsys.readouterr().out
    assert said.startswith("LoRA: a low-rank correction")
    assert "in tiny-decoder" in said and "8,192 of" in said and "https://arxiv.org/abs/2106.09685" in said
    found = lines(said)
    assert all(word in found["rank"] for word in ("whole number", "8", "r of the correction"))
    assert "all_linear or list of text" in found["targets"]
    assert run("methods", "show", "linear_probe") == 0
    assert "no options" in capsys.readouterr().out
    assert run("methods", "show", "freeze", "--json") == 0
    assert json.loads(capsys.readouterr().out)["saves"] == "delta"


def test_names_that_are_not_known(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "show", "lroa") == 2
    assert "method 'lroa' is not known. Did you mean 'lora'" in capsys.readouterr().err
    assert run("methods", "--model", "smollm2-135m") == 2
    assert "luthier pull smollm2-135m" in capsys.readouterr().err
