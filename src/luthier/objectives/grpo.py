"""Group relative policy optimisation: several answers to each prompt, and those that got more reward than their group gain.

Shao et al. 2024, "DeepSeekMath", equation 3 and section 4.1. A prompt's answers o_1 .. o_G are drawn from the policy as it is (old), and
rewarded. With the advantage A_i = (r_i - mean(r)) / std(r) within the group, and the ratio w = p(o_it) / p_old(o_it) of each token, a token's loss is

    -min(w A_i, clip(w, 1 - epsilon, 1 + epsilon_high) A_i) + beta (p_ref / p - log(p_ref / p) - 1)

with the KL estimator of Schulman 2020 ("k3"; equation 4). How tokens make up the loss of a step is ``loss``:

    grpo      mean over answers of each answer's mean over its tokens                            (equation 3)
    dr_grpo   sum over tokens / (answers x max_new_tokens): long answers are not favoured        (Liu et al. 2025, section 3.2)
    dapo      sum over tokens / all tokens of the rollout                                        (Yu et al. 2025, equation 8)
    bnpo      sum over tokens / all tokens of the optimizer update                               (as the TRL library names it)

There is no value model. What an answer is worth is said by ``rewards``: scorers that compare it with the row's answer, and reward models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from luthier.objectives._rollout import KINDS, Experience, Moment, PromptRow, Reference
from luthier.objectives._rows import Limits
from luthier.store.database import Store

__all__ = ["KINDS"]

ARCHITECTURES = ("decoder",)
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"decoder": {"metric": "validation_reward"}}
RATE_FACTOR = 0.05
"""Of a method's learning rate: 1e-6 (Shao et al. 2024, section 4.2) where 2e-5 is usual for supervised fine-tuning of all weights."""
LOSS_ONLY = (
    "temperature", "top_p", "top_k", "loss", "scale_rewards", "epsilon", "epsilon_high", "beta", "unbiased_kl", "epochs", "minibatches",
    "mask_truncated",
)  # fmt: skip

_LEAST_STD = 1e-4  # TRL's


class Config(EntryConfig):
    """``rewards``: a list of scorers (``{name: number}``, with their options) and reward models (``{model: NAME}``), each with a ``weight``.

    ``group_size`` answers of at most ``max_new_tokens`` are drawn to each prompt, at ``temperature``, ``top_p`` and ``top_k``. ``scale_rewards``
    divides advantages by the standard deviation of their ``group``, of the whole ``batch``, or not at all (none: Liu et al. 2025).
    ``epsilon_high`` (left out: ``epsilon``; DAPO takes 0.28) is the upper bound of the ratio. ``beta`` is the weight of the distance to the
    model before training; 0 spares its forward; ``unbiased_kl`` multiplies it by the ratio, so that its gradient is that of the reverse KL
    (DeepSeek-AI 2025, DeepSeek-V3.2). ``epochs`` and ``minibatches``: a rollout is gone through so often, in so many optimizer updates each
    time. ``mask_truncated`` learns nothing from answers that did not end. A group of 64 and a beta of 0.04 are the paper's; 8 answers are
    what a small machine can draw.
    """

    rewards: tuple[Any, ...]
    group_size: int = Field(8, ge=2)
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "grpo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    epsilon: float = Field(0.2, gt=0, lt=1)
    epsilon_high: float | None = Field(None, gt=0)
    beta: float = Field(0.04, ge=0)
    unbiased_kl: bool = False
    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1)
    mask_truncated: bool = False

    @field_validator("rewards", mode="before")
    @classmethod
    def _are_rewards(cls, value: Any) -> Any:
        return plain(value)


@dataclass(slots=True)
class GroupRow:
    """Answers to one prompt (a whole group, or as many of it as the token budget holds) in tokens, with what the loss reads of each token:
    ``old`` and ``reference`` log-probabilities; ``advantages`` and ``scales`` are one an answer: what its tokens' losses are multiplied with."""

    prompt: list[int]
    answers: list[list[int]]
    old: list[float]
    advantages: list[float]
    scales: list[float]
    source: str
    weight: int
    length: int
    reference: list[float] | None = None


