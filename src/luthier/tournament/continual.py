"""The verb ``continual``: one model learns task after task, old rows mixed in, and after each step every earlier task is scored again.

Each step is an ordinary tuning that goes on from the result of the last one. What is finished is found again, so the same command goes on where an
interrupted one stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.core.dataset import Dataset, Splits
from luthier.core.digest import digest_json
from luthier.core.errors import LuthierError
from luthier.core.run import Progress, Run, no_progress
from luthier.data.replay import with_replay
from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.forgetting import Forgetting, draw, forgetting
from luthier.store import runs
from luthier.store.database import Store, open_store, to_json
from luthier.store.home import write_atomic
from luthier.store.lineage import Node, record_edge
from luthier.tournament.stream import Stream, read_stream
from luthier.training.claim import claim

REPORT, PICTURE = "forgetting.json", "forgetting.png"


@dataclass(frozen=True)
class Cell:
    """R[i][j]: the primary score of one task after one step, with its interval and the evaluation that found it."""

    value: float
    low: float
    high: float
    run: str


@dataclass(frozen=True)
class Step:
    """What one step made: ``rows`` of its own task and ``replayed`` ones of earlier tasks, and the scores of all tasks until then."""

    task: str
    model: str
    digest: str
    run: str
    rows: int
    replayed: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Continual:
    """The whole stream. ``scores`` is the lower triangle R; ``figures`` what follows from it."""

    run: str
    name: str
    primary: str
    lower_is_better: bool
    steps: tuple[Step, ...]
    figures: Forgetting
    folder: str

    @property
    def scores(self) -> list[list[float]]:
        """R: row i after step i, with the scores of tasks 0 to i."""
        return [[cell.value for cell in step.cells] for step in self.steps]

    @property
    def model(self) -> str:
        """The name of the last result."""
        return self.steps[-1].model

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {**asdict(self), "scores": self.scores, "model": self.model}


def continual(
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    engine: str = "auto",
    store: Store | None = None,
    progress: Progress = no_progress,
    replace: bool = False,
    stepped: Callable[[Step], None] | None = None,
) -> Continual:
    """Tune a model on a stream of tasks, one after another, and report what it forgot.

    ``source`` is a YAML file or its values (see ``tournament.stream``), ``overrides`` are ``key=value`` texts. Each step trains on its task's training rows and on
    replayed ones of earlier tasks; its result is registered as NAME-STEP-TASK. Then the test rows of every task so far are asked, labels among all labels
    so far. ``stepped`` is told each step when it is scored. ``replace`` trains anew and takes the names. The report lies in the run's folder as JSON and PNG.

    Raises InputError and its kin before anything is trained, ConflictError when the names are taken or another process is at it, and what
    ``tune`` and ``evaluate`` raise; what was finished until then is kept.
    """
    store = store or open_store()
    stream = read_stream(source, overrides)
    with claim(store, f"{stream.name}.stream"):
        run = _run(store, stream)
        work = _Work(store, stream, run, engine, progress, anew=replace)
        try:
            for place in range(len(stream.tasks)):
                done = work.step(place)
                found = work.report()
                if stepped is not None:
                    stepped(done)
        except KeyboardInterrupt:
            runs.finish(store, run.id, "interrupted", {"error": "interrupted"})
            raise
        except BaseException as error:
            reason = error.message if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
            runs.finish(store, run.id, "failed", {"error": reason})
            raise
        summary = {"model": found.model, "primary": found.primary, "scores": found.scores, **found.figures.as_dict()}
        runs.finish(store, run.id, "done", summary)
        return found


def _run(store: Store, stream: Stream) -> Run:
    key = digest_json(["continual", stream.name, stream.digest])
    runs.recover(store)
    if earlier := runs.by_key(store, key):
        return runs.resume(store, earlier[0].id)
    values = stream.config.model_dump(mode="json") | {"tasks": [[task.name, task.digest] for task in stream.tasks]}
    run = runs.start(store, "continual", stream.name, values, stream.origins, key)
    for task in stream.tasks:
        record_edge(store, Node("task", task.digest, task.name), "learned in", Node("run", run.id, stream.name))
    return run


@dataclass
class _Work:
    """One stream under way; ``steps`` are those finished."""

    store: Store
    stream: Stream
    run: Run
    engine: str
    progress: Progress
    anew: bool
    steps: list[Step] = field(default_factory=list)
    primary: str = ""
    falls: bool = False

    def step(self, place: int) -> Step:
        """Tune, then score every task until now."""
        from luthier.training.tune import tune

        stream, task = self.stream, self.stream.tasks[place]
        told = stream.config.replay
        earlier = [each.splits.train for each in stream.tasks[:place]]
        training, drawn = with_replay(
            task.splits.train,
            earlier,
            share=told.share,
            size=told.memory,
            keep=told.keep,
            seed=stream.config.seed,
        )
        made = tune(
            stream.tuning(place, self.steps[-1].model if place else None),
            splits=Splits(training, task.splits.validation, replace(task.splits.test, examples=(), problems=())),
            prompt=stream.prompt(place),
            store=self.store,
            progress=self._stages(place, "train"),
            resume=not self.anew,
            replace=self.anew,
        )
        if drawn:
            trained = Node("run", made.run.id, made.model.name)
            record_edge(self.store, _dataset(task.splits.train), "train", trained)
            for each in earlier:
                record_edge(self.store, _dataset(each), "replayed in", trained)
        record_edge(self.store, Node("run", made.run.id), "step of", Node("run", self.run.id, stream.name))
        cells = self._scores(place, made.model.name)
        done = Step(
            task.name, made.model.name, made.model.digest, made.run.id, len(task.splits.train), len(drawn), cells
        )
        self.steps.append(done)
        return done

    def _scores(self, place: int, model: str) -> tuple[Cell, ...]:
        from luthier.strategies._load import load

        opened = load(model, engine=self.engine, store=self.store)
        cells = []
        try:
            for number in range(place + 1):
                asked = self.stream.asked(number, place)
                progress = self._stages(place, f"score {asked.name}")
                found = evaluate(opened, asked, store=self.store, progress=progress)
                self.primary, self.falls = found.primary, found.primary in found.lower_is_better
                said = found.scores[found.primary]
                cells.append(Cell(found.score, said["low"], said["high"], found.run.id))
                record_edge(self.store, Node("run", found.run.id), "compared in", Node("run", self.run.id))
        finally:
            opened.close()
        return tuple(cells)

    def report(self) -> Continual:
        """What is known by now, also written into the run's folder."""
        folder = runs.folder(self.store, self.run.id)
        scores = [[cell.value for cell in step.cells] for step in self.steps]
        figures = forgetting(scores, lower_is_better=self.falls)
        found = Continual(
            self.run.id, self.stream.name, self.primary, self.falls, tuple(self.steps), figures, str(folder)
        )
        write_atomic(folder / REPORT, to_json(found.as_dict(), indent=1))
        names = [task.name for task in self.stream.tasks]
        draw(scores, names, folder / PICTURE, title=f"{self.stream.name}: {self.primary}")
        return found

    def _stages(self, place: int, what: str) -> Progress:
        name = f"{place + 1}/{len(self.stream.tasks)} {self.stream.tasks[place].name}: {what}"

        def shown(stage: str, done: int, total: int) -> None:
            if stage in ("train", "evaluate"):
                self.progress(name, done, total)

        return shown


def _dataset(dataset: Dataset) -> Node:
    return Node("dataset", dataset.digest, dataset.name)
