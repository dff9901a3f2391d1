"""The process that holds a database: started, asked, watched, killed when it passes a limit, started anew when it is asked again."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luthier
from luthier.apps.sql.limits import LostError, QueryError
from luthier.core import errors
from luthier.core.errors import EngineError, InputError, LuthierError

if TYPE_CHECKING:
    from luthier.apps.sql.connect import Target

LENGTH = struct.Struct(">I")
OPENING_S = 300.0
_GRACE_S = 0.7
_TICK_S = 0.1
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE")


class Process:
    """One child. It has the environment of nothing but what drivers need, and writes to nobody but its parent."""

    def __init__(self, target: Target, memory_mb: int) -> None:
        self._target, self._memory_mb = target, memory_mb
        self._child: subprocess.Popen[bytes] | None = None
        self._resident = 0  # bytes, once the database is open
        self._end: weakref.finalize[Any, Any] | None = None

    @property
    def pid(self) -> int | None:
        """Of the child that runs, if one does."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self, *, with_schema: bool) -> dict[str, Any]:
        """Start a child and let it open the database; returns what it says of it. Raises the LuthierError that it met."""
        self.kill()
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-s", "-X", "utf8", "-m", "luthier.apps.sql.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(server=self._target.kind == "server"),
                start_new_session=True,  # Ctrl-C is for the parent, which kills it
            )
        except OSError as error:
            raise EngineError(f"no process for the database could be started: {error}") from error
        self._end = weakref.finalize(self, _kill, self._child)
        opening = {"target": asdict(self._target), "memory_mb": self._memory_mb, "with_schema": with_schema}
        said = self._exchange(opening, OPENING_S, 1 << 30, watched=False)
        if "error" in said:
            self.kill()
            kind = getattr(errors, said.get("kind", ""), InputError)
            raise (kind if issubclass(kind, LuthierError) else InputError)(said["error"], hint=said.get("hint"))
        self._resident = _resident(self._child.pid)
        return said

    def ask(self, request: dict[str, Any], timeout_s: float, result_bytes: int) -> dict[str, Any]:
        """The child's reply to a query. Raises QueryError when it passed a limit (and the child is gone), LostError for a lost connection."""
        if self.pid is None:
            self.start(with_schema=False)
        said = self._exchange(request, timeout_s, 2 * result_bytes + (1 << 20), watched=True)
        if said.get("lost"):
            self.kill()
            raise LostError(said["error"], retryable=True)
        swollen = "error" in said and _resident(self.pid or 0) > self._resident + (self._memory_mb << 19)
        if said.get("last") or swollen:  # what is left of it is not to be trusted, or has not given back its memory
            self.kill()
        return said

    def kill(self) -> None:
        """End the child at once. Safe to call twice."""
        if self._end is not None:
            self._end()
        self._child = self._end = None

    def _exchange(self, request: dict[str, Any], timeout_s: float, most_bytes: int, *, watched: bool) -> dict[str, Any]:
        assert self._child is not None and self._child.stdin is not None
        child = self._child
        data = json.dumps(request).encode()
        try:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.write(LENGTH.pack(len(data)) + data)
                self._child.stdin.flush()
            reply = self._read(timeout_s + _GRACE_S, most_bytes, watched=watched)
        except BaseException:  # Ctrl-C included: nothing of an unfinished query stays behind
            self.kill()
            raise
        if reply is None:
            code = child.wait()
            self.kill()
            if code == -signal.SIGALRM:
                raise QueryError(f"the query took longer than {timeout_s:g} s")
            how = f"signal {-code}" if code < 0 else f"code {code}"
            raise QueryError(
                f"the process that held the database ended ({how}); the query may have needed too much memory"
            )
        said: dict[str, Any] = json.loads(reply)
        return said

    def _read(self, wait_s: float, most_bytes: int, *, watched: bool) -> bytes | None:
        """One message, None when the child ended. Raises QueryError at the limits."""
        assert self._child is not None and self._child.stdout is not None
        child, deadline = self._child, time.monotonic() + wait_s
        descriptor = self._child.stdout.fileno()
        buffer, needed = bytearray(), LENGTH.size
        most_resident = self._resident + (self._memory_mb << 20) + (128 << 20)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while len(buffer) < needed:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise QueryError(f"the query took longer than {wait_s - _GRACE_S:g} s")
                if not selector.select(min(left, _TICK_S)):
                    if watched and _resident(child.pid) > most_resident:
                        raise QueryError(f"the query needed more than {self._memory_mb} MB of memory")
                    continue
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    return None
                buffer += piece
                if len(buffer) >= LENGTH.size and needed == LENGTH.size:
                    needed += LENGTH.unpack_from(buffer)[0]
                    if needed > most_bytes:
                        raise QueryError(f"the result has {needed:,} bytes; at most {most_bytes:,} are read")
        return bytes(buffer[LENGTH.size :])


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _environment(*, server: bool) -> dict[str, str]:
    """What a child needs; only drivers of servers may see the variables that PostgreSQL's own programs read."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or (server and name.startswith("PG"))}
    root = str(Path(luthier.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONDONTWRITEBYTECODE": "1"}


def _resident(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
