from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.core.trace import Trace
from luthier.store.database import open_store
from luthier.store.traces import record_traces


@pytest.fixture(autouse=True)
def traces(home: Path) -> None:
    asked = ({"role": "system", "content": "s"}, {"role": "user", "content": "where is [my] parcel? " * 9})
    record_traces(
        open_store(),
        [
            Trace(f"t{n}", f"2026-01-01T00:00:0{n}.000Z", f"m{n % 2}", "chat", asked, f"answer {n}", latency_s=0.5)
            for n in range(5)
        ]
        + [Trace("t5", "2026-01-01T00:00:05.000Z", "m1", "chat", asked, error="the engine failed")],
    )


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["traces", *arguments])
    assert not ended.value.code
    return capsys.readouterr().out


def test_the_newest_first_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "--limit", "3").splitlines()
    first = [line.split()[0] for line in lines if line.strip()]
    assert first[-3:] == ["t5", "t4", "t3"]
    assert "where is [my] parcel?" in "\n".join(lines)
    assert "the engine failed" in "\n".join(lines)


def test_of_one_model_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "--model", "m0", "--json"))
    assert [each["id"] for each in found] == ["t4", "t2", "t0"]
    assert found[0]["messages"][0] == {"role": "system", "content": "s"}


def test_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--model", "unheard-of") == ""
    assert json.loads(output(capsys, "--model", "unheard-of", "--json")) == []
