"""Kahneman-Tversky optimisation: single answers that are marked as good or bad, weighed against what the model says on average.

Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", equations 7 and 8. With the log-ratio r(x, y) =
log p(y | x) - log p_ref(y | x), summed over the answer's tokens, the loss of a row is

    desirable_weight   (1 - sigmoid(beta (r - z0)))     for a good answer
    undesirable_weight (1 - sigmoid(beta (z0 - r)))     for a bad one

z0 estimates the divergence of the model from the reference: the mean of r(x, y') over answers y' to other prompts, at least 0, without a
gradient. Here y' belongs to the row: the answer of the next one with another prompt, in an order of the rows that is drawn once, the same
for the same data (so that good and bad answers are among them as in the data); it is cut where both do not fit the context. The mean is over the rows that go through the model together, as in the paper (section 4.1); which these are follows from
``train.seed`` and ``train.max_tokens_per_batch``, so that the same run gives the same weights. A pair counts as a good and a bad row.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError
from luthier.core.message import Conversation
from luthier.core.run import Progress
from luthier.core.task import PromptTemplate
from luthier.data.render_source import SourceRenderer
from luthier.models.load import LoadedModel
from luthier.models.score import Row as ScoredRow
from luthier.objectives import _pairs
from luthier.objectives._log_probs import answer_log_probs
from luthier.objectives._loss import Loss
from luthier.objectives._pairs import KINDS
from luthier.objectives._rows import Limits, require_kind
from luthier.objectives._shown import Line, answer_lines

__all__ = ["KINDS"]

ARCHITECTURES = ("decoder", "encoder-decoder")
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
RATE_FACTOR = 0.2
"""Of a method's learning rate, as for dpo."""
LOSS_ONLY = ("beta", "desirable_weight", "undesirable_weight")


class Config(EntryConfig):
    """``beta``: how dear a departure from the reference is; the larger, the nearer it stays.

    ``desirable_weight`` and ``undesirable_weight``: what good and bad rows count. The paper advises to choose them so that
    (desirable_weight x good rows) : (undesirable_weight x bad rows) is between 1:1 and 4:3.
    """

    beta: float = Field(0.1, gt=0)
    desirable_weight: float = Field(1.0, ge=0)
    undesirable_weight: float = Field(1.0, ge=0)


@dataclass(slots=True)
class MarkedRow:
    """Token ids of a prompt, of its answer to the end of its turn, and of an answer to another prompt; ``good`` is the mark.

    ``reference`` are the log-probabilities of answer and other under the model as it was before training.
    """

    prompt: list[int]
    answer: list[int]
    good: bool
    source: str
    other: list[int]
    length: int = 0
    reference: tuple[float, float] | None = None

    @property
    def weight(self) -> int:
        """One answer."""
        return 1


@dataclass(frozen=True, slots=True)
class MarkedBatch:
    """Rows with their answer, and with the one to another prompt; reference log-probabilities of both, (rows, 2); marks (rows)."""

    rows: list[ScoredRow]
    others: list[ScoredRow]
    reference: Tensor | None
    good: Tensor

    def lines(self) -> list[Line]:
        """What is read and asked, token by token."""
        return answer_lines(self.rows)


def prepare(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits
) -> list[MarkedRow]:
    """Tokenise every side of every example.

    Raises UnsupportedError for other kinds or an encoder; DataError for empty answers, rows over the context, and data with one prompt only.
    """
    require_kind(dataset, KINDS, "kto")
    sides = [(e, turns, turns is e.chosen) for e in dataset.examples for turns in (e.chosen, e.rejected) if turns]
    every = Dataset(dataset.name, dataset.kind, tuple(e for e, _, _ in sides))
    said: list[Conversation] = [turns for _, turns, _ in sides]
    rows = []
    for (example, _, good), (ids, answer) in zip(sides, _pairs.tokenised(every, said, model, "kto"), strict=True):
        row = MarkedRow(ids, answer, good, example.source or example.id, [])
        if _admitted(limits, example, row, model):
            rows.append(row)
    limits.check()
    _give_others(rows, dataset.name, limits.context_length, model)
    return rows


