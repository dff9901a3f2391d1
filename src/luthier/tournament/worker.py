"""One training as a process of its own: ``python -m luthier.tournament.worker JOB.json``, started by ``schedule``.

Lines of JSON go both ways. Out: ``{"stage": [name, done, total]}``, ``{"record": {...}, "share": 0.4}``, and at the end ``{"done": {...}}``
or ``{"failed": {...}}``. After a record with a validation the worker waits for a line: ``{}`` to go on, ``{"halt": reason}`` to stop. It ends
with a checkpoint when its parent dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from luthier.core.errors import LuthierError

_PDEATHSIG = 1  # prctl(2): PR_SET_PDEATHSIG


def main(path: str, out: IO[str], answers: IO[str]) -> int:
    """Run the job of a file; returns the exit code."""
    from luthier.core.config import validate
    from luthier.store.database import open_store
    from luthier.tasks.own import Config, build
    from luthier.tournament.trainer import InProcess
    from luthier.training.interrupt import Halt

    _die_with_parent()
    job = json.loads(Path(path).read_text(encoding="utf-8"))

    def say(what: Mapping[str, Any]) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    def watch(record: Mapping[str, Any], share: float) -> None:
        say({"record": dict(record), "share": share})
        if any(key.startswith("validation_") for key in record):
            answer = answers.readline()
            if not answer:  # nobody listens any more
                raise KeyboardInterrupt
            if reason := json.loads(answer).get("halt"):
                raise Halt(reason)

    try:
        task = build(validate(Config, job["task"]))
        train = InProcess(open_store(job["home"]), task)
        done = train(job["config"], lambda stage, at, total: say({"stage": [stage, at, total]}), watch)
    except Halt as halt:
        say({"failed": {"type": "Halt", "message": str(halt), "run": halt.run}})
    except LuthierError as error:
        say({"failed": {"type": type(error).__name__, "message": error.message, "hint": error.hint}})
    except KeyboardInterrupt:
        return 130
    else:
        say({"done": asdict(done)})
    return 0


def _die_with_parent() -> None:
    """Ask the kernel (Linux) for SIGTERM when the parent dies: training then stops with a checkpoint."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no line of ours
    sys.exit(main(sys.argv[1], lines, sys.stdin))
