"""The verb ``tournament``: every entrant tuned and asked on the same frozen splits, then one board and a verdict.

All training comes first and sees train and validation only; the test split is asked at the end, once a trained model. What is
finished is written down as it finishes, so the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.digest import digest_json
from luthier.core.engine import Engine
from luthier.core.errors import ConflictError, LuthierError
from luthier.core.run import Progress, Run, no_progress
from luthier.core.task import Task
from luthier.evaluation.evaluate import evaluate
from luthier.knowledge.base import open_base
from luthier.store import runs
from luthier.store.database import Store, open_store
from luthier.store.home import now
from luthier.store.lineage import Node, record_edge
from luthier.tournament._engines import Lookup, open_together
from luthier.tournament.board import Board, compare_all, rank
from luthier.tournament.documents import from_documents
from luthier.tournament.entry import Entry, Planned
from luthier.tournament.frontier import frontiers
from luthier.tournament.memory import Memory
from luthier.tournament.plan import Plan, look_ahead, read_plan
from luthier.tournament.schedule import Workers, jobs_of, side_by_side
from luthier.tournament.slicing import simpson_warnings
from luthier.tournament.standing import about, environment, notes, standing_of
from luthier.tournament.trainer import InProcess
from luthier.tournament.training import Training
from luthier.tournament.verdict import decide

_SHOWN_STAGES = ("train", "evaluate", "trial")


def tournament(
    path: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    engine: str = "auto",
    only: Sequence[str] = (),
    store: Store | None = None,
    progress: Progress = no_progress,
    planned: Callable[[Task, Sequence[Planned]], None] | None = None,
    predicted: Callable[[Sequence[Entry]], None] | None = None,
) -> Board:
    """Run the tournament of a task file and return its board, which also lies in the run's folder as JSON and HTML.

    ``overrides`` are ``key=value`` texts; ``only`` names the entrants to run (all when empty); ``planned`` is told the plan before any
    work, ``predicted`` the memory and time of what is to be trained, before it is. Wrong settings of any entrant are refused before
    the first one starts; an entrant that fails later is on the board with its reason, and the others go on. Finished work is found
    again, whatever interrupted it.

    Raises InputError, NotFoundError or DataError for what cannot work, ConflictError when the same tournament is running.
    """
    store = store or open_store()
    overrides = list(overrides)
    plan = read_plan(path, overrides, engine=engine, only=only, store=store, progress=progress)
    if planned is not None:
        planned(plan.task, plan.entrants)
    command = ["luthier", "tournament", str(path) if not isinstance(path, Mapping) else "TASK.yaml", *overrides]
    command += [] if engine == "auto" else ["--engine", engine]
    command += [part for name in only for part in ("--only", name)]
    return _Tournament(store, plan, command, progress, predicted).run()


@dataclass(frozen=True)
class _Tournament:
    """One tournament, resolved."""

    store: Store
    plan: Plan
    command: Sequence[str]
    progress: Progress
    predicted: Callable[[Sequence[Entry]], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def task(self) -> Task:
        return self.plan.task

    def run(self) -> Board:
        key = digest_json(["tournament", self.task.name, self.task.digest, [p.key for p in self.plan.entrants]])
        run = self._run(key)
        memory = Memory(self.store, runs.folder(self.store, run.id))
        entries = [Entry(planned) for planned in self.plan.entrants]
        try:
            memory.recall(entries)
            self._train(run, entries, memory)
            self._evaluate(run, entries, memory)
            board = self._board(run, entries)
        except KeyboardInterrupt:
            runs.finish(self.store, run.id, "interrupted", {"error": "interrupted"})
            raise
        except BaseException as error:
            reason = error.message if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
            runs.finish(self.store, run.id, "failed", {"error": reason})
            raise
        summary = {
            "board": str(Path(board.folder) / "board.html"),
            "verdict": dict(board.verdict),
            "entrants": {s.name: s.score.get("value") for s in board.standings},
            "failed": {s.name: s.reason for s in board.standings if s.status == "failed"},
        }
        runs.finish(self.store, run.id, "done", summary)
        return board

    def _run(self, key: str) -> Run:
        runs.recover(self.store)
        earlier = runs.by_key(self.store, key)
        busy = next((r for r in earlier if r.status == "running"), None)
        if busy is not None:
            raise ConflictError(f"this tournament is running already, as run {busy.id}", hint="wait until it ends")
        if earlier:
            return runs.resume(self.store, earlier[0].id)
        values = {
            "task": self.task.name,
            "digest": self.task.digest,
            "command": list(self.command),
            "entrants": [p.entrant.as_dict() for p in self.plan.entrants],
            "settings": self.plan.settings.model_dump(mode="json"),
        }
        run = runs.start(self.store, "tournament", self.task.name, values, self.plan.origins, key)
        record_edge(self.store, Node("task", self.task.digest, self.task.name), "decided in", Node("run", run.id))
        return run

    def _train(self, run: Run, entries: Sequence[Entry], memory: Memory) -> None:
        """Every training that is missing, side by side where that was asked for or pays."""
        left = [entry for entry in entries if not entry.finished_training]
        if not left:
            return
        from luthier.models.load import usable_cores

        cores = usable_cores()
        own = any(entry.planned.task is not None for entry in left)  # other rows than the task file's: of this process
        jobs = 1 if own else jobs_of(self.plan.settings.jobs, cores, len(left))
        folder = runs.folder(self.store, run.id)
        trainer: Workers | InProcess
        if jobs > 1:
            trainer = Workers(self.store, self.plan.config, folder, threads=max(1, cores // jobs))
        else:
            trainer = InProcess(self.store, self.task)
        self._predict(run, left, trainer.shared if isinstance(trainer, InProcess) else None)

        def keep(entry: Entry) -> None:
            memory.remember(entry)
            record_edge(self.store, Node("run", entry.trained[-1].run), "entered", Node("run", run.id))

        def train(entry: Entry, progress: Progress) -> None:
            if entry.planned.task is None:
                Training(self.store, folder, trainer, keep)(entry, progress)
                return
            alone = InProcess(self.store, entry.planned.task)
            try:
                Training(self.store, folder, alone, keep)(entry, progress)
            finally:
                alone.close()

        try:
            side_by_side(
                left,
                lambda entry: self._guarded(run, entry, lambda: train(entry, self._stages(entry.name))),
                jobs,
                trainer.stop if isinstance(trainer, Workers) else trainer.close,
            )
        finally:
            trainer.close()

    def _predict(self, run: Run, entries: Sequence[Entry], shared: Any) -> None:
        """Memory and time of what is about to be trained; an entrant whose data cannot be used fails here already."""
        if self.predicted is None:
            return

        def look(entry: Entry) -> None:
            entry.predicted = look_ahead(self.store, entry.planned, shared if entry.planned.task is None else None)

        for entry in entries:
            self._guarded(run, entry, lambda entry=entry: look(entry))  # type: ignore[misc]
            entry.failure = ""  # it fails again, with the same reason, when it is trained
        self.predicted(entries)

    def _evaluate(self, run: Run, entries: Sequence[Entry], memory: Memory) -> None:
        """Ask every model the test split, those on one base together: its weights are then in memory once."""
        left = [e for e in entries if not e.scored and not e.failure]
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in left:
            groups.setdefault((_base_name(entry), entry.planned.entrant.engine), []).append(entry)
        for (_, engine), group in groups.items():
            asked = {_as_asked(e, target) for e in group for target in e.targets}
            with open_together(self.store, sorted(asked), engine) as engines:
                for entry in group:
                    for target in entry.targets:
                        if target not in entry.results and not entry.failure:
                            self._guarded(run, entry, lambda e=entry, t=target: self._ask(run, e, t, engines, memory))  # type: ignore[misc]

    def _ask(self, run: Run, entry: Entry, target: str, engines: Lookup, memory: Memory) -> None:
        entrant = entry.planned.entrant
        engine = engines(*_as_asked(entry, target))
        if entrant.rag is not None:
            with open_base(self.plan.base, store=self.store) as base:
                self._scored(run, entry, target, from_documents(base, engine, entrant.rag), memory)
        else:
            self._scored(run, entry, target, engine, memory)

    def _scored(self, run: Run, entry: Entry, target: str, engine: Engine, memory: Memory) -> None:
        entrant = entry.planned.entrant
        result = evaluate(
            engine,
            self.task,
            strategy=entrant.strategy,
            store=self.store,
            progress=self._stages(entry.name),
        )
        entry.results[target] = result
        record_edge(self.store, Node("run", result.run.id), "compared in", Node("run", run.id))
        memory.remember(entry)

    def _guarded(self, run: Run, entry: Entry, work: Callable[[], None]) -> None:
        """Do an entrant's work; its failure is noted and kept from the others."""
        try:
            work()
        except LuthierError as error:
            entry.failure = str(error)
        except Exception as error:  # noqa: BLE001  one entrant's bug or full memory must not cost the others' finished work
            entry.failure = f"{type(error).__name__}: {error}"
            log = runs.folder(self.store, run.id) / "errors.log"
            with self._lock, log.open("a", encoding="utf-8") as file:
                file.write(f"{now()} {entry.name}\n{traceback.format_exc()}\n")

    def _stages(self, name: str) -> Progress:
        def shown(stage: str, done: int, total: int) -> None:
            if stage.startswith(_SHOWN_STAGES):
                with self._lock:
                    self.progress(f"{name}: {stage}", done, total)

        return shown

    def _board(self, run: Run, entries: Sequence[Entry]) -> Board:
        scored = {e.name: e.scored for e in entries if e.scored}
        first = next(iter(scored.values()))[0] if scored else None
        primary = first.primary if first is not None else self.task.scorers[0][0]
        falls = first is not None and primary in first.lower_is_better
        standings = rank([standing_of(self.store, self.task, entry) for entry in entries], lower_is_better=falls)
        order = [s.name for s in standings if s.name in scored]
        comparisons = compare_all(self.task, {name: scored[name] for name in order})
        edges = frontiers(standings, lower_is_better=falls)
        folder = runs.folder(self.store, run.id)
        board = Board(
            run=run.id,
            name=self.task.name,
            created_at=now(),
            task=about(self.task)
            | {"primary": primary, "command": list(self.command)}
            | {"lower_is_better": sorted(first.lower_is_better) if first is not None else []},
            standings=standings,
            comparisons=comparisons,
            verdict=decide(standings, comparisons, primary, lower_is_better=falls, frontiers=edges).as_dict(),
            notes=(
                *notes(self.task),
                *_warnings(order, scored),
                *simpson_warnings(standings, lower_is_better=falls),
            ),
            environment=environment(),
            folder=str(folder),
            frontiers=edges,
            settings=self.plan.settings.model_dump(mode="json", exclude_none=True),
        )
        board.save(folder)
        if not scored:
            reasons = "; ".join(f"{e.name}: {e.failure}" for e in entries)
            raise LuthierError(f"no entrant finished: {reasons}", hint="mend that and run the same command again")
        return board


def _warnings(order: Sequence[str], scored: Mapping[str, Sequence[Any]]) -> list[str]:
    """What the evaluations warn of, once each."""
    return list(dict.fromkeys(f"{name}: {warning}" for name in order for r in scored[name] for warning in r.warnings))


def _base_name(entry: Entry) -> str:
    base = entry.planned.base
    if base is None:
        return entry.planned.entrant.model
    return base.base or base.name


def _as_asked(entry: Entry, target: str) -> tuple[str, bool]:
    """The model to open, and whether raw: only a tuned model that is to be asked with another strategy than its own prompt, or from documents."""
    base = entry.planned.base
    brings_prompt = entry.planned.job is not None or (base is not None and base.kind != "base")
    entrant = entry.planned.entrant
    return target, brings_prompt and (entrant.strategy is not None or entrant.rag is not None)
