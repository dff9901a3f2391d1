"""What objectives share that learn from answers of their own: prompts, what a rollout gives the loop, the reference policy.

The loop calls ``play`` once a step with the step's prompts; the rows that come back are what ``collate`` and ``loss`` get.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError
from luthier.core.message import Conversation
from luthier.core.task import PromptTemplate
from luthier.data.batch import order_by_length
from luthier.models.load import LoadedModel
from luthier.models.rollout import require_decoder
from luthier.models.score import Row as ScoredRow
from luthier.models.soft_prompt import is_soft
from luthier.objectives._log_probs import answer_states, token_log_probs
from luthier.objectives._rows import Limits, require_kind

KINDS = ("chat", "question", "labelled", "preference")
"""Kinds of data whose prompts can be answered."""


@dataclass(frozen=True)
class Moment:
    """When a rollout happens: ``step`` counts from 0; ``max_tokens`` is the token budget of a forward.

    ``training`` is False in a validation: then the random numbers are the same each time, and nothing is learnt (an adaptive
    coefficient stays as it is).
    """

    step: int
    run_seed: int
    max_tokens: int
    training: bool = True

    @property
    def seed(self) -> int:
        """The seed of this rollout: a pure function of run seed, step and what it is for."""
        return random.Random(f"{self.run_seed}/{self.step}/{self.training}").getrandbits(62)


@dataclass(frozen=True)
class Experience:
    """What a rollout gives the loop: ``rows`` (length, weight and source like any row) and ``metrics`` of the step.

    The loop makes ``epochs`` x ``minibatches`` optimizer updates of them (fewer where there are fewer rows), in an order that the seed
    decides; each update's loss is the mean over its rows' weights, in micro-batches under the token budget.
    """

    rows: Sequence[Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 1
    minibatches: int = 1


class Rollout(Protocol):
    """What an objective's optional function ``rollout(model, config)`` makes, once, from the model as it is before training."""

    def play(self, rows: Sequence[Any], moment: Moment) -> Experience:
        """Experience from the prompts of one step. Called in eval mode and without gradients."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for an exact resume, beside the weights."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``."""


@dataclass(slots=True)
class PromptRow:
    """A prompt in tokens and as ``messages``; ``target`` is what the data says the answer should be, if it does (of a chat its last turn),
    ``references`` all answers that count. ``length`` is the most that its answers can cost, so that a limit on tokens holds."""

    prompt: list[int]
    messages: Conversation
    target: str | None
    references: tuple[str, ...]
    example: Example
    source: str
    length: int

    @property
    def weight(self) -> int:
        """One prompt."""
        return 1


RewardFunction = Callable[[Sequence[Conversation], Sequence[str], Sequence[PromptRow]], list[float]]
"""(prompts, answers as text, their rows) -> a reward for each answer: the seam between rollouts and what judges them."""


def prompt_rows(
    dataset: Dataset,
    model: LoadedModel,
    prompt: PromptTemplate,
    limits: Limits,
    objective: str,
    *,
    max_new_tokens: int,
    copies: int = 1,
) -> list[PromptRow]:
    """The prompts of ``dataset`` in tokens; of a chat what comes before its last turn, when that is the assistant's.

    Raises UnsupportedError for other kinds of data or another architecture than a decoder; DataError for a row without a prompt, and for
    prompts after which ``max_new_tokens`` do not fit into the context (with data.overlong=drop or truncate they are left out).
    """
    require_kind(dataset, KINDS, objective)
    require_decoder(model, f"objective {objective}")
    assert model.renderer is not None
    asked = [_asked(example, dataset.kind, prompt) for example in dataset.examples]
    rows = []
    for example, (messages, target) in zip(dataset.examples, asked, strict=True):
        ids = model.renderer.prompt_ids(messages, example.meta.get("tools"))
        whole = len(ids) + max_new_tokens
        row = PromptRow(
            ids,
            messages,
            target,
            example.references or (() if target is None else (target,)),
            example,
            example.source or example.id,
            whole * copies,
        )
        if limits.admit(example, whole, lambda: False):  # a prompt without its end is another prompt
            rows.append(row)
    limits.check()
    return rows


def _asked(example: Example, kind: str, prompt: PromptTemplate) -> tuple[Conversation, str | None]:
    """The turns to answer, and what the data says the answer should be."""
    if kind in ("question", "labelled"):
        return prompt.messages(example.text), example.target
    messages, target = example.messages, example.target
    if kind == "chat" and messages and messages[-1].role == "assistant":
        messages, target = messages[:-1], messages[-1].content
    if not messages or messages[-1].role == "assistant":
        raise DataError(
            f"{example.source or example.id}: there is no prompt to answer", hint="each row needs a user's turn"
        )
    return messages, target


def read_answers(
    model: LoadedModel,
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_tokens: int,
    temperature: float,
    head: Callable[[Tensor], Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """log p of each token of each answer to its prompt, (tokens) an answer, fp32, on the CPU; and what ``head`` says of the hidden state
    that predicts it (fp32, (states, width) -> (states, 1)), [] without one. In batches of like lengths."""
    log_probs: list[Tensor] = [torch.empty(0)] * len(asked)
    values: list[Tensor] = [torch.empty(0)] * len(asked) if head is not None else []
    for batch in order_by_length([len(prompt) + len(answer) for prompt, answer in asked], max_tokens):
        rows = [ScoredRow(asked[i][0], [asked[i][1]]) for i in batch]
        sizes = [len(asked[i][1]) for i in batch]
        hidden, tokens = answer_states(model, rows)
        found = torch.split(token_log_probs(model, hidden, tokens, temperature).cpu(), sizes)
        for i, each in zip(batch, found, strict=True):
            log_probs[i] = each
        if head is not None:
            for i, each in zip(batch, torch.split(head(hidden.float())[:, 0].cpu(), sizes), strict=True):
                values[i] = each
    return log_probs, values


class Reference:
    """The policy as it was when this was made: a copy of what is trained, put in place of it for as long as it is asked.

    One base is in memory: of an adapter the copy is the adapter (which begins as its base), of full fine-tuning all weights. A soft prompt
    does not begin as its base and is switched off instead.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._soft = is_soft(model.module)
        trained = [] if self._soft else [p for p in model.module.parameters() if p.requires_grad]
        self._first = [p.detach().clone() for p in trained]

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within it the model is the reference. Not for anything that needs gradients."""
        if self._soft:
            with self._model.module.disable_adapter():
                yield
            return
        now = [p for p in self._model.module.parameters() if p.requires_grad]
        kept = [p.data for p in now]
        for parameter, first in zip(now, self._first, strict=True):
            parameter.data = first
        try:
            with torch.no_grad():
                yield
        finally:
            for parameter, data in zip(now, kept, strict=True):
                parameter.data = data