@dataclass(frozen=True, slots=True)
class GroupBatch:
    """Rows, and of every token of their answers in turn, shape (tokens,): old and reference log-probabilities, advantage, scale. ``count``:
    what the loss is a mean over."""

    rows: list[ScoredRow]
    old: Tensor
    reference: Tensor | None
    advantage: Tensor
    scale: Tensor
    count: int


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
    return _judged.prompts(dataset, model, prompt, limits, "grpo", _judging(config), copies=config.group_size)


def before(model: LoadedModel, rows: Sequence[PromptRow], config: Config, progress: Progress) -> None:
    """Raise DataError for prompts that leave a reward model no room for an answer."""
    _judged.Judge.of(model, _judging(config)).require_readable(rows)


def rollout(model: LoadedModel, config: Config) -> Groups:
    """What draws the groups; it keeps the model as it is now when ``beta`` is not 0."""
    return Groups(model, config)


class Groups:
    """Draws a group of answers to each prompt, rewards them, and says by how much each is better than its group."""

    def __init__(self, model: LoadedModel, config: Config) -> None:
        self._model, self._config = model, config
        self._sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, config.top_k)
        self._judge = _judged.Judge.of(model, _judging(config))
        self._reference = Reference(model) if config.beta else None

    def play(self, rows: Sequence[PromptRow], moment: Moment) -> Experience:
        """Experience from the prompts of a step. Metrics: rewards, lengths and truncated answers as the judge tells them; ``reward_std``, the spread within groups;
        ``equal_groups``, the share of those whose answers are all worth the same."""
        config = self._config
        groups, totals, metrics = self._judge.groups(rows, self._sampling, config.group_size, moment)
        metrics["reward_std"] = float(totals.std(1).mean())
        metrics["equal_groups"] = float((totals.max(1).values == totals.min(1).values).double().mean())
        better = advantages_of(totals, config.scale_rewards).flatten().tolist()
        made = learnt_from(rows, groups, better, config, moment.max_tokens)
        if self._reference is not None:
            with self._reference.answering():
                for row in made:
                    row.reference = self._log_probs(row)
        return Experience(made, metrics, config.epochs, config.minibatches)

    @torch.no_grad()
    def _log_probs(self, row: GroupRow) -> list[float]:
        found = answer_token_log_probs(self._model, [_scored(row)], self._config.temperature)
        return [float(value) for value in found.tolist()]

    def state(self) -> dict[str, Tensor]:
        """Nothing: what is drawn follows from the weights, the seed and the step."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take up."""


def advantages_of(rewards: Tensor, by: str) -> Tensor:
    """How much better each answer is than its group: rewards (groups, answers), the same shape out. Standard deviations are of a sample (n - 1)."""
    above = rewards - rewards.mean(1, keepdim=True)
    if by == "none":
        return above
    spread = rewards.std(1, keepdim=True) if by == "group" else rewards.std()
    return above / (spread + _LEAST_STD)


def learnt_from(
    rows: Sequence[PromptRow],
    groups: Sequence[Sequence[Answer]],
    better: Sequence[float],
    config: Config,
    budget: int,
) -> list[GroupRow]:
    """What the loss is made of, with the scales that make the loop's mean (over the weights of an update's rows) the one that ``loss`` asks for.

    An answer whose loss has no gradient (it is no better than its group, and ``beta`` is 0; or it did not end, with ``mask_truncated``) is
    counted, but does not go through the model.
    """
    answers = [answer for group in groups for answer in group]
    told = [answer.ended or not config.mask_truncated for answer in answers]
    tokens = max(sum(len(answer.tokens) for answer, one in zip(answers, told, strict=True) if one), 1)
    moves = [one and bool(config.beta or value) for one, value in zip(told, better, strict=True)]
    none = not any(moves)
    if none:
        moves[0] = True  # there must be something; it counts nothing
    made = []
    place = 0
    for row, group in zip(rows, groups, strict=True):
        chosen = [i for i in range(place, place + len(group)) if moves[i]]
        for part in _parts(len(row.prompt), [len(answers[i].tokens) for i in chosen], budget):
            made.append(_group_row(row, [answers[chosen[i]] for i in part], [better[chosen[i]] for i in part], config))
        place += len(group)
    whole = tokens if config.loss == "bnpo" else len(answers)
    kept = 0.0 if none else sum(row.weight for row in made) / whole
    for group_row in made:
        each = [kept * _scale(len(answer), len(answers), tokens, config) for answer in group_row.answers]
        group_row.scales = each
    return made


