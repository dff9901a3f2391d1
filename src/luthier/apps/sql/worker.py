"""Inside the process that holds a database (``process``): opens it, gives up rights, runs one query after the other.

Messages on standard input and output are JSON after four bytes of length. What is given up, where the system can: memory beyond a
limit, writing to any file, opening files and sockets, starting programs. A query that its own database cannot stop is ended by an alarm
that the kernel delivers, should the parent be gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from luthier.apps.sql._values import Kept
from luthier.apps.sql.limits import LostError, QueryError
from luthier.apps.sql.process import LENGTH
from luthier.core.errors import LuthierError

_LATE_S = 1.5
_PROGRAM_MB = 256  # threads' stacks and arenas, beside what a query computes with


class Held(Protocol):
    """An open database."""

    def schema(self) -> dict[str, Any]:
        """``Schema.as_dict``."""

    def run(self, sql: str, timeout_s: float, kept: Kept) -> list[str]:
        """Fill ``kept`` and return the names of the columns. Raises QueryError, LostError."""


def main() -> None:
    """Open what the first message says, then answer queries until standard input ends."""
    read, write = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is not a reply
    opening = _receive(read)
    if opening is None:
        return
    try:
        held = _open(opening)
        schema = held.schema() if opening["with_schema"] else {}
        _confine(opening["target"])
    except LuthierError as error:
        _send(write, {"error": error.message, "hint": error.hint, "kind": type(error).__name__})
        return
    except MemoryError:
        _send(write, {"error": f"it needs more than {opening['memory_mb']} MB of memory to open", "kind": "InputError"})
        return
    _send(write, {"schema": schema})
    while (request := _receive(read)) is not None:
        said = _answer(held, request)
        _send(write, said)
        if said.get("last"):
            return


def _answer(held: Held, request: dict[str, Any]) -> dict[str, Any]:
    kept = Kept(request["rows"], request["cell_characters"], request["result_bytes"])
    signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + _LATE_S)
    try:
        columns = held.run(request["sql"], request["timeout_s"], kept)
    except QueryError as error:
        return {"error": error.message}
    except LostError as error:
        return {"error": error.message, "lost": True, "last": True}
    except MemoryError:
        return {"error": "the query needed more memory than it may use", "last": True}
    except Exception as error:  # noqa: BLE001 - drivers raise what they like; who asked is told, and the next one gets a new process
        return {"error": f"the query failed: {type(error).__name__}: {error}"[:1000], "last": True}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {"columns": columns, "rows": kept.rows, "cut": kept.cut}


def _open(opening: dict[str, Any]) -> Held:
    target = opening["target"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if target["kind"] == "sqlite":
        from luthier.apps.sql._sqlite import open_sqlite

        _limit_memory(opening["memory_mb"])
        return open_sqlite(target, opening["memory_mb"])
    if target["kind"] in ("duckdb", "files"):
        from luthier.apps.sql._duckdb import open_duckdb

        _limit_memory(opening["memory_mb"])
        return open_duckdb(target, opening["memory_mb"])
    from luthier.apps.sql._server import open_server

    held = open_server(target)
    _limit_memory(opening["memory_mb"])
    return held


def _limit_memory(memory_mb: int) -> None:
    """Address space, beyond what is taken. What a system has no such limit for (macOS) the parent watches."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        taken = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmSize"))
        most = taken + ((memory_mb + _PROGRAM_MB) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _confine(target: dict[str, Any]) -> None:
    """Give up files, sockets and programs. Each layer holds by itself; a kernel without one has the others."""
    from luthier.scorers import _sandbox_child

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file grows; databases are open to be read
    folders = sorted({str(Path(path).parent) for path in target["paths"]}) if target["kind"] == "sqlite" else []
    program = [
        sys.prefix,
        sys.base_prefix,
        *(path for path in sys.path if path),
        "/usr/lib",
        "/lib",
        "/usr/share/zoneinfo",
        "/etc",
    ]
    job = {"readable": [*folders, *program], "devices": [], "folder": ""}
    if target["kind"] != "server":  # a server's driver may have to look up a host, and read certificates
        for layer in (_sandbox_child._landlock, _sandbox_child._seccomp):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                layer(job)


def _receive(read: BinaryIO) -> dict[str, Any] | None:
    head = read.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    data = read.read(LENGTH.unpack(head)[0])
    said: dict[str, Any] = json.loads(data)
    return said


def _send(write: BinaryIO, said: dict[str, Any]) -> None:
    data = json.dumps(said).encode()
    try:
        write.write(LENGTH.pack(len(data)) + data)
        write.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
