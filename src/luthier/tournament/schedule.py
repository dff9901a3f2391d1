"""Which trainings run side by side, and each of them as a process.

``auto`` is one at a time up to four cores: two processes on two cores train no faster together than one after the other with both
cores, since a step already uses all of them, and both hold the base in memory and import torch. From five cores on it is one
process for each four, because a step of a small model does not fill more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from luthier.core import errors
from luthier.core.errors import InputError, LuthierError, TrainingError
from luthier.core.run import Progress
from luthier.store.database import Store
from luthier.store.home import write_atomic
from luthier.tasks.own import Config as TaskConfig
from luthier.tournament.entry import Trained
from luthier.tournament.trainer import Watch
from luthier.training.interrupt import Halt

Item = TypeVar("Item")
CORES_A_JOB = 4
_TOLD = 20  # lines of a dead worker's log that its failure shows


def jobs_of(asked: int | str, cores: int, trainings: int) -> int:
    """How many processes train at once. Raises InputError for more than there are cores."""
    if trainings < 2:
        return 1
    if asked == "auto":
        return max(1, min(cores // CORES_A_JOB, trainings))
    if int(asked) > cores:
        raise InputError(f"jobs must be auto or at most the {cores} cores that this process may use; got {asked}")
    return min(int(asked), trainings)


def side_by_side(items: Sequence[Item], work: Callable[[Item], None], jobs: int, stop: Callable[[], None]) -> None:
    """``work`` on every item, ``jobs`` at a time. The first error (or Ctrl-C) calls ``stop``, waits for the rest and is raised."""
    if jobs == 1:
        for item in items:
            work(item)
        return
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="training")
    futures = [pool.submit(work, item) for item in items]
    try:
        left = set(futures)
        while left:
            done, left = wait(left, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
    except BaseException:
        for future in futures:
            future.cancel()
        stop()
        raise
    finally:
        pool.shutdown(wait=True)


@dataclass
class Workers:
    """Trains in processes of ``threads`` threads each; a ``Trainer`` that several threads may call."""

    store: Store
    config: TaskConfig
    folder: Path
    threads: int
    command: Sequence[str] = (sys.executable, "-m", "luthier.tournament.worker")
    stopped: bool = False
    _running: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _count: int = 0

    def __call__(self, config: Mapping[str, Any], progress: Progress, watch: Watch) -> Trained:
        """See ``Trainer``. A process that dies is a TrainingError with the end of its log."""
        with self._lock:
            self._count += 1
            place = self.folder / "workers"
            place.mkdir(exist_ok=True)
            job, log = (place / f"{os.getpid()}-{self._count}.{end}" for end in ("json", "log"))
        spec = {"home": str(self.store.home.root), "task": self.config.model_dump(mode="json"), "config": dict(config)}
        write_atomic(job, json.dumps(spec))
        with log.open("w", encoding="utf-8") as errors_to:
            process = self._start(job, errors_to)
            try:
                return self._follow(process, progress, watch, log)
            finally:
                with self._lock:
                    self._running.pop(process.pid, None)
                _end(process)

    def stop(self) -> None:
        """Ask all processes to end with a checkpoint; no new one starts."""
        with self._lock:
            self.stopped = True
            for process in self._running.values():
                process.terminate()

    def close(self) -> None:
        """Nothing is shared between processes."""

    def _start(self, job: Path, log: Any) -> subprocess.Popen[str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        with self._lock:
            if self.stopped:
                raise KeyboardInterrupt
            # a session of its own: Ctrl-C in the terminal reaches this process, which asks the workers to stop, once
            process = subprocess.Popen(
                [*self.command, str(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **threads},
                start_new_session=True,
            )
            self._running[process.pid] = process
            return process

    def _follow(self, process: subprocess.Popen[str], progress: Progress, watch: Watch, log: Path) -> Trained:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "stage" in said:
                progress(*said["stage"])
            elif "record" in said:
                _watch(process, said, watch)
            elif "done" in said:
                return Trained(**said["done"])
            else:
                raise _error(said["failed"])
        if self.stopped:
            raise KeyboardInterrupt
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TOLD:])
        raise TrainingError(
            f"the process that trained ended with exit code {process.wait()} before it was done"
            + (f":\n{tail}" if tail else ""),
            hint="run the same command again: it goes on at the last checkpoint",
        )


def _watch(process: subprocess.Popen[str], said: Mapping[str, Any], watch: Watch) -> None:
    """Show a record to ``watch`` and answer the worker, which waits after validations."""
    answer: dict[str, str] = {}
    waits = any(key.startswith("validation_") for key in said["record"])
    try:
        watch(said["record"], float(said["share"]))
    except Halt as halt:
        answer = {"halt": str(halt)}
    if waits and process.stdin is not None:
        try:
            process.stdin.write(json.dumps(answer) + "\n")
            process.stdin.flush()
        except BrokenPipeError:  # it died; reading its output to the end says how
            return


def _error(said: Mapping[str, Any]) -> Exception:
    if said["type"] == "Halt":
        halt = Halt(said["message"])
        halt.run = said.get("run", "")
        return halt
    known = getattr(errors, said["type"], LuthierError)
    made: Exception = known(said["message"], hint=said.get("hint"))
    return made


def _end(process: subprocess.Popen[str]) -> None:
    """Close the pipes and wait; a worker that was told to stop ends after its step."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue
    process.wait()
