from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.core.trace import Trace
from luthier.store.database import open_store
from luthier.store.traces import record_traces

WINDOWS = ("--since", "2026-01-05", "--until", "2026-01-10")


@pytest.fixture(autouse=True)
def traces(home: Path) -> None:
    def made(day: int, word: str) -> list[Trace]:
        return [
            Trace(
                f"t{day}-{n}", f"2026-01-{day + n % 3:02d}T{n % 24:02d}:00:00.000Z", "desk", "chat",
                ({"role": "user", "content": f"tell me about the {word} number {n % 7} please"},), "yes", {"user": f"u{n}"},
                completion_tokens=1 + n % 5, finish_reason="stop", latency_s=0.1 + n % 3,
            )
            for n in range(60)
        ]  # fmt: skip

    record_traces(open_store(), made(1, "violin") + made(5, "invoice"))


def run(*arguments: str) -> int:
    try:
        main(["drift", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_board(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("desk", *WINDOWS, "--png", str(tmp_path / "d.png"), "--html", str(tmp_path / "d.html")) == 0
    shown = capsys.readouterr().out
    cells = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    lines = {row[1]: " ".join(row) for row in cells if row[0] in ("prompts", "answers", "people")}
    assert "changed" in lines["meaning"]
    assert "no change seen" in lines["length (tokens)"]
    assert "not tested" in lines["log-probability a"]
    assert "60 requests of 60 users" in shown
    assert "tell me about the invoice" in shown
    assert "would be seen four times in five" in shown
    assert (tmp_path / "d.png").exists()
    assert "<table>" in (tmp_path / "d.html").read_text()


def test_as_json_and_as_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("desk", *WINDOWS, "--json", "--fail") == 1
    assert "prompts: meaning" in json.loads(capsys.readouterr().out)["shifted"]
    assert (
        run("desk", "--since", "2026-01-03", "--until", "2026-01-04", "--baseline", "2026-01-01..2026-01-02", "--fail")
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "there is no trace of nobody"),
        (["desk", "--since", "x"], "since"),
        (["desk", *WINDOWS, "--embedder", "nothing"], "nothing"),
    ],
)
def test_what_cannot_be(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err
