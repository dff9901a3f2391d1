"""The one evaluation loop: examples in, scored records out, over anything that satisfies ``Engine``.

Classification asks for the log-likelihood of every label as the whole answer and takes the likeliest; an engine that cannot score
(a remote API) writes its answer, which counts when it is a label. Generation is greedy. Work goes in blocks whose records are
written before the next begins, longest inputs first, so that batches hold like lengths and the time left is not underestimated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from luthier.core import catalog
from luthier.core.catalog import Entry
from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.engine import (
    GENERATE,
    SCORE,
    ContinuationScore,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    require,
)
from luthier.core.errors import EngineError, InputError, MismatchError
from luthier.core.run import Progress
from luthier.core.task import Task
from luthier.evaluation.records import Record
from luthier.scorers import exact

SCORE_BLOCK = 128
GENERATE_BLOCK = 32
_LEAST = -1e9  # stands for minus infinity, which JSON cannot write
_SAME_LABEL = exact.Config(casefold=True, punctuation=True)


@dataclass(frozen=True)
class Scorer:
    """A chosen scorer with its config, under the name that results carry."""

    label: str
    entry: Entry
    config: Any


def scorers_of(task: Task) -> list[Scorer]:
    """The task's scorers, primary first. One that occurs twice carries its options in its name."""
    names = [name for name, _ in task.scorers]
    out = []
    for name, options in task.scorers:
        entry = catalog.load("scorers", name)
        told = ",".join(f"{k}={v}" for k, v in sorted(options.items()))
        label = f"{name}({told})" if names.count(name) > 1 and told else name
        out.append(Scorer(label, entry, entry.configure(options)))
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
) -> None:
    """Answer and score every example whose index is not in ``done``; ``keep`` gets each finished block.

    Raises MismatchError or UnsupportedError before the first answer, EngineError when the engine fails. An input that the engine
    refuses (longer than its context) becomes a record with ``error`` that scores as a wrong answer; when it refuses them all, its
    error is raised.
    """
    check_labels(engine.info, task)
    ask = choose(engine, task)
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
        keep([_record(i, examples[i], a, scorers) for i, a in zip(left, answers, strict=True)])
        count += len(left)
        progress("evaluate", count, len(examples))
    if examples and refused == len(examples):
        raise EngineError(f"{engine.info.model} refused every example; first: {answers[0].error}")


def _blocks(examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Indices in blocks of like lengths, longest first; the same blocks in every run, so a resumed one is like an unbroken one."""
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i].text), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _offset(progress: Progress, done: int, total: int) -> Progress:
    return lambda stage, part, of: progress("evaluate", min(done + part, total), total)


@dataclass(frozen=True)
class Answer:
    """What came back for one example, before it is scored."""

    text: str
    logprobs: tuple[tuple[str, float], ...] = ()
    parsed: bool = True
    tie: bool = False
    latency_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_digest: str = ""
    error: str = ""


@dataclass(frozen=True)
class AskLabels:
    """The likeliest label by the log-probability of its whole text as the answer (a sum over tokens)."""

    engine: Engine
    task: Task
    block: int = SCORE_BLOCK

    def __call__(self, examples: Sequence[Example], progress: Progress) -> list[Answer]:
        """One label an example."""
        labels = self.task.labels
        requests = [ScoreRequest(example.messages, labels) for example in examples]
        start = time.perf_counter()
        scored = self.engine.score(requests, progress)
        each = (time.perf_counter() - start) / max(len(examples), 1)
        return [self._pick(row, each) for row in scored]

    def _pick(self, row: Sequence[ContinuationScore], each: float) -> Answer:
        labels = self.task.labels
        pairs = tuple((label, s.logprob) for label, s in zip(labels, row, strict=True))
        if any(math.isnan(value) for _, value in pairs):
            return Answer("", pairs, parsed=False, latency_s=each, error="a label's log-probability is not a number")
        best = max(value for _, value in pairs)
        winners = [i for i, (_, value) in enumerate(pairs) if value == best]
        won = winners[0]
        return Answer(labels[won], pairs, tie=len(winners) > 1, latency_s=each, completion_tokens=row[won].tokens)


@dataclass(frozen=True)
class AskText:
    """The greedy answer; in a ``classify`` task it is parsed into a label."""

    engine: Engine
    task: Task
    block: int = GENERATE_BLOCK

    def __call__(self, examples: Sequence[Example], progress: Progress) -> list[Answer]:
        """One text (or label) an example."""
        sampling = Sampling(max_new_tokens=self.task.max_new_tokens)
        start = time.perf_counter()
        made = self.engine.generate([example.messages for example in examples], sampling, progress)
        each = (time.perf_counter() - start) / max(len(examples), 1)
        known = {exact.normalise(label, _SAME_LABEL): label for label in self.task.labels}
        return [self._read(generation, known, each) for generation in made]

    def _read(self, made: Generation, known: dict[str, str], each: float) -> Answer:
        text, parsed = made.text, True
        if self.task.kind == "classify":
            label = known.get(exact.normalise(made.text, _SAME_LABEL))
            text, parsed = (label, True) if label is not None else (made.text, False)
        return Answer(
            text,
            parsed=parsed,
            latency_s=each,
            prompt_tokens=made.prompt_tokens,
            completion_tokens=made.completion_tokens,
            prompt_digest=digest_json(made.prompt_token_ids) if made.prompt_token_ids else "",
        )


Ask: TypeAlias = AskLabels | AskText
"""A way to put examples to an engine, ``block`` of them at once."""


def choose(engine: Engine, task: Task) -> Ask:
    """How this engine is asked for this task. Raises UnsupportedError when it can neither score nor generate."""
    if task.kind == "classify" and SCORE in engine.info.capabilities:
        return AskLabels(engine, task)
    require(engine, GENERATE)
    return AskText(engine, task)


def _answer(ask: Ask, examples: Sequence[Example], progress: Progress) -> list[Answer]:
    """All answers of a block; when the engine refuses one input, each is asked alone so that the others still count."""
    try:
        return ask(examples, progress)
    except InputError as error:
        if type(error) is not InputError:  # the engine cannot do this at all: no single input is to blame
            raise
        if len(examples) == 1:
            return [Answer("", parsed=False, error=error.message)]
    out = []
    for done, example in enumerate(examples):
        progress("evaluate", done, len(examples))
        out += _answer(ask, [example], _silent)
    return out


def _silent(stage: str, done: int, total: int) -> None:
    """The caller counts the examples of a block itself."""


def _record(index: int, example: Example, answer: Answer, scorers: Sequence[Scorer]) -> Record:
    target = str(example.target)
    scores: dict[str, float] = {}
    details: dict[str, Any] = {}
    for scorer in scorers:
        score = scorer.entry(answer.text, target, scorer.config)
        scores[scorer.label] = score.value
        if score.detail:
            details[scorer.label] = dict(score.detail)
    return Record(
        index=index,
        id=example.id,
        source=example.source,
        input=example.text,
        target=target,
        answer=answer.text,
        scores=scores,
        details=details,
        logprobs={label: round(max(value, _LEAST), 6) for label, value in answer.logprobs if not math.isnan(value)},
        parsed=answer.parsed,
        tie=answer.tie,
        latency_s=answer.latency_s,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        prompt_digest=answer.prompt_digest,
        error=answer.error,
    )
