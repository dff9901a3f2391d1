"""The command line as its users meet it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.cli import main

Ran = tuple[int, str, str]


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """(exit code, stdout, stderr) of ``luthier ...``, in a home of its own."""

    def ran(*arguments: str) -> Ran:
        code = 0
        try:
            main(list(arguments))
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ran
