from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from luthier.cli import main
from luthier.store.database import open_store
from luthier.store.traces import list_traces


def test_the_command_says_where_it_is_and_ends_in_order(home: Path) -> None:
    code = "import sys; from luthier.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "fake", "fake:a,b", "--port", "0", "--price", "1,2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None
        text = ""
        while "print(" not in text:
            line = process.stdout.readline()
            assert line, "the server ended"
            text += line
        found = re.search(r"http://\S+?/v1", text.splitlines()[0])
        assert found
        assert "fake:a,b" in text
        assert "curl" in text
        assert f"OpenAI(base_url='{found.group()}'" in text
        body = {"model": "fake", "messages": [{"role": "user", "content": "my secret question"}]}
        answer = httpx.post(f"{found.group()}/chat/completions", json=body).json()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, log
    assert answer["id"] in log
    assert "secret" not in log
    (trace,) = list_traces(open_store(home))
    assert (trace.id, trace.cost > 0) == (answer["id"], True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fake", "--host", "0.0.0.0"], 2, "--api-key-env"),
        (["fake", "--api-key-env", "NOT_SET_ANYWHERE"], 2, "NOT_SET_ANYWHERE"),
        (["fake", "--port", "99999"], 2, "port"),
        (["nothing-of-that-name", "--port", "0"], 2, "luthier"),
        (["fake", "fake", "--port", "0"], 2, "twice"),
    ],
)
def test_what_cannot_be_served_is_said(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == code
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
