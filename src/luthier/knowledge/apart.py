"""Parsers that run in processes of their own, a file at a time in each: native code that hangs on a file, dies of it or fills the memory costs that file only.

A process is started with the first file and stays; both sides speak lines of JSON (``python -m luthier.knowledge.apart`` is its side). It ends with
the process that started it, whose end closes its standard input. Files that come at once get processes of their own, up to ``MOST``.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from luthier.core import catalog, errors
from luthier.core.document import Block
from luthier.core.errors import DataError, LuthierError
from luthier.knowledge.parsers import _parsed
from luthier.knowledge.parsers._parsed import Parsed

WHOLE = 60
"""A file may take so many times as long as a page."""
MOST = 4
"""Processes at once; more files wait."""
MOST_MEMORY = 8 * 2**30
"""Bytes of the process's address space."""
_START_S = 120.0


class FailedError(Exception):
    """What a parser's library raised, in words."""


def parse_apart(parser: str, data: bytes, name: str, config: Any, timeout_s: float) -> Parsed:
    """What ``parser`` makes of ``data``, in the other process. ``timeout_s`` is how long it may be silent: parsers that work long say that they do.

    Raises the parser's LuthierError, FailedError for anything else that it raised, DataError when the process died or took too long.
    """
    with _room:
        process = _take()
        try:
            return process.ask(parser, data, name, config, timeout_s)
        finally:
            _give_back(process)


class _Process:
    """The other process, while it lives."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "luthier.knowledge.apart"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )  # fmt: skip
        self._held = b""
        self._started = False

    def lives(self) -> bool:
        """Whether it can be asked, by this process."""
        return self.owner == os.getpid() and self._child.poll() is None

    def ask(self, parser: str, data: bytes, name: str, config: Any, timeout_s: float) -> Parsed:
        assert self._child.stdin is not None
        head = {"parser": parser, "name": name, "config": config.model_dump(mode="json"), "bytes": len(data)}
        end = time.monotonic() + WHOLE * timeout_s + _START_S
        try:
            if not self._started:
                self._line(_START_S, end)  # it says that it is ready
                self._started = True
            self._child.stdin.write(json.dumps(head).encode() + b"\n" + data)
            self._child.stdin.flush()
            while True:
                said = json.loads(self._line(timeout_s, end))
                if said != "alive":
                    return _answer(said)
        except TimeoutError as error:
            self.end()
            raise DataError(f"{name} was given up: reading it took more than {timeout_s:g} s for a page") from error
        except (BrokenPipeError, EOFError, json.JSONDecodeError) as error:
            self.end()
            raise DataError(f"{name} was given up: its {parser} reader died of it") from error
        except (LuthierError, FailedError):
            raise
        except BaseException:  # an interruption: nobody waits for what it would answer
            self.end()
            raise

    def _line(self, timeout_s: float, end: float) -> bytes:
        """The next line. Raises TimeoutError, and EOFError when the process has died."""
        assert self._child.stdout is not None
        handle = self._child.stdout.fileno()
        last = min(end, time.monotonic() + timeout_s)
        parts = [self._held]
        while b"\n" not in parts[-1]:
            left = last - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                raise TimeoutError
            piece = os.read(handle, 2**20)
            if not piece:
                raise EOFError
            parts.append(piece)
        line, _, self._held = b"".join(parts).partition(b"\n")
        return line

    def end(self) -> None:
        """Kill it. Safe to call twice, and by another process that has inherited it."""
        if self.owner != os.getpid():
            return
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


_room = threading.BoundedSemaphore(MOST)
_lock = threading.Lock()
_idle: list[_Process] = []


def _take() -> _Process:
    """A process that waits for work, or a new one."""
    with _lock:
        while _idle:
            process = _idle.pop()
            if process.lives():
                return process
    return _Process()


def _give_back(process: _Process) -> None:
    """One stays for the next file; the others, which had work at the same time, end."""
    with _lock:
        if process.lives() and not _idle:
            _idle.append(process)
            return
    process.end()


def _answer(said: dict[str, Any]) -> Parsed:
    if "failed" in said:
        raise FailedError(said["failed"])
    if "error" in said:
        kind = getattr(errors, said["error"], DataError)
        raise kind(said["message"], hint=said["hint"])
    blocks = [Block(**{**each, "box": tuple(each["box"]) if each["box"] else None}) for each in said.pop("blocks")]
    return Parsed(blocks, **said)


def main() -> None:
    """The other side: files from standard input, what they hold to standard output, until there are no more."""
    import resource

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    with suppress(ValueError, OSError):  # not everywhere
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))

    def say(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    _parsed.alive.said = lambda: say("alive")
    say("ready")
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        say(_parse(asked, sys.stdin.buffer.read(asked["bytes"])))


def _parse(asked: dict[str, Any], data: bytes) -> dict[str, Any]:
    entry = catalog.load("parsers", asked["parser"])
    try:
        parsed: Parsed = entry(data, asked["name"], entry.configure(asked["config"]))
    except LuthierError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception as error:  # noqa: BLE001 - whatever a library raises is this file's matter
        return {"failed": _parsed.reason(error)}
    return {
        "blocks": [asdict(block) for block in parsed.blocks], "title": parsed.title, "pages": parsed.pages,
        "meta": dict(parsed.meta), "warnings": list(parsed.warnings),
    }  # fmt: skip


if __name__ == "__main__":
    main()
