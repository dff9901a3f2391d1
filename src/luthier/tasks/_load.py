"""Find a task by what a user types: a YAML file, or the name of a benchmark in the catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from luthier.core import catalog
from luthier.core.config import from_mapping
from luthier.core.errors import InputError, nearest
from luthier.core.task import Task

FILES = (".yaml", ".yml")


def load_task(task: str | Path | Task, overrides: Iterable[str] = ()) -> Task:
    """The task itself; ``overrides`` are ``key=value`` texts for its config.

    Raises InputError for a missing file or a name that is neither a file nor a benchmark, and whatever building it raises.
    """
    if isinstance(task, Task):
        return task
    benchmarks = [name for name in catalog.names("tasks") if name != "own"]
    if isinstance(task, str) and task in benchmarks:
        entry = catalog.load("tasks", task)
        built: Task = entry(entry.configure(from_mapping({}, overrides).values))
        return built
    path = Path(task)
    if path.suffix.lower() not in FILES and not path.exists():
        near = nearest(str(task), benchmarks)
        raise InputError(
            f"task must be a YAML file{' or a benchmark name' if benchmarks else ''}; there is no {str(task)!r}"
            + (f". Did you mean {near[0]!r}?" if near else "")
        )
    entry = catalog.load("tasks", "own")
    config, _ = entry.module.read_config(path, overrides)
    own: Task = entry(config)
    return own
