"""Ask through several prompts and put the answers together (Jiang et al., 2020, "How Can We Know What Language Models Know?")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.engine import SCORE, ContinuationScore, Engine, EngineInfo, Sampling, ScoreRequest, require
from luthier.core.errors import InputError
from luthier.core.message import Prompt, last_user_text
from luthier.core.run import Progress, no_progress
from luthier.core.task import PromptTemplate
from luthier.data.prompts import in_language
from luthier.data.reasons import answers_of
from luthier.strategies._answers import AnswerForm, final_answer, form_of
from luthier.strategies._prompted import is_question, plain, read_prompt
from luthier.strategies._thinking import Ask, Talk, Thinking, as_asked, cost_of, good, weighed
from luthier.strategies._vote import elect, likelihoods, probabilities

if TYPE_CHECKING:
    from luthier.store.database import Store

Combine = Literal["mean", "vote", "max"]
CLASSIFY = ("classify_question", "classify_choose")
ANSWER = ("answer", "answer_direct")


class Config(EntryConfig):
    """``templates`` are names of the prompt catalogue, or prompts as plain values (``instruction``, ``input``); left out, two that come
    with Luthier. The task's own prompt is asked too, unless ``own`` is false.

    ``combine`` puts log-likelihoods of labels and choices together: ``mean`` of them over the prompts, ``max``, or ``vote``, each prompt for
    its likeliest one (of equal votes, the more probable one on average wins). Written answers: ``vote`` counts them, ``mean`` adds up their
    probabilities, each to the power of one by its number of tokens, ``max`` takes the likeliest. ``answer`` says how written answers are
    read and compared: ``number``, ``letter``, ``label``, ``text``, or ``auto``, what the answers of the train split are.
    """

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    templates: tuple[str | dict[str, Any], ...] = ()
    own: bool = True
    combine: Combine = "mean"
    answer: AnswerForm = "auto"


def prepare(config: Config, train: Sequence[Example], store: Store | None = None) -> Config:
    """``config`` with the templates' texts in it, and the form that the answers in ``train`` have."""
    prompt = read_prompt(config.prompt, store=store)
    form = config.answer
    if form == "auto":
        form = form_of(answers_of(train), prompt.labels)
    like = (train[0].text if train else "") + prompt.instruction
    templates = tuple(
        plain(_template(each, prompt, store)) for each in config.templates or _default(prompt, like, store)
    )
    return config.model_copy(update={"prompt": plain(prompt), "templates": templates, "answer": form})


def _default(prompt: PromptTemplate, like: str, store: Store | None) -> list[str]:
    return [in_language(name, like, store).label for name in (CLASSIFY if prompt.labels else ANSWER)]


def _template(value: str | Mapping[str, Any], prompt: PromptTemplate, store: Store | None) -> PromptTemplate:
    given = {"template": value} if isinstance(value, str) else value
    return read_prompt({"labels": prompt.labels, **given}, store=store)


def wrap(engine: Engine, config: Config, store: Store | None = None) -> Engine:
    """``engine``, asked through every prompt. Raises InputError when there is one prompt only, or the same twice."""
    own = read_prompt(config.prompt, store=store)
    chosen = config.templates or _default(own, own.instruction, store)
    prompts = [*([own] if config.own else []), *(_template(each, own, store) for each in chosen)]
    if len(prompts) < 2:
        raise InputError(
            "prompt_ensemble.templates must name at least one prompt beside the task's, or two with own: false"
        )
    if len({each.digest for each in prompts}) < len(prompts):
        raise InputError("prompt_ensemble asks one prompt twice; leave it out, or set own: false")
    return _Ensemble(engine, prompts, config)


class _Ensemble(Thinking):
    """``inner``, asked through every one of ``prompts``; scores as well as it answers, where ``inner`` does."""

    def __init__(self, inner: Engine, prompts: Sequence[PromptTemplate], config: Config) -> None:
        digest = digest_json(["prompt_ensemble", [p.digest for p in prompts], config.combine, config.answer])
        super().__init__(inner, self._answers, digest)
        self.prompts, self._config = tuple(prompts), config
        self._scores: EngineInfo = self._info.with_(
            capabilities=self._info.capabilities | (inner.info.capabilities & {SCORE})
        )

    @property
    def info(self) -> EngineInfo:
        """The inner engine's, with the digest of all prompts."""
        return self._scores

    def _answers(self, asked: Prompt, sampling: Sampling) -> Talk:
        drawn = sampling if self._config.combine == "vote" else weighed(sampling, self.inner)
        made = good((yield [Ask(p.messages(last_user_text(asked)), drawn) for p in self.prompts]))
        answers = [final_answer(each.text, self._config.answer, self.prompts[0].labels) for each in made]
        name = self.inner.info.model
        if self._config.combine == "max":
            values = likelihoods(made, name)
            chosen = values.index(max(values))
        else:
            weights = probabilities(made, name) if self._config.combine == "mean" else [1.0] * len(made)
            chosen = elect(answers, weights)
        text = made[chosen].text if self._config.answer == "text" else answers[chosen]
        return cost_of(replace(as_asked(made[chosen], sampling), text=text, samples=tuple(answers)), made)

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Log-likelihoods of all prompts in one batch, put together; raw text and longer conversations are scored as they are."""
        require(self, SCORE)
        asked = [self._requests(request) for request in requests]
        scored = iter(self.inner.score([one for several in asked for one in several], progress))
        return [combined([next(scored) for _ in several], self._config.combine) for several in asked]

    def _requests(self, request: ScoreRequest) -> list[ScoreRequest]:
        if not is_question(request.prompt):
            return [request]
        text = last_user_text(request.prompt)
        return [ScoreRequest(p.messages(text), request.continuations) for p in self.prompts]


def combined(rows: Sequence[tuple[ContinuationScore, ...]], combine: Combine) -> tuple[ContinuationScore, ...]:
    """One row from a row for each prompt: (prompts, continuations) log-likelihoods -> (continuations,)."""
    if len(rows) == 1:
        return rows[0]
    columns = [[one.logprob for one in column] for column in zip(*rows, strict=True)]
    means = [sum(column) / len(column) for column in columns]
    if any(math.isnan(each) for each in means) or combine == "mean" or (combine == "vote" and len(columns) == 1):
        values = means
    elif combine == "max":
        values = [max(column) for column in columns]
    else:
        values = _votes(columns, means)
    return tuple(ContinuationScore(value, first.tokens) for value, first in zip(values, rows[0], strict=True))


def _votes(columns: Sequence[Sequence[float]], means: Sequence[float]) -> list[float]:
    """log of each continuation's share of the votes, in which the mean probabilities together count as half a vote, so that they decide between equals only."""
    votes = [0] * len(columns)
    for row in zip(*columns, strict=True):
        votes[row.index(max(row))] += 1
    best = max(means)
    weights = [math.exp(mean - best) if best > -math.inf else 1.0 for mean in means]
    tie = [0.5 * weight / sum(weights) for weight in weights]
    shares = [(count + half) / (sum(votes) + 0.5) for count, half in zip(votes, tie, strict=True)]
    return [math.log(share) if share > 0 else -math.inf for share in shares]
