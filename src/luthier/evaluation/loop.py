"""The one evaluation loop: examples in, scored records out, over anything that satisfies ``Engine``.

How an example is put to the engine is in ``asking``. Work goes in blocks whose records are written before the next begins, longest
inputs first, so that batches hold like lengths and the time left is not underestimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core import catalog
from luthier.core.catalog import Entry
from luthier.core.dataset import Example
from luthier.core.engine import Engine, EngineInfo
from luthier.core.errors import ContextLengthError, EngineError, InputError, MismatchError
from luthier.core.run import Progress
from luthier.core.score import Target, target_of
from luthier.core.task import Task
from luthier.evaluation.asking import Ask, Reply, choose
from luthier.evaluation.records import Record, shown
from luthier.scorers._score import Resources, score_all

_LEAST = -1e9  # stands for minus infinity, which JSON cannot write


@dataclass(frozen=True)
class Scorer:
    """A chosen scorer with its config, under the name that results carry."""

    label: str
    entry: Entry
    config: Any

    @property
    def lower_is_better(self) -> bool:
        """Whether smaller figures are better ones."""
        return bool(self.entry.optional("LOWER_IS_BETTER"))


def scorers_of(task: Task) -> list[Scorer]:
    """The task's scorers, primary first."""
    return scorers_from(task.scorers)


def scorers_from(listed: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Scorer]:
    """Scorers from (name, options) pairs. The option ``as`` names one; without, one that occurs twice carries its options in its name."""
    names = [name for name, _ in listed]
    out = []
    for name, given in listed:
        entry = catalog.load("scorers", name)
        options = {key: value for key, value in given.items() if key != "as"}
        told = ",".join(f"{k}={v}" for k, v in sorted(options.items()))
        label = f"{name}({told})" if names.count(name) > 1 and told else name
        out.append(Scorer(str(given.get("as") or label), entry, entry.configure(options)))
    return out


def check_labels(info: EngineInfo, task: Task) -> None:
    """Raise MismatchError when the engine can only give other labels than the task asks for."""
    if task.kind != "classify" or not info.labels or set(info.labels) == set(task.labels):
        return
    lacks, extra = sorted(set(task.labels) - set(info.labels)), sorted(set(info.labels) - set(task.labels))
    raise MismatchError(
        f"{info.model} answers with other labels than task {task.name} has: "
        + "; ".join(part for part in (lacks and f"it lacks {_few(lacks)}", extra and f"it has {_few(extra)}") if part),
        hint="evaluate it on the task that it was trained for, or tune a model on this one",
    )


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def run_loop(
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    *,
    done: Iterable[int],
    keep: Callable[[list[Record]], None],
    progress: Progress,
    resources: Resources | None = None,
    raw: bool = True,
) -> None:
    """Answer and score every example whose index is not in ``done``; ``keep`` gets each finished block.

    Raises MismatchError or UnsupportedError before the first answer, EngineError when the engine fails. An input that the engine
    refuses (longer than its context) becomes a record with ``error`` that scores as a wrong answer; when it refuses them all, its
    error is raised. ``resources`` are for scorers that need more than the answer. ``raw`` False asks in the engine's or its strategy's
    own way also where a benchmark fixes the prompt to the letter.
    """
    check_labels(engine.info, task)
    ask = choose(engine, task, raw=raw)
    resources = resources or Resources()
    scorers = scorers_of(task)
    already = set(done)
    count, refused = len(already), 0
    progress("evaluate", count, len(examples))
    for block in _blocks(examples, ask.block):
        left = [i for i in block if i not in already]
        if not left:
            continue
        inner = _offset(progress, count, len(examples))
        answers = _answer(ask, [examples[i] for i in left], inner)
        refused += sum(bool(a.error) for a in answers)
        keep(_records(left, [examples[i] for i in left], answers, task, scorers, resources))
        count += len(left)
        progress("evaluate", count, len(examples))
    if examples and refused == len(examples):
        raise EngineError(f"{engine.info.model} refused every example; first: {answers[0].error}")


def _blocks(examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Indices in blocks, the same in every run, so a resumed one is like an unbroken one.

    Prompts that begin alike (a subject's worked examples) come together, for engines that read a common beginning once; else like
    lengths do, longest first.
    """
    order = sorted(range(len(examples)), key=lambda i: (examples[i].raw[:1], -len(examples[i].text), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _offset(progress: Progress, done: int, total: int) -> Progress:
    return lambda stage, part, of: progress("evaluate", min(done + part, total), total)


def _answer(ask: Ask, examples: Sequence[Example], progress: Progress) -> list[Reply]:
    """All answers of a block; when the engine refuses one input, each is asked alone so that the others still count."""
    try:
        return ask(examples, progress)
    except InputError as error:
        if type(error) not in (
            InputError,
            ContextLengthError,
        ):  # the engine cannot do this at all: no single input is to blame
            raise
        if len(examples) == 1:
            return [Reply("", parsed=False, error=error.message)]
    out = []
    for done, example in enumerate(examples):
        progress("evaluate", done, len(examples))
        out += _answer(ask, [example], _silent)
    return out


def _silent(stage: str, done: int, total: int) -> None:
    """The caller counts the examples of a block itself."""


def _records(
    indices: Sequence[int],
    examples: Sequence[Example],
    replies: Sequence[Reply],
    task: Task,
    scorers: Sequence[Scorer],
    resources: Resources,
) -> list[Record]:
    answers = [reply.answer for reply in replies]
    targets = [target_of(example) for example in examples]
    scores: list[dict[str, float]] = [{} for _ in indices]
    details: list[dict[str, Any]] = [{} for _ in indices]
    for scorer in scorers:
        for row, score in enumerate(score_all(scorer.entry, scorer.config, answers, targets, resources)):
            if score.value is not None:
                scores[row][scorer.label] = float(score.value)
            if score.detail:
                details[row][scorer.label] = dict(score.detail)
    rows = zip(indices, examples, replies, targets, scores, details, strict=True)
    return [_record(*row, slices=task.slices) for row in rows]


def _record(
    index: int,
    example: Example,
    reply: Reply,
    target: Target,
    scores: dict[str, float],
    details: dict[str, Any],
    *,
    slices: Sequence[str],
) -> Record:
    options = tuple((o.text, round(max(o.logprob, _LEAST), 6), o.tokens, o.greedy) for o in reply.options)
    return Record(
        index=index,
        id=example.id,
        source=example.source,
        input=example.text,
        target=target.text,
        answer=reply.text,
        scores=scores,
        details=details,
        options=() if reply.error else options,
        references=target.references,
        correct=target.correct,
        samples=reply.samples,
        reasoning=reply.reasoning,
        slices={key: str(example.meta[key]) for key in slices if key in example.meta},
        parsed=reply.parsed,
        tie=reply.tie,
        latency_s=reply.latency_s,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        prompt_digest=reply.prompt_digest,
        calls=reply.calls,
        error=reply.error,
        hits=tuple(shown(hit) for hit in reply.hits),
        citations=tuple(citation.hit.chunk.id for citation in reply.citations),
    )
