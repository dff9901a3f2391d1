"""The verb ``tournament``: every entrant tuned and asked on the same frozen splits, then one board and a verdict.

All training comes first and sees train and validation only; the test split is asked at the end, once an entrant. What is
finished is written down as it finishes, so the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.core.dataset import Splits
from luthier.core.digest import digest_json
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, StoreError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, Run, no_progress
from luthier.core.task import Task
from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.records import load_records
from luthier.evaluation.result import EvalResult
from luthier.store import runs
from luthier.store.database import Store, open_store
from luthier.store.home import now, write_atomic
from luthier.store.lineage import Node, record_edge
from luthier.store.models import find
from luthier.tasks.own import build, read_config
from luthier.tournament._engines import open_together
from luthier.tournament.board import Board, compare_all, rank
from luthier.tournament.entrant import Entrant, choose_only, read_entrants
from luthier.tournament.standing import Entry, Planned, about, environment, notes, standing_of
from luthier.tournament.verdict import decide

STATE = "entrants.json"
_SHOWN_STAGES = ("train", "evaluate")


def tournament(
    path: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    engine: str = "auto",
    only: Sequence[str] = (),
    store: Store | None = None,
    progress: Progress = no_progress,
    planned: Callable[[Task, Sequence[Planned]], None] | None = None,
) -> Board:
    """Run the tournament of a task file and return its board, which also lies in the run's folder as JSON and HTML.

    ``overrides`` are ``key=value`` texts; ``only`` names the entrants to run (all when empty); ``planned`` is told the plan before any
    work. Wrong settings of any entrant are refused before the first one starts; an entrant that fails later is on the board
    with its reason, and the others go on. Finished work is found again, whatever interrupted it.

    Raises InputError, NotFoundError or DataError for what cannot work, ConflictError when the same tournament is running.
    """
    store = store or open_store()
    overrides = list(overrides)
    config, document = read_config(path, overrides)
    task = build(config)
    entrants = read_entrants(config, task.kind, engine=engine, origins=document.origins)
    plan = [_plan(store, task, entrant) for entrant in choose_only(entrants, only)]
    if planned is not None:
        planned(task, plan)
    command = ["luthier", "tournament", str(path) if not isinstance(path, Mapping) else "TASK.yaml", *overrides]
    command += [] if engine == "auto" else ["--engine", engine]
    command += [part for name in only for part in ("--only", name)]
    return _Tournament(store, task, plan, command, dict(document.origins), progress).run()


def _training_splits(task: Task) -> Splits:
    """What training may see: no test examples."""
    return Splits(task.splits.train, task.splits.validation, replace(task.splits.test, examples=(), problems=()))


def _plan(store: Store, task: Task, entrant: Entrant) -> Planned:
    """Look everything up and check it, without loading weights."""
    from luthier.training.resolve import resolve

    try:
        if entrant.method is not None:
            job = resolve(entrant.tune_config(), (), store, splits=_training_splits(task), prompt=task.prompt)
            return Planned(entrant, job.base, job)
        return Planned(entrant, _stored(store, entrant.model))
    except LuthierError as error:
        raise type(error)(f"entrant {entrant.name}: {error.message}", hint=error.hint) from error


def _stored(store: Store, model: str) -> ModelRecord | None:
    """The stored model, None for a name that an engine opens by itself (``openai:...``, ``fake``)."""
    try:
        return find(store, model)
    except NotFoundError:
        if model.partition(":")[0] in ("fake", "openai"):
            return None
        raise


@dataclass(frozen=True)
class _Tournament:
    """One tournament, resolved."""

    store: Store
    task: Task
    plan: Sequence[Planned]
    command: Sequence[str]
    origins: Mapping[str, str]
    progress: Progress

    def run(self) -> Board:
        key = digest_json(["tournament", self.task.name, self.task.digest, [p.key for p in self.plan]])
        run = self._run(key)
        entries = [Entry(p, target=p.entrant.model) for p in self.plan]
        try:
            self._recall(run, entries)
            for entry in entries:
                self._train(run, entry)
            self._evaluate(run, entries)
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
            "entrants": [p.entrant.as_dict() for p in self.plan],
        }
        run = runs.start(self.store, "tournament", self.task.name, values, self.origins, key)
        record_edge(self.store, Node("task", self.task.digest, self.task.name), "decided in", Node("run", run.id))
        return run

    # What is finished is kept in a small file, so that a second run opens no engine for it.

    def _recall(self, run: Run, entries: Sequence[Entry]) -> None:
        """Fill in what an earlier, interrupted or finished run of the same tournament did, where it still holds."""
        path = runs.folder(self.store, run.id) / STATE
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError as error:
            raise StoreError(f"{path}: damaged: {error}", hint=f"remove it: {path}") from error
        for entry in entries:
            saved = known.get(entry.name, {})
            try:
                self._recall_one(entry, saved)
            except (NotFoundError, KeyError):  # a model or run was removed since: that part is done again
                continue

    def _recall_one(self, entry: Entry, saved: Mapping[str, Any]) -> None:
        if entry.planned.job is not None:
            record = find(self.store, saved["target"])
            if record.digest != saved["digest"]:
                return
            entry.target, entry.tune_run = record.name, saved["tune_run"]
            entry.tuned = runs.find_run(self.store, entry.tune_run).summary
        evaluated = runs.find_run(self.store, saved["eval_run"])
        if evaluated.status == "done":
            entry.eval_run = evaluated.id
            entry.result = EvalResult.from_run(evaluated, load_records(self.store, evaluated))

    def _remember(self, run: Run, entries: Sequence[Entry]) -> None:
        path = runs.folder(self.store, run.id) / STATE
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for entry in entries:
            saved = known.setdefault(entry.name, {})
            if entry.tune_run:
                record = find(self.store, entry.target)
                saved |= {"target": entry.target, "digest": record.digest, "tune_run": entry.tune_run}
            if entry.eval_run:
                saved["eval_run"] = entry.eval_run
        write_atomic(path, json.dumps(known, indent=1) + "\n")

    def _train(self, run: Run, entry: Entry) -> None:
        if entry.planned.job is None or entry.tune_run:
            return
        from luthier.training.tune import tune

        def work() -> None:
            done = tune(
                entry.planned.entrant.tune_config(),
                splits=_training_splits(self.task),
                prompt=self.task.prompt,
                store=self.store,
                progress=self._stages(entry.name),
            )
            entry.target, entry.tune_run, entry.tuned = done.model.name, done.run.id, done.summary

        self._guarded(run, entry, work)
        if entry.tune_run:
            record_edge(self.store, Node("run", entry.tune_run), "entered", Node("run", run.id))
            self._remember(run, [entry])

    def _evaluate(self, run: Run, entries: Sequence[Entry]) -> None:
        """Ask every entrant the test split, those on one base together: its weights are then in memory once."""
        left = [e for e in entries if e.result is None and not e.failure]
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in left:
            groups.setdefault((_base_name(entry), entry.planned.entrant.engine), []).append(entry)
        for (_, engine), group in groups.items():
            asked = {_as_asked(e) for e in group}
            with open_together(self.store, sorted(asked), engine) as engines:
                for entry in group:
                    self._guarded(run, entry, lambda entry=entry: self._ask(entry, engines))  # type: ignore[misc]
                    if entry.result is not None:
                        record_edge(self.store, Node("run", entry.eval_run), "compared in", Node("run", run.id))
                        self._remember(run, [entry])

    def _ask(self, entry: Entry, engines: Callable[[str, bool], Any]) -> None:
        entrant = entry.planned.entrant
        result = evaluate(
            engines(*_as_asked(entry)),
            self.task,
            strategy=entrant.strategy,
            store=self.store,
            progress=self._stages(entry.name),
        )
        entry.result, entry.eval_run = result, result.run.id

    def _guarded(self, run: Run, entry: Entry, work: Callable[[], None]) -> None:
        """Do an entrant's work; its failure is noted and kept from the others."""
        try:
            work()
        except LuthierError as error:
            entry.failure = str(error)
        except Exception as error:  # noqa: BLE001  one entrant's bug or full memory must not cost the others' finished work
            entry.failure = f"{type(error).__name__}: {error}"
            log = runs.folder(self.store, run.id) / "errors.log"
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{now()} {entry.name}\n{traceback.format_exc()}\n")

    def _stages(self, name: str) -> Progress:
        def shown(stage: str, done: int, total: int) -> None:
            if stage in _SHOWN_STAGES:
                self.progress(f"{name}: {stage}", done, total)

        return shown

    def _board(self, run: Run, entries: Sequence[Entry]) -> Board:
        standings = rank([standing_of(self.store, entry) for entry in entries])
        results = {e.name: e.result for e in entries if e.result is not None}
        order = [s.name for s in standings if s.name in results]
        comparisons = compare_all(self.task, {name: results[name] for name in order})
        primary = next(iter(results.values())).primary if results else self.task.scorers[0][0]
        folder = runs.folder(self.store, run.id)
        board = Board(
            run=run.id,
            name=self.task.name,
            created_at=now(),
            task=about(self.task) | {"primary": primary, "command": list(self.command)},
            standings=standings,
            comparisons=comparisons,
            verdict=decide(standings, comparisons, primary).as_dict(),
            notes=(*notes(self.task), *(f"{n}: {w}" for n in order for w in results[n].warnings)),
            environment=environment(),
            folder=str(folder),
        )
        board.save(folder)
        if not results:
            reasons = "; ".join(f"{e.name}: {e.failure}" for e in entries)
            raise LuthierError(f"no entrant finished: {reasons}", hint="mend that and run the same command again")
        return board


def _base_name(entry: Entry) -> str:
    base = entry.planned.base
    if base is None:
        return entry.planned.entrant.model
    return base.base or base.name


def _as_asked(entry: Entry) -> tuple[str, bool]:
    """The model to open, and whether raw: only a tuned model that is to be asked with another strategy than its own prompt."""
    base = entry.planned.base
    brings_prompt = entry.planned.job is not None or (base is not None and base.kind != "base")
    return entry.target, brings_prompt and entry.planned.entrant.strategy is not None
