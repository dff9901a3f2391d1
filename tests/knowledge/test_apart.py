"""Parsers in a process of their own: the same answers, and a file that hangs or kills it costs that file only."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import luthier
from luthier.core.errors import DataError, InputError
from luthier.knowledge import apart
from luthier.knowledge.parse import parse_bytes
from luthier.knowledge.parsers import pdf


def file(content: str = "BT /F 12 Tf 72 700 Td (The bow is in its case.) Tj ET", *more: str) -> bytes:
    """A PDF of one page whose resources name the objects that follow."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /XObject << /X 6 0 R >> /Font << /F 5 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        *more,
    ]
    body = "".join(f"{number} 0 obj\n{each}\nendobj\n" for number, each in enumerate(objects, 1))
    return f"%PDF-1.7\n{body}trailer\n<< /Root 1 0 R >>\n%%EOF".encode()


def hanging(levels: int = 12) -> bytes:
    """Forms that show the next one ten times: 10 ** levels in all."""
    forms = []
    for level in range(levels):
        last = level == levels - 1
        shown = "BT /F 12 Tf 72 700 Td (deep) Tj ET" if last else "/X Do " * 10
        uses = "<< /Font << /F 5 0 R >> >>" if last else f"<< /XObject << /X {7 + level} 0 R >> >>"
        forms.append(
            f"<< /Type /XObject /Subtype /Form /BBox [0 0 600 800] /Resources {uses} /Length {len(shown)} >>\nstream\n{shown}\nendstream"
        )
    return file("/X Do", *forms)


def test_a_file_that_hangs_is_given_up_and_the_next_is_read() -> None:
    data = hanging()
    assert len(data) < 4000
    parse_bytes(file(), "warm.pdf")
    started = time.monotonic()
    with pytest.raises(DataError, match=r"hang\.pdf was given up: reading it took more than 0\.5 s for a page"):
        parse_bytes(data, "hang.pdf", options={"pdf": {"timeout_s": 0.5}})
    assert time.monotonic() - started < 20
    assert parse_bytes(file(), "next.pdf").text == "The bow is in its case."


def test_both_sides_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    there = parse_bytes(file(), "a.pdf")
    with pytest.raises(DataError) as raised_there:
        parse_bytes(b"%PDF-1.7 nothing", "b.pdf")
    monkeypatch.setattr(pdf, "APART", False)
    assert parse_bytes(file(), "a.pdf") == there
    with pytest.raises(DataError) as raised_here:
        parse_bytes(b"%PDF-1.7 nothing", "b.pdf")
    assert str(raised_there.value) == str(raised_here.value)


def test_a_process_that_dies_costs_one_file() -> None:
    parse_bytes(file(), "warm.pdf")
    apart._idle[0]._child.kill()
    apart._idle[0]._child.wait()
    assert parse_bytes(file(), "a.pdf").text  # it was seen to be dead
    process = apart._idle[0]
    process.lives = lambda: True  # type: ignore[method-assign]  # as if it died with the question on its way
    process._child.kill()
    process._child.wait()
    with pytest.raises(DataError, match=r"a\.pdf was given up: its pdf reader died of it"):
        parse_bytes(file(), "a.pdf")
    del process.lives  # type: ignore[method-assign]
    assert parse_bytes(file(), "a.pdf").text


def test_a_long_file_does_not_hold_up_another() -> None:
    parse_bytes(file(), "warm.pdf")
    ended: list[str] = []

    def long() -> None:
        with pytest.raises(DataError, match="was given up"):
            parse_bytes(hanging(), "hang.pdf", options={"pdf": {"timeout_s": 30.0}})
        ended.append("long")

    thread = threading.Thread(target=long)
    thread.start()
    while apart._idle:
        pause()  # until it has taken the process
    assert parse_bytes(file(), "short.pdf").text
    assert not ended
    for process in (each for each in gc.get_objects() if isinstance(each, apart._Process) and each not in apart._idle):
        process._child.kill()  # its reader has hung for long enough
    thread.join(60)
    assert ended == ["long"]


def test_errors_keep_their_kind_and_unknown_ones_name_the_file() -> None:
    with pytest.raises(InputError, match="most_pages"):
        parse_bytes(file(), "a.pdf", options={"pdf": {"most_pages": 0}})
    said = apart._parse({"parser": "docx", "name": "a.docx", "config": {}}, b"no archive")
    assert said == {"failed": "File is not a zip file"}
    with pytest.raises(apart.FailedError, match="not a zip"):
        apart._answer(said)


def test_it_ends_with_the_one_who_started_it(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(
        "raise SystemExit('a module of the folder was taken')"
    )  # nothing of the folder is imported
    script = (
        "from luthier.knowledge import apart\n"
        "process = apart._Process()\n"
        "process._line(60, 1e18)\n"
        "print(process._child.pid, flush=True)\n"
        "import os; os._exit(9)\n"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(luthier.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        env=here,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    pid = int(done.stdout)
    for _ in range(600):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
        except (ProcessLookupError, FileNotFoundError):
            break
        pause()
    else:
        raise AssertionError(f"{pid} is still there")


def pause() -> None:
    """A moment for the other process, without holding the processor."""
    import select

    select.select([], [], [], 0.05)
