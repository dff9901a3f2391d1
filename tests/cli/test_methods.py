"""``luthier methods``: the table, one method in full, JSON, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.core import catalog
from luthier.methods._describe import FAMILIES


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return int(raised.value.code or 0)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def lines(text: str) -> dict[str, str]:
    return {line.split()[0]: line for line in text.splitlines() if line.split()}


def test_the_list_says_cost_engines_and_paper(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    said = capsys.readouterr()
    found = lines(said.out)
    assert set(catalog.names("methods")) <= set(found)
    lora = found["lora"].split()
    assert (
        lora[:2] == ["lora", "2,442,240"]
        and "GB" in lora
        and lora.count("swap") == 2
        and "Hu et al. 2022" in found["lora"]
    )
    assert found["freeze"].split().count("merge") == 1 and "Ben Zaken et al. 2022" in found["bitfit"]
    assert (
        "26,498*" in found["bitfit"] and "merge" not in found["prompt"]
    )  # a Llama has no biases: counted in the encoder
    titles = [
        line.split("  ")[0].strip() for line in said.out.splitlines() if line.strip() and not line.startswith("  ")
    ]
    assert [t for t in titles if t in {f.title for f in FAMILIES.values()}] == [f.title for f in FAMILIES.values()]
    assert "luthier methods show lora" in said.err and "fish_mask: method fish_mask: data is required" in said.err


def test_engines_are_those_of_the_models_architecture(tiny_t5: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "--model", tiny_t5) == 0
    said = capsys.readouterr()
    rows = {words[0]: words[1:] for line in said.out.splitlines() if (words := line.split())}
    assert rows["lora"][0] == "18,432" and rows["lora"][3:5] == ["swap", "no"]
    assert rows["full"][3:5] == ["merge", "no"]
    assert rows["linear_probe"][:2] == ["-", "Alain"]
    assert "linear_probe: needs encoder" in said.err


def test_parameters_of_a_model(tiny_decoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "--model", tiny_decoder) == 0
    said = capsys.readouterr()
    found = lines(said.out)
    assert "8,192" in found["lora"] and "160" in found["layer_norm"]
    assert "bitfit: method bitfit trains bias terms; tiny-decoder" in said.err
    assert float(found["full"].split()[2]) >= float(found["layer_norm"].split()[2]) > 0  # GB


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal(
    width: int, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from luthier.cli import _print

    console = Console(width=width)
    monkeypatch.setattr(_print, "out", lambda: console)
    assert run("methods") == 0
    said = capsys.readouterr().out
    assert "what is trained" not in said and max(len(line.rstrip()) for line in said.splitlines()) <= width
    rows = [line for line in said.splitlines() if line.startswith("   ") and line.strip()]
    if width == 100:  # one line a method
        assert len(rows) == len(catalog.names("methods")) and all("swap" in row or "merge" in row for row in rows)


def test_figures_are_those_of_the_code() -> None:
    """When it fails: python benchmarks/figures.py."""
    from luthier.methods._describe import figures

    path = Path(__file__).parents[2] / "benchmarks" / "figures.py"
    spec = importlib.util.spec_from_file_location("benchmarks_figures", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    counted = module.counted()
    assert set(counted) == set(catalog.names("methods"))
    for method, rows in counted.items():
        for model, row in rows.items():
            told = figures()[method][model]
            assert {key: getattr(told, key) for key in row} == row, (method, model)


@pytest.mark.parametrize("name", catalog.names("methods"))
def test_every_method_is_of_a_family(name: str) -> None:
    assert catalog.load("methods", name).module.FAMILY in FAMILIES


def test_json_holds_everything(tiny_encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "--json", "--model", tiny_encoder) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["linear_probe"]["parameters"] == {
        "trained": 66,
        "total": found["full"]["parameters"]["total"],
        "why_not": "",
        "share": pytest.approx(66 / found["full"]["parameters"]["total"], abs=1e-8),
        "memory_mb": pytest.approx(found["linear_probe"]["parameters"]["memory_mb"]),
        "speed": found["linear_probe"]["parameters"]["speed"],
    }
    assert found["lora"]["parameters"]["speed"] == 1.0 < found["linear_probe"]["parameters"]["speed"]
    assert found["lora"]["serving"]["decoder"] == {"torch": "swap", "llamacpp": "swap"}
    assert {option["key"]: option["default"] for option in found["lora"]["options"]}["rank"] == 8


def test_one_method_with_its_options(tiny_decoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "show", "lora", "--model", tiny_decoder) == 0
    said = capsys.readouterr().out
    assert said.startswith("LoRA: a low-rank correction")
    assert "in tiny-decoder" in said and "8,192 of" in said and "https://arxiv.org/abs/2106.09685" in said
    found = lines(said)
    assert all(word in found["rank"] for word in ("whole number, ≥ 1", "8", "r of the correction"))
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
