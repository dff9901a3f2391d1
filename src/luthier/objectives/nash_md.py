"""Nash learning from human feedback by mirror descent: the model learns to be preferred to a mixture of itself and of what it began as.

Munos et al. 2023, "Nash Learning from Human Feedback", sections 4 and 6. To each prompt the model samples y, and the geometric mixture
pi^(1 - mixture) pi_ref^mixture samples a rival y'; P is the probability that y is preferred. Minimised is, as a mean over prompts,

    beta KL-term - (P - 1/2) sum_t log pi(y_t),   KL-term = sum_t stop-gradient(log pi(y_t) - log pi_ref(y_t)) log pi(y_t)

the policy gradient with 1/2 as its control variate, and of the divergence that of each token alone (as TRL computes it). P is the
sigmoid of the difference of both rewards (Bradley and Terry 1952). Every step makes one update of fresh answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.engine import Sampling
from luthier.core.model import ModelRecord
from luthier.core.run import Progress
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.models.rollout import sample, sample_mixed
from luthier.models.score import Row as ScoredRow
from luthier.objectives import _judged, _ppo
from luthier.objectives._log_probs import answer_states, token_log_probs
from luthier.objectives._loss import Loss
from luthier.objectives._rollout import KINDS, Experience, Moment, PromptRow, Reference, read_answers
from luthier.objectives._rows import Limits
from luthier.store.database import Store

__all__ = ["KINDS"]

ARCHITECTURES = ("decoder",)
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"decoder": {"metric": "validation_reward"}}
RATE_FACTOR = 0.05
"""Of a method's learning rate, as for the other objectives on rewards."""


class Config(EntryConfig):
    """``reward``: a stored reward model; or ``rewards``: a list of scorers and reward models. Only differences between two answers count.

    ``mixture``: the reference's share in the rival; 0 is self-play, 1 the model before training. ``beta``: how dear a departure from the
    reference is. ``temperature`` of both answers, and of the
    probabilities that are compared. ``missing_eos_penalty`` is taken from the reward of an answer that was cut off. Defaults of
    ``beta`` and ``mixture`` are TRL's.
    """

    reward: str | None = Field(None, min_length=1)
    rewards: list[Any] | None = None
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0, le=2)
    beta: float = Field(0.1, ge=0)
    mixture: float = Field(0.5, ge=0, le=1)
    missing_eos_penalty: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _together(self) -> Config:
        _judged.check_options(self.reward, self.rewards)
        return self


@dataclass(slots=True)
class Row:
    """An answer, the probability that it is preferred to its rival, and what the reference says of each of its tokens."""

    prompt: list[int]
    answer: list[int]
    source: str
    preferred: float
    reference: Tensor

    @property
    def length(self) -> int:
        """Tokens that go through the model; the last of an answer predicts nothing."""
        return len(self.prompt) + len(self.answer) - 1

    @property
    def weight(self) -> int:
        """One answer."""
        return 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows for one packed forward; ``reference`` (tokens) of all answers in turn, which answer each is of, and ``preferred`` (rows)."""

    rows: list[ScoredRow]
    reference: Tensor
    owners: Tensor
    preferred: Tensor


def reads(
    store: Store, base: ModelRecord, train: Dataset, prompt: PromptTemplate, config: Config
) -> Mapping[str, ModelRecord]:
    """Reward models, checked without reading weights."""
    return _judged.reads(store, base, train, config)


def prepare(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits
) -> list[PromptRow]:
    """The prompts in tokens. Raises what ``prompt_rows`` does, and DataError for rows whose answers a scorer could not score."""
    return _judged.prompts(dataset, model, prompt, limits, "nash_md", config)


def before(model: LoadedModel, rows: Sequence[PromptRow], config: Config, progress: Progress) -> None:
    """Raise DataError, naming rows, for prompts that leave a reward model no room for an answer."""
    _judged.Judge.of(model, config).require_readable(rows)


def rollout(model: LoadedModel, config: Config) -> Playing:
    """Answers, their rivals, and who is preferred."""
    return Playing(model, config)


class Playing:
    """What a training's rollouts share: the judge and the reference."""

    def __init__(self, model: LoadedModel, config: Config) -> None:
        self._model, self._config = model, config
        self._judge = _judged.Judge.of(model, config)
        self._reference = Reference(model)

    def play(self, rows: Sequence[PromptRow], moment: Moment) -> Experience:
        """Metrics: ``reward``, ``rival_reward``, ``preferred`` (mean of P), ``kl``, ``entropy``, ``answer_tokens``, ``truncated``."""
        config, model, most = self._config, self._model, moment.max_tokens
        prompts = [row.prompt for row in rows]
        sampling = Sampling(config.max_new_tokens, config.temperature, seed=moment.seed)
        answers = [answer for (answer,) in sample(model, prompts, sampling, max_batch_tokens=most)]
        other = Sampling(config.max_new_tokens, config.temperature, seed=moment.seed + 1)
        rivals = sample_mixed(model, prompts, other, self._reference.answering, config.mixture, max_batch_tokens=most)
        rewards, metrics = self._judge(rows, answers)
        rivals_rewards, _ = self._judge(rows, rivals)
        sources = [row.source for row in rows]
        _ppo.require_finite(rewards, sources)
        _ppo.require_finite(rivals_rewards, sources)
        preferred = torch.sigmoid(torch.tensor(rewards) - torch.tensor(rivals_rewards))
        asked = [(prompt, answer.tokens) for prompt, answer in zip(prompts, answers, strict=True)]
        with self._reference.answering():
            reference, _ = read_answers(model, asked, most, config.temperature)
        said, _ = read_answers(model, asked, most, config.temperature)
        made = [
            Row(row.prompt, answer.tokens, row.source, p, first)
            for row, answer, p, first in zip(rows, answers, preferred.tolist(), reference, strict=True)
        ]
        kl = sum(float((new - old).sum()) for new, old in zip(said, reference, strict=True)) / len(rows)
        return Experience(
            made,
            metrics
            | {
                "rival_reward": sum(rivals_rewards) / len(rows),
                "preferred": float(preferred.mean()),
                "kl": kl,
                "entropy": -float(torch.cat(said).mean()),
            },
        )

    def state(self) -> dict[str, Tensor]:
        """Nothing: all follows from seed, step and weights."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``."""


def collate(rows: Sequence[Row], model: LoadedModel) -> Batch:
    """One batch of a rollout's rows."""
    sizes = torch.tensor([len(row.answer) for row in rows])
    return Batch(
        [ScoredRow(row.prompt, [row.answer]) for row in rows],
        torch.cat([row.reference for row in rows]).to(model.device),
        torch.arange(len(rows)).repeat_interleave(sizes).to(model.device),
        torch.tensor([row.preferred for row in rows], device=model.device),
    )


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean over the answers."""
    hidden, tokens = answer_states(model, batch.rows)
    return Loss(
        of_log_probs(token_log_probs(model, hidden, tokens, config.temperature), batch, config.beta),
        len(batch.preferred),
    )


def of_log_probs(log_probs: Tensor, batch: Batch, beta: float) -> Tensor:
    """The loss given log pi of every token, (tokens)."""
    ratios = (log_probs - batch.reference).detach()
    none = torch.zeros(len(batch.preferred), device=log_probs.device)
    likely, far = none.index_add(0, batch.owners, log_probs), none.index_add(0, batch.owners, ratios * log_probs)
    return (beta * far - (batch.preferred - 0.5) * likely).mean()
