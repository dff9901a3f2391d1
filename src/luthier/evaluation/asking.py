"""How examples are put to an engine.

Labels and choices are asked as log-likelihoods, each as the whole answer, and the likeliest is taken; an engine that cannot score (a
remote API, a strategy that thinks first) writes its answer, which counts when it says one of them. Free text is greedy unless the
task asks for samples. Language modelling asks how likely the target is.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.document import Citation, Hit
from luthier.core.engine import (
    GENERATE,
    SCORE,
    ContinuationScore,
    Engine,
    Generation,
    Sampling,
    ScoreRequest,
    require,
)
from luthier.core.errors import UnsupportedError
from luthier.core.message import Message, Prompt
from luthier.core.run import Progress
from luthier.core.task import Task
from luthier.scorers import exact
from luthier.scorers._score import Answer, Option

SCORE_BLOCK = 256
GENERATE_BLOCK = 32
_SAME_LABEL = exact.Config(casefold=True, punctuation=True)


@dataclass(frozen=True)
class Reply:
    """What came back for one example, before it is scored."""

    text: str
    options: tuple[Option, ...] = ()
    samples: tuple[str, ...] = ()
    reasoning: str = ""
    parsed: bool = True
    tie: bool = False
    latency_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_digest: str = ""
    calls: int = 1
    error: str = ""
    hits: tuple[Hit, ...] = ()
    citations: tuple[Citation, ...] = ()

    @property
    def answer(self) -> Answer:
        """The part that scorers see."""
        return Answer(self.text, () if self.error else self.options, self.samples, self.hits, self.citations)


@dataclass(frozen=True)
class AskOptions:
    """The likeliest label or choice by the log-probability of its whole text as the answer (a sum over tokens)."""

    engine: Engine
    task: Task
    raw: bool = True
    block: int = SCORE_BLOCK

    def __call__(self, examples: Sequence[Example], progress: Progress) -> list[Reply]:
        """One option an example."""
        if not self.raw:
            _refuse_paired(self.task, examples)
        requests: list[ScoreRequest] = []
        sizes: list[int] = []
        for example in examples:
            asked = self._requests(example)
            requests += asked
            sizes.append(len(asked))
        start = time.perf_counter()
        scored = iter(self.engine.score(requests, progress))
        each = (time.perf_counter() - start) / max(len(examples), 1)
        rows = [[one for _ in range(size) for one in next(scored)] for size in sizes]
        return [self._pick(example, row, each) for example, row in zip(examples, rows, strict=True)]

    def _texts(self, example: Example) -> tuple[str, ...]:
        return example.choices if self.task.kind == "choice" else self.task.labels

    def _requests(self, example: Example) -> list[ScoreRequest]:
        texts = self._texts(example)
        if self.raw and len(example.raw) > 1:
            return [ScoreRequest(raw, (text,)) for raw, text in zip(example.raw, texts, strict=True)]
        prompt: Prompt = example.raw[0] if self.raw and example.raw else example.messages
        # white space that joins a choice to a raw prompt has no place in a turn of its own
        return [ScoreRequest(prompt, texts if isinstance(prompt, str) else tuple(text.strip() for text in texts))]

    def _pick(self, example: Example, row: Sequence[ContinuationScore], each: float) -> Reply:
        options = _options(self._texts(example), row)
        if any(math.isnan(option.logprob) for option in options):
            return Reply("", options, parsed=False, latency_s=each, error=_NOT_A_NUMBER)
        best = max(option.logprob for option in options)
        winners = [option for option in options if option.logprob == best]
        won = winners[0]
        return Reply(won.text, options, tie=len(winners) > 1, latency_s=each, completion_tokens=won.tokens)


@dataclass(frozen=True)
class AskLikelihood:
    """How likely the target is after the prompt, which may be empty."""

    engine: Engine
    task: Task
    raw: bool = True
    block: int = SCORE_BLOCK

    def __call__(self, examples: Sequence[Example], progress: Progress) -> list[Reply]:
        """One log-probability an example; the answer is the target itself where it is what the engine would have said."""
        requests = []
        for example in examples:
            prompt: Prompt = example.raw[0] if self.raw and example.raw else example.messages
            requests.append(ScoreRequest(prompt, (str(example.target),)))
        start = time.perf_counter()
        scored = self.engine.score(requests, progress)
        each = (time.perf_counter() - start) / max(len(examples), 1)
        return [self._reply(str(e.target), row, each) for e, row in zip(examples, scored, strict=True)]

    def _reply(self, target: str, row: Sequence[ContinuationScore], each: float) -> Reply:
        options = _options((target,), row)
        if math.isnan(options[0].logprob):
            return Reply("", options, parsed=False, latency_s=each, error=_NOT_A_NUMBER)
        return Reply(target if options[0].greedy else "", options, latency_s=each, completion_tokens=options[0].tokens)


_NOT_A_NUMBER = "a log-probability is not a number"


def _options(texts: Sequence[str], row: Sequence[ContinuationScore]) -> tuple[Option, ...]:
    return tuple(Option(text, s.logprob, s.tokens, s.greedy) for text, s in zip(texts, row, strict=True))


@dataclass(frozen=True)
class AskText:
    """The answer as the engine writes it; in a task of labels or choices it is parsed into one of them."""

    engine: Engine
    task: Task
    raw: bool = True
    block: int = GENERATE_BLOCK

    def __call__(self, examples: Sequence[Example], progress: Progress) -> list[Reply]:
        """One text (label, choice) an example."""
        task = self.task
        _refuse_paired(task, examples)
        prompts: list[Prompt] = [
            e.raw[0] if self.raw and e.raw else e.messages for e in examples for _ in range(task.samples)
        ]
        start = time.perf_counter()
        if task.samples > 1:
            made = self._sampled(prompts, progress)
        else:
            sampling = Sampling(
                max_new_tokens=task.max_new_tokens, temperature=task.temperature, stop=task.stop, seed=0
            )
            made = [[one] for one in self.engine.generate(prompts, sampling, progress)]
            made = self._followed(examples, prompts, made, sampling)
        each = (time.perf_counter() - start) / max(len(examples), 1)
        return [self._read(example, row, each) for example, row in zip(examples, made, strict=True)]

    def _sampled(self, prompts: Sequence[Prompt], progress: Progress) -> list[list[Generation]]:
        """``samples`` answers to each question: every call draws with its own seed, so that no two are the same draw."""
        task = self.task
        questions = list(prompts[:: task.samples])
        drawn = []
        for seed in range(task.samples):
            sampling = Sampling(
                max_new_tokens=task.max_new_tokens, temperature=task.temperature or 1.0, stop=task.stop, seed=seed
            )
            drawn.append(self.engine.generate(questions, sampling, _part(progress, seed, task.samples)))
        return [list(row) for row in zip(*drawn, strict=True)]

    def _followed(
        self, examples: Sequence[Example], prompts: Sequence[Prompt], made: list[list[Generation]], sampling: Sampling
    ) -> list[list[Generation]]:
        """The answers to what an example asks next (``meta["then"]``), after its own answers so far; the last one is scored."""
        then = [
            tuple(e.meta.get("then", ())) if not isinstance(p, str) else ()
            for e, p in zip(examples, prompts, strict=True)
        ]
        talks = list(prompts)
        for turn in range(max(map(len, then), default=0)):
            at = [i for i, turns in enumerate(then) if turn < len(turns)]
            for i in at:
                talks[i] = (*talks[i], Message("assistant", made[i][-1].text), Message("user", then[i][turn]))
            for i, one in zip(at, self.engine.generate([talks[i] for i in at], sampling), strict=True):
                made[i].append(one)
        return made

    def _read(self, example: Example, made: Sequence[Generation], each: float) -> Reply:
        first = made[0]
        text, parsed = first.text, True
        if self.task.samples == 1 and len(made) > 1:
            text = _talk(example, made)
        if self.task.kind in ("classify", "choice"):
            options = example.choices if self.task.kind == "choice" else self.task.labels
            found = parse_option(first.text, options)
            text, parsed = (found, True) if found is not None else (first.text, False)
        return Reply(
            text,
            samples=tuple(one.text for one in made) if self.task.samples > 1 else first.samples,
            reasoning=first.reasoning,
            parsed=parsed,
            latency_s=sum(one.latency_s for one in made) if dict(self.engine.info.meta).get("one_by_one") else each,
            prompt_tokens=sum(one.prompt_tokens for one in made),
            completion_tokens=sum(one.completion_tokens for one in made),
            prompt_digest=digest_json(first.prompt_token_ids) if first.prompt_token_ids else "",
            calls=sum(one.calls for one in made),
            hits=first.hits,
            citations=first.citations,
        )


def _refuse_paired(task: Task, examples: Sequence[Example]) -> None:
    """Choices that differ only in what comes before them can be told apart in the benchmark's own prompts alone."""
    if any(len(example.raw) > 1 for example in examples):
        raise UnsupportedError(
            f"{task.name} has a prompt of its own for each choice; it can only be asked as it is, of an engine that scores",
            hint="leave the strategy out, or ask it in turns: chat=true",
        )


