"""Reward models: a linear layer on the end of an answer learns which of two answers people prefer.

Bradley and Terry 1952, as Ouyang et al. 2022, "Training language models to follow instructions with human feedback", equation 1, use it. For
the rewards r of a chosen and a rejected answer the loss of the comparison is

    -log sigmoid(r(chosen) - r(rejected) - margin)  +  center (r(chosen) + r(rejected))^2

All comparisons of one prompt are one row, as in section 3.5 there: of K ranked answers each goes through the model once, and not once a
pair. ``margin`` is Touvron et al. 2023 (Llama 2), equation 2, ``center`` Eisenstein et al. 2023, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel
from luthier.models.rerank import PairIds, pair_ids
from luthier.models.reward import is_reward_model, prompt_text, rewards_of_pairs, rewards_of_rows
from luthier.models.score import Row as ScoredRow
from luthier.objectives import _pairs
from luthier.objectives._loss import Loss
from luthier.objectives._pairs import KINDS
from luthier.objectives._rows import Limits, require_kind

__all__ = ["KINDS"]

ARCHITECTURES = ("decoder", "encoder")
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
LOSS_ONLY = ("center",)

_FORWARD_TOKENS = 4096


class Config(EntryConfig):
    """``margin``: name of the field of each row that says by how much the chosen answer must be better (a number of at least 0).

    ``center``: weight of a term that keeps rewards around zero; it does not change which answer wins.
    """

    margin: str | None = Field(None, min_length=1)
    center: float = Field(0.0, ge=0)


@dataclass(slots=True)
class RankedRow:
    """A prompt's answers in tokens (an encoder's: each with the prompt as a pair of texts), and which is better than which: places in
    ``answers`` or ``pairs``, with the margin."""

    prompt: list[int]
    answers: list[list[int]]
    pairs: list[PairIds]
    source: str
    length: int = 0
    better: list[tuple[int, int, float]] = field(default_factory=list)

    @property
    def weight(self) -> int:
        """Comparisons."""
        return len(self.better)


@dataclass(frozen=True, slots=True)
class RankedBatch:
    """Answers of several rows in turn, for a decoder or an encoder; of each comparison the places of its two answers, and the margin."""

    rows: list[ScoredRow]
    pairs: list[PairIds]
    chosen: Tensor
    rejected: Tensor
    margin: Tensor


def heads(model: LoadedModel, config: Config) -> None:
    """A linear layer of one output, in fp32, unless the model has that from an earlier tuning. Raises UnsupportedError for others."""
    if model.architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"objective reward needs a decoder or an encoder; {model.record.name} is of architecture {model.architecture}",
            hint="for example model.base=minilm-l6",
        )
    head = model.head if is_reward_model(model) else None
    if head is None:
        width = inner_of(model).config.get_text_config().hidden_size
        head = nn.Linear(width, 1, bias=False, dtype=torch.float32)  # a bias would fall out of every comparison
        nn.init.normal_(head.weight, std=1 / math.sqrt(width + 1))  # Stiennon et al. 2020
    model.put_head(head.to(model.device).requires_grad_(True))


def prepare(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits
) -> list[RankedRow]:
    """Tokenise, and gather what is said about one prompt.

    Raises UnsupportedError for other kinds or an encoder-decoder, DataError for pairs that cannot teach anything, without their margin, or
    that are too long.
    """
    margin = _margin(dataset, config) if config.margin is not None else _no_margin
    if model.architecture == "encoder":
        return _of_encoder(dataset, model, limits, margin)
    if model.architecture != "decoder":
        heads(model, config)  # says what it needs
    rows: dict[tuple[int, ...], RankedRow] = {}
    for pair in _pairs.pairs(dataset, model, limits, "reward", margin):
        row = rows.setdefault(tuple(pair.prompt), RankedRow(pair.prompt, [], [], pair.source))
        for answer in (pair.chosen, pair.rejected):
            if answer not in row.answers:
                row.answers.append(answer)
        row.better.append((row.answers.index(pair.chosen), row.answers.index(pair.rejected), pair.margin))
    for row in rows.values():
        row.length = _pairs.cost(model, row.prompt, row.answers) + len(row.answers)  # the last token of each is read
    return list(rows.values())


def _no_margin(example: Example) -> float:
    return 0.0


def _margin(dataset: Dataset, config: Config) -> Callable[[Example], float]:
    name = str(config.margin)

    def fits(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf

    strange = [e for e in dataset.examples if not fits(e.meta.get(name))]
    hint = "leave objective.margin out, or give each row that number"
    _pairs.refuse(dataset, strange, f"objective.margin={name}: a row has no such number of at least 0", hint)
    return lambda example: float(example.meta[name])


def _of_encoder(
    dataset: Dataset, model: LoadedModel, limits: Limits, margin: Callable[[Example], float]
) -> list[RankedRow]:
    """Prompt and answer are a pair of texts; turns of a prompt follow each other."""
    require_kind(dataset, KINDS, "reward")
    _pairs.require_both(dataset, "reward")
    for sides in ([e.chosen for e in dataset.examples], [e.rejected for e in dataset.examples]):
        _pairs.require_answers(dataset, sides)
    prompts = [prompt_text(e.messages) for e in dataset.examples]
    chosen, rejected = (
        pair_ids(model, [(p, side[0].content) for p, side in zip(prompts, sides, strict=True)])
        for sides in ([e.chosen for e in dataset.examples], [e.rejected for e in dataset.examples])
    )
    same = [e for e, good, bad in zip(dataset.examples, chosen, rejected, strict=True) if good.ids == bad.ids]
    _pairs.refuse(
        dataset, same, "chosen and rejected are the same tokens", "leave them out: such a pair teaches nothing"
    )
    rows: dict[str, RankedRow] = {}
    for example, text, *both in zip(dataset.examples, prompts, chosen, rejected, strict=True):
        texts = [(text, side[0].content) for side in (example.chosen, example.rejected)]
        shorten = partial(_shorten, both, texts, limits.context_length, model)
        if not limits.admit(example, max(len(pair.ids) for pair in both), shorten):
            continue
        row = rows.setdefault(text, RankedRow([], [], [], example.source or example.id))
        for pair in both:
            if pair not in row.pairs:
                row.pairs.append(pair)
        row.better.append((row.pairs.index(both[0]), row.pairs.index(both[1]), margin(example)))
    limits.check()
    for row in rows.values():
        row.length = sum(len(pair.ids) for pair in row.pairs)
    return list(rows.values())


def _shorten(both: list[PairIds], texts: Sequence[tuple[str, str]], length: int, model: LoadedModel) -> bool:
    """Cut the ends of the answers; not worth training when nothing is left of one, or the same of both."""
    both[:] = pair_ids(model, texts, length)
    return all(pair.document and len(pair.ids) <= length for pair in both) and both[0].ids != both[1].ids


def collate(rows: Sequence[RankedRow], model: LoadedModel) -> RankedBatch:
    """Answers in turn, comparisons by their places among them."""
    chosen: list[int] = []
    rejected: list[int] = []
    margins: list[float] = []
    first = 0
    for row in rows:
        for good, bad, margin in row.better:
            chosen.append(first + good)
            rejected.append(first + bad)
            margins.append(margin)
        first += len(row.answers) + len(row.pairs)
    return RankedBatch(
        [ScoredRow(row.prompt, row.answers) for row in rows if row.answers],
        [pair for row in rows for pair in row.pairs],
        torch.tensor(chosen, device=model.device),
        torch.tensor(rejected, device=model.device),
        torch.tensor(margins, device=model.device),
    )


def loss(model: LoadedModel, batch: RankedBatch, config: Config) -> Loss:
    """Mean over the comparisons. Metrics: ``accuracy`` (a tie counts half), ``margin`` between the rewards, their mean ``reward``."""
    if batch.rows:
        found = rewards_of_rows(model, batch.rows)
    else:
        found = rewards_of_pairs(model, batch.pairs, _FORWARD_TOKENS)
    good, bad = found[batch.chosen], found[batch.rejected]
    gap = good - bad
    value = -F.logsigmoid(gap - batch.margin).mean()
    if config.center:
        value = value + config.center * ((good + bad) ** 2).mean()
    metrics = {
        "accuracy": _pairs.share_right(gap),
        "margin": float(gap.detach().mean()),
        "reward": float((good + bad).detach().mean()) / 2,
    }
    return Loss(value, len(gap), metrics)
