"""Distillation of an encoder's words: the student says the hidden words as the text has them and as its teacher would (Sanh et al. 2019, section 2).

    alpha_ce * T^2 * KL(softmax(t / T) || softmax(s / T))  +  alpha_mlm * cross-entropy(s, the words hidden)  +  alpha_cos * mean(1 - cos(h_s, h_t))

s and t are the logits of student and teacher over the vocabulary, h their last hidden states, each a mean over tokens: the cross-entropy over the tokens
that were hidden, the cosine over all real tokens, the divergence over all real tokens or only the hidden ones. Both read the same text, masked as
``masked_lm`` masks it, anew each time. A student without a language-model head of its own begins with a copy of its teacher's. Weights and temperature
are those of the command that the authors published. The teacher reads every batch anew: the masks are never the same twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from luthier.core import catalog
from luthier.core.catalog import Entry, EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress
from luthier.core.task import PromptTemplate
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel
from luthier.models.masked_head import MaskedHead, masked_head
from luthier.objectives import _teacher
from luthier.objectives._language import states_at
from luthier.objectives._loss import Loss, linear_cross_entropy
from luthier.objectives._rows import Around, Limits
from luthier.objectives._soft_targets import Product, vocabulary_divergence
from luthier.store.database import Store

KINDS = ("text",)
ARCHITECTURES = ("encoder",)
DEFAULT_FOR = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}

_MASKING = ("share", "mask", "random", "whole_word", "length", "stride", "train_head")


class Config(EntryConfig):
    """``teacher``: name of a stored encoder, base or tuned, with a language-model head and the student's tokenizer. It is read, never changed.

    ``temperature`` T softens both distributions. ``alpha_ce``, ``alpha_mlm`` and ``alpha_cos`` weigh the three terms; 0 leaves a term out.
    ``restrict_ce_to_mask``: the divergence only at the hidden tokens, which costs a seventh of the logits. The other settings are those of masked_lm.
    """

    teacher: str = Field(min_length=1)
    temperature: float = Field(2.0, gt=0)
    alpha_ce: float = Field(5.0, ge=0)
    alpha_mlm: float = Field(2.0, ge=0)
    alpha_cos: float = Field(1.0, ge=0)
    restrict_ce_to_mask: bool = False
    share: float = Field(0.15, gt=0, lt=1)
    mask: float = Field(0.8, ge=0, le=1)
    random: float = Field(0.1, ge=0, le=1)
    whole_word: bool = False
    length: int | None = Field(None, ge=4)
    stride: int | None = Field(None, ge=1)
    train_head: bool | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.mask + self.random > 1 + 1e-9:
            raise ValueError(f"mask and random must sum to at most 1; got {self.mask:g} and {self.random:g}")
        if not (self.alpha_ce or self.alpha_mlm or self.alpha_cos):
            raise ValueError("alpha_ce, alpha_mlm and alpha_cos are all 0: there is nothing to learn")
        return self


@dataclass(slots=True)
class Row(Around):
    """A row of masked_lm, and the teacher."""

    teacher: LoadedModel | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of masked_lm, and the teacher that reads it."""

    plain: Any
    teacher: LoadedModel


def _masked_lm(config: Config) -> tuple[Entry, Any]:
    entry = catalog.load("objectives", "masked_lm")
    return entry, entry.configure({name: getattr(config, name) for name in _MASKING})


def reads(
    store: Store, base: ModelRecord, train: Dataset, prompt: PromptTemplate, config: Config
) -> Mapping[str, ModelRecord]:
    """The teacher, checked against the student without reading weights."""
    if base.architecture != "encoder":
        raise UnsupportedError(
            f"objective distilbert needs an encoder; {base.name} is of architecture {base.architecture}",
            hint="use objective: distill",
        )
    record = _teacher.check(store, base, train, prompt, config.teacher)
    ours, theirs = _teacher.sizes(store, base).width, _teacher.sizes(store, record).width
    if config.alpha_cos and ours != theirs:
        raise MismatchError(
            f"hidden states can be compared only where they are of one width; the student {base.name} has {ours}, its teacher {record.name} {theirs}",
            hint="leave the cosine out: objective.alpha_cos=0",
        )
    return {"teacher": record}


