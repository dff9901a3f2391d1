"""The verb ``evaluate``: a model or engine on a task, as a run whose records are kept and which goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.engine import Engine, EngineInfo
from luthier.core.errors import InputError, LuthierError, UnsupportedError
from luthier.core.run import Progress, Run, no_progress
from luthier.core.task import Task
from luthier.evaluation.latency import measure, of_records, one_by_one, weights_mb
from luthier.evaluation.loop import check_labels, run_loop
from luthier.evaluation.records import Record, RecordsLog, read_records
from luthier.evaluation.result import EvalResult, summarise
from luthier.evaluation.trained_on import trained_examples
from luthier.scorers._score import Resources
from luthier.store.database import Store, open_store
from luthier.store.lineage import Node, record_edge
from luthier.store.runs import by_key, finish, folder, recover, resume, start
from luthier.strategies._build import prepare_strategy, read_strategy, wrap_strategy
from luthier.tasks._load import load_task

Split = Literal["train", "validation", "test"]
OWN = "own"  # the engine's own prompt, the benchmark's, or none


@dataclass(frozen=True)
class Asked:
    """An engine with the strategy that was put around it, as a run writes it down."""

    engine: Engine
    strategy: str
    config: dict[str, Any]


def evaluate(
    model: str | Engine,
    task: str | Path | Task,
    overrides: Iterable[str] = (),
    *,
    split: Split = "test",
    strategy: str | Mapping[str, Any] | None = None,
    limit: int | None = None,
    engine: str = "auto",
    options: Mapping[str, Any] | None = None,
    store: Store | None = None,
    progress: Progress = no_progress,
    fresh: bool = False,
) -> EvalResult:
    """Ask ``model`` every example of a split, score the answers, and keep each one.

    ``model`` is a stored name, a remote or fake one (``engines``), or anything that satisfies ``Engine``. ``task`` is a task file, the
    name of a benchmark, or a task; ``overrides`` are ``key=value`` texts for its settings. ``strategy`` is a name or
    ``{"name": ..., options}``; left out, a model that brings its own prompt (an endpoint, a tuned model) is asked with that, an
    encoder with the bare text, and everything else zero-shot with the task's prompt. ``limit`` takes the first examples only.
    ``options`` are the engine's. Equal work is not done twice: a finished run is returned, an interrupted one continued, unless
    ``fresh``, or the engine does not say exactly what it is (its info has no model digest).

    Raises InputError for a split without examples or an unknown name, MismatchError when the model's labels are not the task's,
    EngineError when the engine fails; what was answered until then is kept.
    """
    store = store or open_store()
    task = load_task(task, overrides)
    examples = _examples(task, split, limit)
    opened = _open(store, model, engine, options, raw=strategy is not None) if isinstance(model, str) else model
    try:
        asked = ask_with(opened, strategy, task, store)
        check_labels(asked.engine.info, task)
        work = _Work(store, task, split, examples, asked, dict(options or {}), progress, raw=strategy is None)
        return work.run(fresh)
    finally:
        if isinstance(model, str):
            opened.close()


def ask_with(engine: Engine, strategy: str | Mapping[str, Any] | None, task: Task, store: Store | None = None) -> Asked:
    """``engine`` with a strategy of the catalogue around it, its examples taken from the task's train split.

    Raises InputError for unknown strategies or options, UnsupportedError for a strategy around an encoder.
    """
    info = engine.info
    if strategy is None:
        if info.labels or info.answers or info.prompt_digest or _to_the_letter(task):
            return Asked(engine, OWN, {})
        strategy = "zero_shot"
    name, options = read_strategy(strategy, "strategy")
    if info.labels:
        raise UnsupportedError(
            f"{info.model} has a classification head: it reads the bare text, so strategy {name!r} cannot be put around it",
            hint="leave the strategy out",
        )
    if info.answers and not info.template_digest:
        raise UnsupportedError(
            f"{info.model} has a head that reads the bare text, so strategy {name!r} cannot be put around it",
            hint="leave the strategy out",
        )
    config = prepare_strategy(name, options, task.prompt, task.splits.train.examples, store)
    return Asked(wrap_strategy(engine, name, config, store), name, config.model_dump(mode="json"))


def _to_the_letter(task: Task) -> bool:
    """Whether the task fixes the prompts themselves, as benchmarks do."""
    return any(example.raw for example in task.splits.test.examples[:1])


def _open(store: Store, model: str, engine: str, options: Mapping[str, Any] | None, *, raw: bool) -> Engine:
    from luthier.strategies._load import load

    return load(model, engine=engine, store=store, options=options, raw=raw)


def _examples(task: Task, split: str, limit: int | None) -> tuple[Example, ...]:
    if split not in ("train", "validation", "test"):
        raise InputError(f"split must be train, validation or test; got {split!r}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; got {limit}")
    examples = task.examples(split)[:limit]
    if not examples:
        raise InputError(
            f"task {task.name} has no {split} examples", hint=f"give data.{split}, or shares in data.split"
        )
    return examples


@dataclass(frozen=True)
class _Work:
    """One evaluation, resolved."""

    store: Store
    task: Task
    split: str
    examples: tuple[Example, ...]
    asked: Asked
    options: dict[str, Any]
    progress: Progress
    raw: bool = True

    @property
    def info(self) -> EngineInfo:
        return self.asked.engine.info

    def key(self) -> str:
        """Equal work has an equal key."""
        info = self.info
        return digest_json(
            [
                "eval",
                self.task.digest,
                self.split,
                [example.id for example in self.examples],
                [
                    info.model,
                    info.model_digest,
                    info.base_digest,
                    info.template_digest,
                    info.prompt_digest,
                    info.engine,
                ],
                [self.asked.strategy, self.asked.config, self.raw],
                self.options,
            ]
        )

    def run(self, fresh: bool) -> EvalResult:
        key = self.key()
        run, records = (None, []) if fresh or not self._identified() else self._found(key)
        if run is not None and run.status == "done" and len(records) == len(self.examples):
            self.progress("evaluate", len(records), len(records))
            return EvalResult.from_run(run, records)
        if run is None:
            run = start(self.store, "eval", f"{self.task.name}/{self.info.model}", self._config(), {}, key)
            self._lineage(run)
        else:
            run = resume(self.store, run.id)
        return self._finish(run, records)

    def _identified(self) -> bool:
        """Whether an equal key means equal answers. A remote API has no digest to give; its name and address must do."""
        return bool(self.info.model_digest) or self.info.model.partition(":")[0] == "openai"

    def _found(self, key: str) -> tuple[Run | None, list[Record]]:
        """The run of equal work that got furthest, unless a living process is at it."""
        recover(self.store)
        runs = [run for run in by_key(self.store, key) if run.status != "running"]
        with_records = [(run, read_records(folder(self.store, run.id))) for run in runs]
        done = [pair for pair in with_records if pair[0].status == "done" and len(pair[1]) == len(self.examples)]
        return max(done or with_records, key=lambda pair: len(pair[1]), default=(None, []))

    def _finish(self, run: Run, records: list[Record]) -> EvalResult:
        place = folder(self.store, run.id)
        log = RecordsLog(place)
        resources = Resources(self.store, place)
        try:
            run_loop(
                self.asked.engine,
                self.task,
                self.examples,
                done=[r.index for r in records],
                keep=log.append,
                progress=self.progress,
                resources=resources,
                raw=self.raw,
            )
            answered = read_records(place)
            if one_by_one(self.info):
                latency = of_records(answered)
            else:
                latency = measure(self.asked.engine, self.task, self.examples, self.progress, raw=self.raw)
            summarised = summarise(self.task, answered)
        except KeyboardInterrupt:
            finish(self.store, run.id, "interrupted", {"error": "interrupted"})
            raise
        except BaseException as error:
            reason = error.message if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
            finish(self.store, run.id, "failed", {"error": reason})
            raise
        finally:
            resources.close()
            log.close()
        records = read_records(place)
        summary = {
            **summarised,
            "model": self.info.model,
            "task": self.task.name,
            "split": self.split,
            "strategy": self.asked.strategy,
            "warnings": self._warnings(),
            "latency": latency,
            "memory": self._memory(),
            "seconds": sum(record.latency_s for record in records),
        }
        return EvalResult.from_run(finish(self.store, run.id, "done", summary), records)

    def _warnings(self) -> list[str]:
        """Reasons to distrust the scores: examples that the weights were trained on."""
        ids = [example.id for example in self.examples]
        seen = len(trained_examples(self.store, self.info.model).intersection(ids))
        if not seen:
            return []
        return [
            f"{seen} of these {len(ids)} examples were trained on by {self.info.model}: the scores say nothing about new ones. "
            "Tune on the train split of this task (luthier tune with data.train, or a tournament)."
        ]

    def _memory(self) -> dict[str, Any]:
        import psutil

        return {
            "weights_mb": weights_mb(self.store, self.info),
            "process_mb": psutil.Process().memory_info().rss / 1e6,
        }

    def _config(self) -> dict[str, Any]:
        info = self.info
        return {
            "model": info.model,
            "task": {
                "name": self.task.name,
                "kind": self.task.kind,
                "digest": self.task.digest,
                "splits": self.task.splits.digest,
                "prompt": self.task.prompt.as_dict(),
                "labels": list(self.task.labels),
                "scorers": [list(pair) for pair in self.task.scorers],
                "max_new_tokens": self.task.max_new_tokens,
            },
            "split": self.split,
            "examples": len(self.examples),
            "strategy": {"name": self.asked.strategy, "config": self.asked.config},
            "engine": {
                "name": info.engine,
                "options": self.options,
                "model_digest": info.model_digest,
                "base_digest": info.base_digest,
                "template_digest": info.template_digest,
                "prompt_digest": info.prompt_digest,
                **({"writer": writer} if (writer := dict(info.meta).get("writer")) else {}),
            },
        }

    def _lineage(self, run: Run) -> None:
        node = Node("run", run.id)
        record_edge(self.store, Node("model", self.info.model), "evaluated in", node)
        record_edge(self.store, Node("task", self.task.digest, self.task.name), "scored in", node)
