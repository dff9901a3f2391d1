"""Runs: the row, the folder and the append-only metrics of one piece of long work."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, get_args

from sqlalchemy import RowMapping, insert, select, update

from luthier.core.errors import InputError, NotFoundError, StoreError, did_you_mean
from luthier.core.run import Run, RunKind, RunStatus
from luthier.store.database import Store, runs, to_json
from luthier.store.home import disk_errors, new_id, now, write_atomic

METRICS = "metrics.jsonl"
_TRAINED_ON = "trained_on.json"
_PACKAGES = ("luthier", "torch", "transformers", "peft", "accelerate", "tokenizers", "xllamacpp", "numpy")


def start(
    store: Store, kind: RunKind, name: str, config: Mapping[str, Any], origins: Mapping[str, str], key: str = ""
) -> Run:
    """Begin a run: make its folder (``config.json`` with values and their origins, ``environment.json``), then its row."""
    if kind not in get_args(RunKind):
        raise InputError(f"run kind must be one of {', '.join(get_args(RunKind))}; got {kind!r}")
    run = Run(id=new_id("run"), kind=kind, status="running", name=name, key=key, created_at=now())
    place = store.home.runs / run.id
    with disk_errors(place):
        place.mkdir()
    write_atomic(place / "config.json", to_json({"values": config, "origins": origins}, indent=1))
    write_atomic(place / "environment.json", to_json(environment(), indent=1))
    with store.write() as connection:
        connection.execute(insert(runs).values(**_row(run)))
    return run


def resume(store: Store, run_id: str) -> Run:
    """Take an interrupted or failed run up again in this process."""
    run = find_run(store, run_id)
    write_atomic(folder(store, run.id) / "environment.json", to_json(environment(), indent=1))
    with store.write() as connection:
        connection.execute(update(runs).where(runs.c.id == run.id).values(status="running", finished_at=None))
    return find_run(store, run.id)


def folder(store: Store, run_id: str) -> Path:
    """Where a run's files are."""
    place = store.home.runs / run_id
    if not place.is_dir():
        raise StoreError(f"run {run_id} has no folder: {place} is missing", hint="luthier doctor")
    return place


def record_trained_on(store: Store, run_id: str, example_ids: Iterable[str]) -> None:
    """Keep which examples a run trained on, so that an evaluation can tell whether it asks any of them."""
    write_atomic(folder(store, run_id) / _TRAINED_ON, to_json(sorted(example_ids)))


