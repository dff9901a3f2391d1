"""Changes of a knowledge base that are killed: a script, because SIGKILL needs a process to hit.

It imports everything once and does each piece of work in a fork of itself. A line of JSON in: what to do, and at which call of which function to
die; a line out: how the fork ended, -9 for killed. ``work`` may say ``wait()``, which ends when the next line comes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any


def main() -> None:
    """Answer each line of stdin."""
    for name in ("lancedb", "lancedb.index", "lancedb.query", "pyarrow.compute", "luthier.knowledge.rebuild"):
        importlib.import_module(name)
    for name in ("luthier.knowledge.indexes.lancedb", "luthier.engines.fake", "luthier.strategies._load"):
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def run(home: str, work: str, at: str, when: str, call: int) -> None:
    """Do the work and end."""
    os.environ["LUTHIER_HOME"] = home
    ingest: Any = importlib.import_module("luthier.knowledge.ingest")
    rebuild: Any = importlib.import_module("luthier.knowledge.rebuild")
    ingest.BATCH = rebuild.BATCH = 1
    if at:
        die_at(at, when, call)
    try:
        exec(work, {})
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def die_at(at: str, when: str, call: int) -> None:
    """Have this process killed around the ``call``-th call of ``module:name`` or ``module:Class.name``."""
    module, _, path = at.partition(":")
    *owners, name = path.split(".")
    place: Any = importlib.import_module(module)
    for owner in owners:
        place = getattr(place, owner)
    original, made = getattr(place, name), 0

    def function(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if made == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if made == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, function)


if __name__ == "__main__":
    main()
