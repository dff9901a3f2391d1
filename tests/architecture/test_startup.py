"""Start-up stays light: help and commands that need no model import no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import sys
from luthier.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
heavy = sorted({{"torch", "transformers", "peft", "sklearn", "matplotlib", "pyarrow", "fastapi", "openai"}} & set(sys.modules))
print("HEAVY", heavy)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["models"], ["tune", "--help"], ["runs"], ["data", "inspect", "{file}"], ["lineage", "nothing"]],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments: list[str], home: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "where is my parcel", "label": "delivery"}\n{"text": "pay me back", "label": "refund"}\n')
    code = PROBE.format(arguments=[a.replace("{file}", str(rows)) for a in arguments])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ}, check=False
    )
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
