"""A training that is killed over and over: a script, because SIGKILL needs a process to hit.

It imports everything once and then trains in forks of itself, one after another. Each fork but the last is killed: by the parent, as soon as
it has heard of so many steps, wherever the fork is by then; or by itself, at so many calls of what a checkpoint is written with.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from luthier.core import catalog
from luthier.training import checkpoint
from luthier.training.tune import tune

IMPORTED = (
    "luthier.training.loop",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "peft",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.optimization",
)
"""What trainings import, so that each fork has it."""
KILLS = 10
WRITING = ("write_tensors", "_flush", "sync_folder")
"""What ``checkpoint`` calls, some of it several times, on its way to a new checkpoint or a new best."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at(call: int) -> None:
    """Let this process die at the ``call``-th call of what writes checkpoints, half of the time after it was made."""
    made = 0

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            nonlocal made
            made += 1
            if made == call and call % 2:
                die()
            result = original(*arguments)
            if made == call:
                die()
            return result

        return function

    for name in WRITING:
        setattr(checkpoint, name, wrapped(getattr(checkpoint, name)))


def train_in_fork(config: Mapping[str, Any], *, steps: int = 0, call: int = 0) -> int:
    """Train in a fork; returns its status. With ``steps`` it is killed when that many were made, with ``call`` it dies there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        if call:
            dying_at(call)
        tune(config, metrics=lambda record: os.write(writing, b"."))
        os._exit(0)
    os.close(writing)
    heard = 0
    while got := os.read(reading, 1):
        heard += len(got)
        if heard == steps:
            os.kill(child, signal.SIGKILL)
            break
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(configs: Mapping[str, Mapping[str, Any]], seed: int) -> None:
    """Each of ``configs`` by name, once undisturbed (NAME-straight) and once killed (NAME-killed)."""
    for module in IMPORTED:
        importlib.import_module(module)
    for catalogue in ("methods", "objectives"):
        for name in catalog.names(catalogue):
            catalog.load(catalogue, name)
    chance = random.Random(seed)
    for name, config in configs.items():
        assert train_in_fork({**config, "name": f"{name}-straight"}) == 0
        killed = {**config, "name": f"{name}-killed"}
        for number in range(KILLS):
            point = {"steps": chance.randint(1, 3)} if number % 2 else {"call": chance.randint(1, 12)}
            status = train_in_fork(killed, **point)
            assert status == -signal.SIGKILL, (name, number, point, status)
        assert train_in_fork(killed) == 0


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