def _admitted(limits: Limits, example: Example, row: MarkedRow, model: LoadedModel) -> bool:
    apart = model.architecture == "encoder-decoder"  # source and target may each be as long as the context
    length = max(len(row.prompt), len(row.answer)) if apart else len(row.prompt) + len(row.answer)
    return limits.admit(example, length, partial(_shorten, row, limits.context_length, model))


def _shorten(row: MarkedRow, length: int, model: LoadedModel) -> bool:
    """Cut the end of the answer; not worth training when the prompt leaves no room."""
    if isinstance(model.renderer, SourceRenderer):
        row.prompt = model.renderer.cut(row.prompt, length)
    room = _room(row, length, model)
    row.answer = row.answer[: max(room, 0)]
    return room > 0


def _room(row: MarkedRow, length: int, model: LoadedModel) -> int:
    """Tokens that an answer to the row's prompt may have."""
    return length if model.architecture == "encoder-decoder" else length - len(row.prompt)


def _give_others(rows: Sequence[MarkedRow], name: str, length: int, model: LoadedModel) -> None:
    """Each row's answer to another prompt: that of the next row whose prompt is another, in a drawn order without an end."""
    if rows and all(row.prompt == rows[0].prompt for row in rows):
        raise DataError(
            f"{name}: kto compares with answers to other prompts; all {len(rows)} rows have the same prompt",
            hint="give it rows with several prompts; pairs of one prompt can be learned from with objective: dpo",
        )
    found: MarkedRow | None = None
    order = list(rows)
    random.Random("others").shuffle(order)
    following = [*order, *order]
    for at in range(
        len(following) - 2, -1, -1
    ):  # from the back: a row of the same prompt looks where its successor looked
        row, after = following[at], following[at + 1]
        if row.prompt != after.prompt:
            found = after
        if found is not None and at < len(rows):
            row.other = found.answer[: _room(row, length, model)]
    for row in rows:
        row.length = max(_pairs.cost(model, row.prompt, [answer]) for answer in (row.answer, row.other))


def before(model: LoadedModel, rows: Sequence[MarkedRow], config: Config, progress: Progress) -> None:
    """Put the reference log-probabilities on the rows; here a prompt is computed once for both answers."""
    scored = [ScoredRow(row.prompt, [row.answer, row.other]) for row in rows]
    lengths = [_pairs.cost(model, row.prompt, [row.answer, row.other]) for row in rows]
    found = _pairs.reference_log_probs(model, scored, lengths, progress)
    for row, (answer, other) in zip(rows, found, strict=True):
        row.reference = (answer, other)


def collate(rows: Sequence[MarkedRow], model: LoadedModel) -> MarkedBatch:
    """One batch of ``prepare``'s rows."""
    known = [row.reference for row in rows if row.reference is not None]
    return MarkedBatch(
        [ScoredRow(row.prompt, [row.answer]) for row in rows],
        [ScoredRow(row.prompt, [row.other]) for row in rows],
        torch.tensor(known, device=model.device) if len(known) == len(rows) else None,
        torch.tensor([row.good for row in rows], device=model.device),
    )


def loss(model: LoadedModel, batch: MarkedBatch, config: Config) -> Loss:
    """Mean over the rows. Metrics: ``kl`` (z0), ``margin`` (beta times how far an answer is on its right side of z0), ``accuracy`` (the share
    of rows that are; a tie counts half)."""
    assert batch.reference is not None  # before() was called
    with torch.no_grad():
        others = answer_log_probs(model, batch.others) - batch.reference[:, 1]
        kl = others.mean().clamp(min=0)
    gains = answer_log_probs(model, batch.rows) - batch.reference[:, 0]
    margins = config.beta * torch.where(batch.good, gains - kl, kl - gains)
    weights = torch.where(batch.good, config.desirable_weight, config.undesirable_weight)
    value = (weights * torch.sigmoid(-margins)).mean()  # 1 - sigmoid, without losing digits
    metrics = {
        "accuracy": _pairs.share_right(margins),
        "margin": float(margins.detach().mean()),
        "kl": float(kl),
    }
    return Loss(value, len(gains), metrics)