def _talk(example: Example, made: Sequence[Generation]) -> str:
    """A conversation of several questions from the first answer on, as a judge reads it."""
    later = zip(example.meta["then"], made[1:], strict=True)
    return made[0].text + "".join(f"\n\nUser: {asked}\n\nAssistant: {one.text}" for asked, one in later)


def _part(progress: Progress, part: int, parts: int) -> Progress:
    return lambda stage, done, total: progress(stage, (part * total + done) // parts, total)


_SAYS = re.compile(
    r"(?:answer|option|choice|答案|选项?)\s*(?:is|:|：|是|为)*\s*[(（\[]?\s*([A-Za-z0-9])\b", re.IGNORECASE
)


def parse_option(text: str, options: Sequence[str]) -> str | None:
    """The option that ``text`` says: the option itself without regard to case and punctuation, at the start of the text where
    options are single letters (``B. because``), or after "answer is". None when it says none, or two."""
    known = {exact.normalise(option, _SAME_LABEL): option for option in options}
    said = exact.normalise(text, _SAME_LABEL)
    if said in known:
        return known[said]
    if all(len(key) == 1 for key in known):
        stated = _SAYS.findall(text)
        first = stated[-1] if stated else (said.split() or [""])[0]
        return known.get(exact.normalise(first, _SAME_LABEL))
    return None


Ask: TypeAlias = AskOptions | AskLikelihood | AskText
"""A way to put examples to an engine, ``block`` of them at once."""


def choose(engine: Engine, task: Task, *, raw: bool = True) -> Ask:
    """How this engine is asked for this task. Raises UnsupportedError when it can do none of what the task's kind needs."""
    if task.kind == "likelihood":
        require(engine, SCORE)
        return AskLikelihood(engine, task, raw)
    if task.kind in ("classify", "choice") and SCORE in engine.info.capabilities:
        return AskOptions(engine, task, raw)
    require(engine, GENERATE)
    return AskText(engine, task, raw)