def heads(model: LoadedModel, config: Config) -> None:
    """Give the encoder its language-model head."""
    entry, told = _masked_lm(config)
    entry.module.heads(model, told)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """The rows of masked_lm. Raises as it does."""
    entry, told = _masked_lm(config)
    return [Row(row) for row in entry.module.prepare(dataset, model, prompt, told, limits)]


def before(model: LoadedModel, rows: Sequence[Any], config: Config, progress: Progress) -> None:
    """Open the teacher, and copy its head into a student that has none of its own. Raises UnsupportedError for a teacher without one."""
    if not rows:
        return
    progress("teacher", 0, 1)
    teacher = _teacher.shared(config.teacher, model, max(row.length for row in rows))
    if teacher.module.lm_head is None:
        head = masked_head(teacher)
        if not head.own:
            raise UnsupportedError(
                f"the teacher {config.teacher} has no language-model head: its files came without one, and it was not tuned to predict words",
                hint=f"tune it first: luthier tune run.yaml model.base={config.teacher} objective=masked_lm, on the same text",
            )
        head.requires_grad_(False)
        teacher.module.lm_head = head.eval()
    if not model.module.lm_head.own:
        _begin_with(model.module.lm_head, teacher.module.lm_head)
    for row in rows:
        row.teacher = teacher
    progress("teacher", 1, 1)


def _begin_with(head: MaskedHead, given: MaskedHead) -> None:
    theirs = dict(given.named_parameters())
    for name, parameter in head.named_parameters():
        if name in theirs and theirs[name].shape == parameter.shape:
            parameter.data.copy_(theirs[name].data)


def collate(rows: Sequence[Any], model: LoadedModel) -> Batch:
    """Draw the masks and pad."""
    entry = catalog.load("objectives", "masked_lm")
    return Batch(entry.module.collate([row.row for row in rows], model), rows[0].teacher)


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """The three terms, each a metric before its weight (``divergence`` without T^2), and ``accuracy`` at the tokens asked.

    Of a step in several micro-batches, their means are weighted by the tokens asked.
    """
    plain = batch.plain
    with torch.no_grad():
        theirs = _hidden(batch.teacher, plain)
    ours = _hidden(model, plain)
    real = plain.mask.flatten().nonzero().squeeze(1)
    terms: list[Tensor] = []
    metrics: dict[str, float] = {}
    if config.alpha_ce:
        places = plain.places if config.restrict_ce_to_mask else real
        with torch.no_grad():
            said = _product(batch.teacher, states_at(theirs, places))
        apart = vocabulary_divergence(_product(model, states_at(ours, places)), said, config.temperature) / len(places)
        terms.append(config.alpha_ce * config.temperature**2 * apart)
        metrics["divergence"] = float(apart.detach())
    if config.alpha_mlm:
        asked, hits = (
            _product(model, states_at(ours, plain.places)),
            torch.zeros((), dtype=torch.long, device=real.device),
        )
        total = linear_cross_entropy(asked.features, asked.weight, asked.bias, plain.targets, hits)
        right = total / len(plain.targets)
        terms.append(config.alpha_mlm * right)
        metrics |= {"cross_entropy": float(right.detach()), "accuracy": float(hits) / len(plain.targets)}
    if config.alpha_cos:
        one, other = (states_at(hidden, real).float() for hidden in (ours, theirs))
        turned = F.cosine_embedding_loss(one, other, torch.ones(len(one), device=one.device))
        terms.append(config.alpha_cos * turned)
        metrics["cosine_distance"] = float(turned.detach())
    return Loss(torch.stack(terms).sum(), len(plain.targets), metrics)


def _hidden(model: LoadedModel, plain: Any) -> Tensor:
    """Last hidden states (rows, length, width) of the real tokens' places; a soft prompt's come first and are left out."""
    out: Tensor = model.module.body(input_ids=plain.ids, attention_mask=plain.mask).last_hidden_state
    return out[:, -plain.ids.shape[1] :]


def _product(model: LoadedModel, states: Tensor) -> Product:
    head = model.module.lm_head
    return Product(head(states), head.weight(inner_of(model)), head.bias)
