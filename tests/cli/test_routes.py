from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli import main
from luthier.gateway.config import read_config
from luthier.gateway.serve import running
from luthier.gateway.targets.stock import Stock

EXAMPLE = Path(__file__).parents[2] / "examples" / "gateway" / "gateway.yaml"
DOCUMENT = {
    "models": {"a": "fake:yes", "b": "fake:no"},
    "routes": {"r": {"strategy": "canary", "baseline": "a", "canary": "b"}},
}


def call(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT))
    return path


def test_the_example_is_right() -> None:
    config = read_config(EXAMPLE)
    assert set(Stock().check(config)) == {"small", "stand-in", "embedder"}
    assert {each.strategy for each in config.routes.values()} == {"fallback", "length", "ab", "canary"}


def test_routes_of_a_file(file: Path, home: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("routes", "-c", str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"id": "r", "strategy": "canary", "targets": ["a", "b"]}]
    assert call("routes", "-c", str(file)) == 0
    assert "canary" in capsys.readouterr().out


def test_a_file_that_is_wrong(file: Path, home: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(yaml.safe_dump({**DOCUMENT, "models": {"a": "fake:yes"}}))
    assert call("routes", "-c", str(file)) == 2
    assert "'b' is neither a model nor a route" in capsys.readouterr().err
    assert call("routes", "-c", str(file.with_name("none.yaml"))) == 2


def test_a_server_with_models_of_its_file_alone(file: Path, home: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with running((), config=file) as base_url:
        server = ("--server", base_url)
        assert call("routes", *server) == 0
        assert "running" in capsys.readouterr().out
        assert call("routes", "reset", "r", *server) == 0
        assert call("models", "load", "fake:x,y", "--as", "c", *server) == 0
        assert call("models", "load", "fake:x,y", "--as", "c", *server) == 2
        assert "served already" in capsys.readouterr().err
        assert call("models", "load", "fake:z", "--as", "c", "--swap", *server) == 0
        assert call("models", "unload", "c", *server) == 0
        assert call("models", "unload", "c", *server) == 2
        assert call("models", "unload", "a", *server) == 2
        assert "target of the route 'r'" in capsys.readouterr().err
        assert call("routes", *server, "--api-key-env", "NOT_SET_ANYWHERE") == 2


def test_no_server(home: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("routes", "--server", "http://127.0.0.1:1") == 6
    assert "luthier serve" in capsys.readouterr().err
