"""The page ``docs/python.md`` is run, block by block, and must print what it says.

``python tests/docs/test_python_page.py`` runs it and writes what it printed into the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "python.md"

_CELL = re.compile(
    r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?(?P<varies>\n<!-- figures vary)?", re.DOTALL
)


def run(page: str) -> list[tuple[re.Match[str], str]]:
    """Each block of the page with what it printed; they share one namespace."""
    names: dict[str, Any] = {"__name__": "page"}
    done = []
    for cell in _CELL.finditer(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(cell["code"], str(PAGE), "exec"), names)
        lines = [line.rstrip() for line in printed.getvalue().splitlines()]
        done.append((cell, "".join(f"{line}\n" for line in lines)))
    return done


def without_figures(text: str) -> str:
    return re.sub(r"\d[\d.,]*", "#", text)


@pytest.mark.models
@pytest.mark.xdist_group("real-models")
def test_page_prints_what_it_says(real_home: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = home / "downloads"
    downloads.mkdir(parents=True)
    for wheel in (real_home / "downloads").glob("*minilm*.whl"):  # so that the page's pull need not download it
        shutil.copy(wheel, downloads)
    monkeypatch.chdir(REPOSITORY)
    done = run(PAGE.read_text(encoding="utf-8"))
    assert len(done) > 10
    for cell, printed in done:
        compared = without_figures if cell["varies"] else str
        assert compared(printed) == compared(cell["output"] or ""), cell["code"]


def rewrite(page: str) -> str:
    """The page with the output of each block under it."""
    for cell, printed in reversed(run(page)):
        output = f"\n```text\n{printed}```\n" if printed else ""
        kept = cell.end("output") + len("```\n") if cell["output"] is not None else cell.end("code") + len("```\n")
        page = page[: cell.end("code")] + "```\n" + output + page[kept:]
    return page


if __name__ == "__main__":
    os.chdir(REPOSITORY)
    PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stderr.write(f"wrote {PAGE}\n")