def trained_on(store: Store, run_id: str) -> frozenset[str]:
    """Ids of the examples that a run trained on; empty when it trained on none, or its folder is gone."""
    try:
        return frozenset(json.loads((store.home.runs / run_id / _TRAINED_ON).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return frozenset()


def finish(store: Store, run_id: str, status: RunStatus, summary: Mapping[str, Any]) -> Run:
    """End a run as ``done``, ``failed`` or ``interrupted`` with its summary."""
    if status not in get_args(RunStatus):
        raise InputError(f"run status must be one of {', '.join(get_args(RunStatus))}; got {status!r}")
    with store.write() as connection:
        changed = connection.execute(
            update(runs).where(runs.c.id == run_id).values(status=status, summary=dict(summary), finished_at=now())
        )
        if changed.rowcount == 0:
            raise NotFoundError(f"run {run_id!r} is not known")
    return find_run(store, run_id)


def find_run(store: Store, id_or_name_prefix: str) -> Run:
    """A run by its id, the start of its id, its name or the start of its name (of several with one name, the newest).

    Raises NotFoundError with near names, InputError when the start of an id fits several runs.
    """
    wanted = id_or_name_prefix
    with store.read() as connection:
        row = connection.execute(select(runs).where(runs.c.id == wanted)).mappings().first()
        if row is not None:
            return _run(row)
        newest = select(runs).order_by(runs.c.created_at.desc(), runs.c.id.desc())
        for column in (runs.c.id, runs.c.name):
            rows = (
                connection.execute(newest.where(column.startswith(wanted, autoescape=True)).limit(6)).mappings().all()
            )
            if wanted and len(rows) > 1 and column is runs.c.id:
                raise InputError(f"{wanted!r} is the start of several runs: {', '.join(r['id'] for r in rows[:5])}")
            exact = connection.execute(newest.where(column == wanted).limit(1)).mappings().first()
            if wanted and (exact or rows):
                return _run(exact or rows[0])
        known = connection.execute(newest.limit(200)).mappings().all()
    names = {r["name"] for r in known} | {r["id"] for r in known[:5]}
    raise NotFoundError(f"run {wanted!r} is not known. {did_you_mean(wanted, names - {''})}")


def list_runs(store: Store, kind: RunKind | None = None, limit: int = 50) -> list[Run]:
    """The newest runs, newest first."""
    query = select(runs).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit)
    with store.read() as connection:
        rows = connection.execute(query if kind is None else query.where(runs.c.kind == kind)).mappings().all()
    return [_run(row) for row in rows]


def by_key(store: Store, key: str) -> list[Run]:
    """Runs of equal work, newest first."""
    query = select(runs).where(runs.c.key == key).order_by(runs.c.created_at.desc(), runs.c.id.desc())
    with store.read() as connection:
        return [_run(row) for row in connection.execute(query).mappings().all()]


def recover(store: Store) -> list[Run]:
    """Mark runs that say ``running`` but whose process on this machine is dead as ``interrupted``; returns them."""
    with store.read() as connection:
        rows = connection.execute(select(runs).where(runs.c.status == "running")).mappings().all()
    dead = [row["id"] for row in rows if not _alive(store.home.runs / row["id"] / "environment.json")]
    with store.write() as connection:
        for run_id in dead:
            query = update(runs).where(runs.c.id == run_id, runs.c.status == "running")
            connection.execute(query.values(status="interrupted", finished_at=now()))
    return [find_run(store, run_id) for run_id in dead]


def environment() -> dict[str, Any]:
    """What ran where: process, machine, versions. No arguments or variables: they may hold secrets."""
    import psutil

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = ""
    return {
        "pid": os.getpid(),
        "pid_started": psutil.Process().create_time(),
        "host": socket.gethostname(),
        "started_at": now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": os.cpu_count() or 1,
        "executable": sys.executable,
        "packages": versions,
    }


def _alive(path: Path) -> bool:
    """Whether the process of an ``environment.json`` still runs; another machine's process counts as alive."""
    import psutil

    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["host"] != socket.gethostname():
            return True
        return bool(abs(psutil.Process(said["pid"]).create_time() - said["pid_started"]) < 1.0)
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return False


class MetricsLog:
    """Appends flat records to ``metrics.jsonl``; every reader may tail it. A half-written last line is cut off on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            _cut_torn_line(path)
            self._file: IO[bytes] = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record as one line, in one write."""
        line = to_json(record).encode("utf-8") + b"\n"
        with disk_errors(self.path, len(line)):
            self._file.write(line)

    def sync(self) -> None:
        """Flush to the disk; call it with each checkpoint, so that the two agree after a crash."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())

    def truncate_after(self, step: int) -> None:
        """Drop records of later steps (``record["step"] > step``): they come again when a run resumes at ``step``."""
        kept = [r for r in read_metrics(self.path) if not isinstance(r.get("step"), int) or r["step"] <= step]
        self._file.close()
        write_atomic(self.path, "".join(to_json(r) + "\n" for r in kept))
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        """Flush and close. Safe to call twice."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Records of a ``metrics.jsonl``, oldest first; a torn last line is left out, a missing file has none.

    Raises StoreError for a broken line in the middle.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    out: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            out.append(json.loads(line))
        except ValueError as error:
            raise StoreError(f"{path}:{number}: not a JSON record: {line[:80]!r}") from error
    return out


def _cut_torn_line(path: Path) -> None:
    if path.exists() and (size := path.stat().st_size):
        with path.open("rb+") as file:
            keep = file.read().rfind(b"\n") + 1
            if keep != size:
                file.truncate(keep)


def _row(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "kind": run.kind,
        "status": run.status,
        "name": run.name,
        "key": run.key,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "summary": dict(run.summary),
    }


def _run(row: RowMapping) -> Run:
    return Run(**{**row, "summary": dict(row["summary"] or {})})
