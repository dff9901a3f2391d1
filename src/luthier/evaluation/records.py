"""What was asked, answered and scored, example by example: the lines of a run's ``records.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from luthier.core.document import Hit
from luthier.core.errors import InputError
from luthier.core.run import Run
from luthier.scorers._score import Answer, Option, Target
from luthier.store.database import Store
from luthier.store.runs import MetricsLog, find_run, folder, list_runs, read_metrics

RECORDS = "records.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """One example. ``index`` is its place in the split (equal rows have equal ids).

    ``answer`` is the label or the text that was scored; ``parsed`` is False when generated text was none of the labels. ``tie``
    says that several labels were equally likely and the first was taken. ``options`` are what was scored: text, nats, tokens, whether
    greedy. ``samples`` are all answers where several were asked for, ``reasoning`` what came before the answer. ``scores`` lack a
    scorer that could not say. ``slices`` are the values that results are also shown by. ``latency_s`` is the example's share of its
    batch, which is less than a request that comes alone waits (see ``summary.latency``). ``prompt_tokens`` is 0 where the engine
    does not say. ``hits`` are the passages that the engine was shown (``shown``), ``citations`` the ids of those that the answer cites.
    ``error`` is why the engine could not answer.
    """

    index: int
    id: str
    source: str
    input: str
    target: str
    answer: str
    scores: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[tuple[str, float, int, bool | None], ...] = ()
    references: tuple[str, ...] = ()
    correct: tuple[int, ...] = ()
    samples: tuple[str, ...] = ()
    reasoning: str = ""
    slices: Mapping[str, str] = field(default_factory=dict)
    parsed: bool = True
    tie: bool = False
    latency_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_digest: str = ""
    calls: int = 1
    error: str = ""
    hits: tuple[Mapping[str, Any], ...] = ()
    citations: tuple[str, ...] = ()

    @property
    def logprobs(self) -> dict[str, float]:
        """Nats of each scored text."""
        return {text: logprob for text, logprob, *_ in self.options}

    def as_answer(self) -> Answer:
        """What was scored."""
        return Answer(self.answer, tuple(Option(*option) for option in self.options), self.samples)

    def as_target(self) -> Target:
        """What it was compared with, without the rest of its row (``meta``), which only scoring itself needs."""
        choices = tuple(text for text, *_ in self.options) if self.correct else ()
        return Target(self.target, self.references, choices, self.correct, self.input)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if _worth_writing(getattr(self, f.name), f)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Record:
        """Inverse of ``as_dict``; keys of newer versions are dropped."""
        known = {key: data[key] for key in _NAMES if key in data}
        for key in _TUPLES.intersection(known):
            known[key] = tuple(tuple(item) if isinstance(item, list) else item for item in known[key])
        return Record(**known)


def _worth_writing(value: Any, of: Field[Any]) -> bool:
    """Whether a field differs from its default: most of thousands of lines would repeat empty ones."""
    if of.default is not MISSING:
        return bool(value != of.default)
    return of.default_factory is MISSING or value != of.default_factory()


_NAMES = tuple(f.name for f in fields(Record))
_TUPLES = frozenset({"options", "references", "correct", "samples", "hits", "citations"})


def shown(hit: Hit) -> dict[str, Any]:
    """A passage as a record keeps it: where it is and what it scored, without its text."""
    return {"id": hit.chunk.id, "source": hit.source, "cited": hit.cited, "score": round(hit.score, 6)}


class RecordsLog:
    """Appends records in blocks; a block is on the disk when ``append`` returns."""

    def __init__(self, place: Path) -> None:
        self._log = MetricsLog(place / RECORDS)

    def append(self, records: Iterable[Record]) -> None:
        """Write a block of records and flush it."""
        for record in records:
            self._log.write(record.as_dict())
        self._log.sync()

    def close(self) -> None:
        """Flush and close."""
        self._log.close()


def read_records(place: Path) -> list[Record]:
    """The records of a run's folder in the order of the split; a half-written last line is left out."""
    found = {record.index: record for record in map(Record.from_dict, read_metrics(place / RECORDS))}
    return [found[index] for index in sorted(found)]


def wrong_first(records: Iterable[Record], primary: str, *, lower_is_better: bool = False) -> list[Record]:
    """The records whose primary score is below 1, worst first; of equal ones, the surest of its mistake first.

    Those that could not be scored come before all others. Where lower is better there is no perfect score: all records, worst first.
    """
    kept = list(records) if lower_is_better else [r for r in records if r.scores.get(primary, 0.0) < 1.0]
    sign = -1.0 if lower_is_better else 1.0

    def badness(record: Record) -> float:
        score = record.scores.get(primary)
        return -math.inf if score is None else sign * score

    return sorted(kept, key=lambda r: (badness(r), -_margin(r), r.index))


def _margin(record: Record) -> float:
    """Nats by which the given answer was preferred to the target; 0 without log-probabilities."""
    if record.answer in record.logprobs and record.target in record.logprobs:
        return record.logprobs[record.answer] - record.logprobs[record.target]
    return 0.0


def find(store: Store, name: str) -> Run:
    """A run by id, by the start of id or name, or ``latest``: the one that last began or ended (of a tournament and its parts, the
    tournament). Raises NotFoundError, or InputError when there is no run yet."""
    if name != "latest":
        return find_run(store, name)
    newest = list_runs(store, limit=200)
    if not newest:
        raise InputError("there is no run yet", hint="luthier eval MODEL TASK.yaml   or   luthier tournament TASK.yaml")
    return max(newest, key=lambda run: (run.finished_at or run.created_at, run.created_at))


def load_records(store: Store, run: Run) -> list[Record]:
    """The records of a run of kind ``eval``."""
    if run.kind != "eval":
        raise InputError(f"run {run.id} is of kind {run.kind}; only eval runs have records")
    return read_records(folder(store, run.id))