def _scale(size: int, answers: int, tokens: int, config: Config) -> float:
    """What a token of an answer of ``size`` tokens counts in the sum over all ``answers`` of their ``tokens``, beside the weights."""
    if config.loss == "grpo":
        return 1 / size
    if config.loss == "dr_grpo":
        return 1 / config.max_new_tokens
    return answers / tokens if config.loss == "dapo" else 1.0


def _group_row(row: PromptRow, answers: Sequence[Answer], better: Sequence[float], config: Config) -> GroupRow:
    sizes = [len(answer.tokens) for answer in answers]
    return GroupRow(
        row.prompt,
        [answer.tokens for answer in answers],
        [value for answer in answers for value in answer.log_probs],
        list(better),
        [],
        row.source,
        sum(sizes) if config.loss == "bnpo" else len(sizes),
        len(row.prompt) + sum(sizes),
    )


def _parts(prompt: int, answers: Sequence[int], budget: int) -> list[list[int]]:
    """Places of answers that go through the model together after their prompt, each part within the token budget where it can be."""
    parts: list[list[int]] = []
    size = budget + 1
    for place, length in enumerate(answers):
        if size + length > budget:
            parts.append([])
            size = prompt
        parts[-1].append(place)
        size += length
    return parts


def _scored(row: GroupRow) -> ScoredRow:
    return ScoredRow(row.prompt, row.answers)


def collate(rows: Sequence[GroupRow], model: LoadedModel) -> GroupBatch:
    """Tokens of all answers in turn."""
    sizes = torch.tensor([len(answer) for row in rows for answer in row.answers])

    def each(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(sizes).to(model.device)

    def flat(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=model.device)

    known = [row.reference for row in rows if row.reference is not None]
    return GroupBatch(
        [_scored(row) for row in rows],
        flat([value for row in rows for value in row.old]),
        flat([value for values in known for value in values]) if known else None,
        each([value for row in rows for value in row.advantages]),
        each([value for row in rows for value in row.scales]),
        sum(row.weight for row in rows),
    )


def loss(model: LoadedModel, batch: GroupBatch, config: Config) -> Loss:
    """The clipped objective with its distance to the reference. Metrics: ``kl`` (with ``beta``) and ``clipped``, the share of tokens whose
    ratio was cut; both means over tokens that are learnt from."""
    now = answer_token_log_probs(model, batch.rows, config.temperature)
    ratio = (now - batch.old).exp()
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    cut = ratio.clamp(1 - config.epsilon, 1 + high)
    each = -torch.min(ratio * batch.advantage, cut * batch.advantage)
    learnt = (batch.scale > 0).float()
    tokens = learnt.sum().clamp(min=1)
    outside = (cut * batch.advantage < ratio * batch.advantage).float()
    metrics = {"clipped": float((outside * learnt).sum() / tokens)}
    if config.beta:
        assert batch.reference is not None  # play() put it there
        apart = batch.reference - now
        kl = apart.exp() - apart - 1
        each = each + config.beta * (kl * ratio if config.unbiased_kl else kl)
        metrics["kl"] = float((kl.detach() * learnt).sum() / tokens)
    return Loss((each * batch.scale).sum() / batch.count, batch.count, metrics)
