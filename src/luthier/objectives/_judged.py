"""Sampled answers with their rewards: what the objectives share that learn from both.

``reward`` names a stored reward model; ``rewards`` is the list that ``objectives._rewards`` reads, of scorers and reward models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from luthier.core.dataset import Dataset
from luthier.core.engine import Sampling
from luthier.core.errors import DataError
from luthier.core.model import ModelRecord
from luthier.core.score import asked_of
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, store_of
from luthier.models.reward import prompt_lengths
from luthier.models.rollout import Answer, sample
from luthier.objectives import _rewards
from luthier.objectives._rollout import Moment, PromptRow, prompt_rows
from luthier.objectives._rows import Limits
from luthier.store.database import Store

_SHOWN = 10


class Judging(Protocol):
    """The options of an objective that say where rewards come from."""

    @property
    def reward(self) -> str | None:
        """A stored reward model."""

    @property
    def rewards(self) -> list[Any] | None:
        """Scorers and reward models."""

    @property
    def max_new_tokens(self) -> int:
        """The most that an answer has."""

    @property
    def missing_eos_penalty(self) -> float:
        """What an answer that was cut off loses."""


@dataclass(frozen=True)
class Rewarded:
    """``Judging`` by a list of rewards alone."""

    listed: Sequence[Any]
    max_new_tokens: int
    reward: str | None = None
    missing_eos_penalty: float = 0.0

    @property
    def rewards(self) -> list[Any]:
        """The list."""
        return list(self.listed)


def check_options(reward: str | None, rewards: Sequence[Any] | None) -> None:
    """Raise ValueError unless exactly one of both is given, for a Config's validator."""
    if (reward is None) == (rewards is None):
        raise ValueError(
            "give either reward, the name of a stored reward model (tune one: objective: reward), or rewards, a list of scorers and "
            "reward models, for example rewards: [{name: exact}]"
        )


def specs(config: Judging) -> list[Any]:
    """The rewards as one list."""
    return [{"model": config.reward}] if config.reward is not None else list(config.rewards or ())


def reads(store: Store, base: ModelRecord, train: Dataset, config: Judging) -> Mapping[str, ModelRecord]:
    """The reward models, by the part that they have in a run; no weight is read.

    Raises what ``_rewards.models_of`` does (another tokenizer among it), InputError for a wrong list, DataError for rows that a scorer
    cannot compare answers with.
    """
    parts = _rewards.parse(specs(config))
    found = _rewards.models_of(store, parts, base)
    _rewards.check_rows(parts, train)
    return {"reward" if config.reward is not None else f"reward {label}": record for label, record in found.items()}


def prompts(
    dataset: Dataset,
    model: LoadedModel,
    prompt: PromptTemplate,
    limits: Limits,
    objective: str,
    config: Judging,
    *,
    copies: int = 1,
) -> list[PromptRow]:
    """The prompts in tokens. Raises what ``prompt_rows`` does, and DataError for rows whose answers a scorer could not score."""
    rows = prompt_rows(dataset, model, prompt, limits, objective, max_new_tokens=config.max_new_tokens, copies=copies)
    _rewards.check_rows(_rewards.parse(specs(config)), dataset)
    return rows


_held: WeakKeyDictionary[Any, tuple[list[Any], _rewards.Rewards]] = WeakKeyDictionary()
"""By the policy that they judge: reward models are read once for a training, and let go of with it."""


@dataclass(frozen=True)
class Judge:
    """Gives rewards to answers in tokens."""

    model: LoadedModel
    rewards: _rewards.Rewards
    missing_eos_penalty: float

    @staticmethod
    def of(model: LoadedModel, config: Judging) -> Judge:
        """The judge that ``config`` asks for, on the device of ``model`` and in its dtype."""
        dtype = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[str(model.dtype).removeprefix("torch.")]
        wanted = specs(config)
        held = _held.get(model.module)
        if held is None or held[0] != wanted:
            rewards = _rewards.Rewards(wanted, store_of(model), dtype=dtype, device=str(model.device))
            held = _held[model.module] = (wanted, rewards)
        return Judge(model, held[1], config.missing_eos_penalty)

    def __call__(self, rows: Sequence[PromptRow], answers: Sequence[Answer]) -> tuple[list[float], dict[str, float]]:
        """The reward of each answer, and metrics: ``reward``, each part's own mean where there are several, ``truncated`` (the share of
        answers that did not end), and ``answer_tokens``. An answer that was cut off loses ``missing_eos_penalty``."""
        texts = [self.text(answer) for answer in answers]
        targets = [asked_of(row.example)[1] for row in rows]
        given = self.rewards([row.messages for row in rows], targets, texts)
        totals = [
            one.total - (0.0 if answer.ended else self.missing_eos_penalty)
            for one, answer in zip(given, answers, strict=True)
        ]
        metrics = {
            "reward": _mean(totals),
            "truncated": _mean([float(not answer.ended) for answer in answers]),
            "answer_tokens": _mean([float(len(answer.tokens)) for answer in answers]),
        }
        if len(self.rewards.parts) > 1:
            for part in self.rewards.parts:
                said = [value for one in given if (value := one.parts[part.label]) is not None]
                metrics |= {f"reward_{part.label}": _mean(said)} if said else {}
        return totals, metrics

    def groups(
        self, rows: Sequence[PromptRow], sampling: Sampling, copies: int, moment: Moment
    ) -> tuple[list[list[Answer]], Tensor, dict[str, float]]:
        """``copies`` answers to each prompt, drawn by the moment's seed, their rewards (prompts, copies) in fp64, and the metrics of all."""
        drawn = sample(
            self.model,
            [row.prompt for row in rows],
            replace(sampling, seed=moment.seed),
            copies=copies,
            max_batch_tokens=moment.max_tokens,
        )
        owners = [row for row, group in zip(rows, drawn, strict=True) for _ in group]
        given, metrics = self(owners, [answer for group in drawn for answer in group])
        return drawn, torch.tensor(given, dtype=torch.float64).view(len(rows), -1), metrics

    def text(self, answer: Answer) -> str:
        """What the answer says, without the token that ended it."""
        assert self.model.renderer is not None  # decoders have one
        return self.model.renderer.decode(answer.tokens[:-1] if answer.ended else answer.tokens)

    def require_readable(self, rows: Sequence[PromptRow]) -> None:
        """Raise DataError, naming rows, for prompts that leave a reward model no room for an answer."""
        for part in self.rewards.parts:
            if part.entry is not None:
                continue
            judge = self.rewards.model(part.model)
            lengths = prompt_lengths(judge, [row.messages for row in rows])
            long = [row.source for row, n in zip(rows, lengths, strict=True) if n >= judge.context_length]
            if long:
                more = f" and {len(long) - _SHOWN} more" if len(long) > _SHOWN else ""
                raise DataError(
                    f"{len(long)} prompts leave the reward model {part.model} no room for an answer: it reads {judge.context_length} tokens "
                    f"in all ({', '.join(long[:_SHOWN])}{more})",
                    hint="shorten them or leave them out, or tune a reward model that reads more",
                )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
