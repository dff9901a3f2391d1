"""Best-of-n distillation on line: several answers to each prompt, and the one with the highest reward is learnt as sft learns an answer.

Rejection sampling (Touvron et al. 2023, Llama 2, section 3.2.3), RAFT (Dong et al. 2023, algorithm 1). For the best answer y of a prompt x the loss is

    -log p(y | x)   a mean over the tokens of all best answers, end of turn included

``luthier data answers --samples N --reward ...`` does the same once, off line and with any engine; here each step's answers are drawn from the model as it is then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.engine import Sampling
from luthier.core.model import ModelRecord
from luthier.core.run import Progress
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.models.rollout import Answer
from luthier.models.score import Row as ScoredRow
from luthier.objectives import _judged
from luthier.objectives._log_probs import answer_token_log_probs
from luthier.objectives._loss import Loss
from luthier.objectives._rewards import plain
from luthier.objectives._rollout import KINDS, Experience, Moment, PromptRow
from luthier.objectives._rows import Limits
from luthier.store.database import Store

__all__ = ["KINDS"]

ARCHITECTURES = ("decoder",)
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"decoder": {"metric": "validation_reward"}}
LOSS_ONLY = ("temperature", "top_p", "top_k", "least", "epochs", "minibatches")


class Config(EntryConfig):
    """``rewards``: a list of scorers (``{name: number}``, with their options) and reward models (``{model: NAME}``), each with a ``weight``.

    ``samples`` answers of at most ``max_new_tokens`` are drawn to each prompt, at ``temperature``, ``top_p`` and ``top_k``; one that did not end is not
    learnt. Prompts whose best reward is below ``least`` are left out. ``epochs`` and ``minibatches``: the best answers of a step are gone through
    so often, in so many optimizer updates each time.
    """

    rewards: tuple[Any, ...]
    samples: int = Field(8, ge=2)
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    least: float | None = None
    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1)

    @field_validator("rewards", mode="before")
    @classmethod
    def _are_rewards(cls, value: Any) -> Any:
        return plain(value)


@dataclass(slots=True)
class BestRow:
    """A prompt with its best answer in tokens. ``learnt`` is 0 for the one row of a step in which no answer was good enough."""

    prompt: list[int]
    answer: list[int]
    source: str
    learnt: float = 1.0

    @property
    def length(self) -> int:
        """Tokens that go through the model."""
        return len(self.prompt) + len(self.answer)

    @property
    def weight(self) -> int:
        """Tokens of the answer."""
        return len(self.answer)


def reads(
    store: Store, base: ModelRecord, train: Dataset, prompt: PromptTemplate, config: Config
) -> Mapping[str, ModelRecord]:
    """The reward models, checked without reading weights."""
    return _judged.reads(store, base, train, _judging(config))


def _judging(config: Config) -> _judged.Rewarded:
    return _judged.Rewarded(config.rewards, config.max_new_tokens)


def prepare(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits
) -> list[PromptRow]:
    """The prompts in tokens. Raises DataError for rows whose answers a scorer could not score, or that leave no room for an answer;
    UnsupportedError for other kinds and architectures."""
    return _judged.prompts(dataset, model, prompt, limits, "best_of_n", _judging(config), copies=config.samples)


def before(model: LoadedModel, rows: Sequence[PromptRow], config: Config, progress: Progress) -> None:
    """Raise DataError for prompts that leave a reward model no room for an answer."""
    _judged.Judge.of(model, _judging(config)).require_readable(rows)


def rollout(model: LoadedModel, config: Config) -> Best:
    """What draws answers and keeps the best."""
    return Best(model, config)


class Best:
    """Draws answers to each prompt and keeps the best of those that ended."""

    def __init__(self, model: LoadedModel, config: Config) -> None:
        self._model, self._config = model, config
        self._sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, config.top_k)
        self._judge = _judged.Judge.of(model, _judging(config))

    def play(self, rows: Sequence[PromptRow], moment: Moment) -> Experience:
        """The best answers of a step. Metrics: ``reward`` of all answers, ``best_reward``, and ``kept``, the share of prompts that are learnt from."""
        config = self._config
        groups, worth, metrics = self._judge.groups(rows, self._sampling, config.samples, moment)
        made = [
            BestRow(row.prompt, best.tokens, row.source)
            for row, group, values in zip(rows, groups, worth.tolist(), strict=True)
            if (best := best_of(group, values, config.least)) is not None
        ]
        metrics |= {"best_reward": float(worth.max(1).values.mean()), "kept": len(made) / len(rows)}
        nothing = [BestRow(rows[0].prompt, groups[0][0].tokens, rows[0].source, 0.0)]
        return Experience(made or nothing, metrics, config.epochs, config.minibatches)

    def state(self) -> dict[str, Tensor]:
        """Nothing: what is drawn follows from the weights, the seed and the step."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take up."""


def best_of(group: Sequence[Answer], values: Sequence[float], least: float | None) -> Answer | None:
    """The answer with the highest of ``values`` among those that ended (of equals the first), if that is at least ``least``."""
    ended = [i for i, answer in enumerate(group) if answer.ended]
    if not ended:
        return None
    best = max(ended, key=lambda i: (values[i], -i))
    return group[best] if least is None or values[best] >= least else None


def collate(rows: Sequence[BestRow], model: LoadedModel) -> list[BestRow]:
    """The rows as they are: they are packed when they go through the model."""
    return list(rows)


def loss(model: LoadedModel, batch: list[BestRow], config: Config) -> Loss:
    """Mean cross-entropy of the answers' tokens, in nats."""
    values = answer_token_log_probs(model, [ScoredRow(row.prompt, [row.answer]) for row in batch])
    sizes = torch.tensor([row.weight for row in batch], device=values.device)
    learnt = torch.tensor([row.learnt for row in batch], device=values.device).repeat_interleave(sizes)
    return Loss(-(values * learnt).sum() / len(values), len(values))
