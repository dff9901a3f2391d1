"""Distillation: a student learns what a stored teacher says of each answer, not only which one is right (Hinton et al. 2015).

    alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T))  +  (1 - alpha) * the loss on the right answers

Labelled rows: the distribution is over the labels (an encoder's head; otherwise the log-likelihoods of the labels' texts), and the loss on
the right answers is that of classify. Conversations and questions: it is over the whole vocabulary at every labelled token, and the other
loss is that of sft. The teacher reads every row once, before the first step. Of labels its logits are kept, a few numbers a row. Of tokens
its last hidden states are kept: a hundredth of the memory of its logits and, with its head, the same logits, where a selection
of the largest would be an approximation. Its body is let go of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.core import catalog
from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress
from luthier.core.task import PromptTemplate
from luthier.data.batch import order_by_length
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel
from luthier.objectives import _head, _label_texts, _seq2seq, _teacher
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Around, Limits, require_kind
from luthier.objectives._soft_targets import Direction, Mixture, divergence, token_terms
from luthier.store.database import Store

KINDS = ("labelled", "chat", "question")
ARCHITECTURES = ("decoder", "encoder", "encoder-decoder")
DEFAULT_FOR = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}

_READ_TOKENS = 4096


class Config(EntryConfig):
    """``teacher``: name of a stored model, base or tuned, with the student's architecture, tokenizer and labels. It is read, never changed.

    ``temperature`` T softens both distributions; the factor T^2 keeps the gradient's size. ``alpha``: weight of the teacher; the rest
    is that of the right answers. ``direction``: forward is KL(teacher || student), reverse KL(student || teacher), which lets the student leave out
    what it cannot say (Gu et al. 2024). ``turns``: which assistant turns of a conversation count. ``generative_weight``: as of
    objective classify.
    """

    teacher: str = Field(min_length=1)
    temperature: float = Field(2.0, gt=0)
    alpha: float = Field(0.5, gt=0, le=1)
    direction: Direction = "forward"
    turns: Literal["all", "last"] = "all"
    generative_weight: float = Field(1.0, ge=0)


@dataclass(slots=True)
class Row(Around):
    """A row of classify or sft, and what the teacher says of it: label logits (labels), or hidden states (labelled tokens, width)."""

    said: Tensor | None = None
    head: _teacher.TeacherHead | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of classify or sft with the teacher's part of it: ``said`` (rows, labels) or (labelled tokens, width)."""

    plain: Any
    said: Tensor
    head: _teacher.TeacherHead | None


def reads(
    store: Store, base: ModelRecord, train: Dataset, prompt: PromptTemplate, config: Config
) -> Mapping[str, ModelRecord]:
    """The teacher, checked against the student without reading weights."""
    return {"teacher": _teacher.check(store, base, train, prompt, config.teacher)}


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """The rows of classify or sft. Raises as they do, and UnsupportedError for an encoder without labelled rows."""
    require_kind(dataset, KINDS, "distill")
    if dataset.kind == "labelled":
        told = config.model_dump(include={"generative_weight"}, exclude_unset=True)
        own = catalog.load("objectives", "classify")
        found = own.module.prepare(dataset, model, prompt, own.configure(told), limits)
    elif model.architecture == "encoder":
        raise UnsupportedError(
            f"an encoder is distilled on labelled rows; {dataset.name} is {dataset.kind}",
            hint="luthier data inspect FILE shows what a file holds",
        )
    else:
        own = catalog.load("objectives", "sft")
        found = own.module.prepare(dataset, model, prompt, own.configure({"turns": config.turns}), limits)
    return [Row(row) for row in found]


def before(model: LoadedModel, rows: Sequence[Any], config: Config, progress: Progress) -> None:
    """The teacher reads every row, in batches of like lengths."""
    if not rows:
        return
    lengths = [len(row.row.ids) if isinstance(row.row, _head.HeadRow) else row.length for row in rows]
    teacher = _teacher.open_teacher(config.teacher, model, _longest(rows, model))
    by_labels = isinstance(rows[0].row, _head.HeadRow | _label_texts.TextRow)
    if not by_labels:
        _require_memory(rows, teacher)
    done = 0
    progress("teacher", done, len(rows))
    for places in order_by_length(lengths, _READ_TOKENS):
        batch = [rows[place] for place in places]
        said = _label_logits(teacher, batch, model) if by_labels else _states(teacher, batch)
        for row, each in zip(batch, said, strict=True):
            row.said = each
            row.head = None if by_labels else _teacher.head_of(teacher)
        done += len(batch)
        progress("teacher", done, len(rows))


def _longest(rows: Sequence[Any], model: LoadedModel) -> int:
    """The most tokens that one stack reads of a row."""
    inner = [row.row for row in rows]
    if isinstance(inner[0], _seq2seq.PairRow):
        return max(max(len(row.source_ids), len(row.target_ids)) for row in inner)
    if isinstance(inner[0], _label_texts.TextRow):
        answers = max(map(len, inner[0].answers))
        prompts = max(len(row.prompt) for row in inner)
        return max(prompts, answers) if model.architecture == "encoder-decoder" else prompts + answers
    return max(len(row.ids) for row in inner)


def _require_memory(rows: Sequence[Any], teacher: LoadedModel) -> None:
    config = inner_of(teacher).config.get_text_config()
    need = sum(row.weight for row in rows) * int(config.hidden_size) * teacher.dtype.itemsize
    free = psutil.virtual_memory().available
    if need > free:
        raise DataError(
            f"what the teacher says of {sum(row.weight for row in rows):,} tokens takes {need / 1e6:,.0f} MB; {free / 1e6:,.0f} MB are free",
            hint="use fewer rows: data.limit=N",
        )


def _label_logits(teacher: LoadedModel, rows: Sequence[Any], student: LoadedModel) -> Tensor:
    """(rows, labels), in the order of the student's labels."""
    inner = [row.row for row in rows]
    if teacher.architecture == "encoder":
        out: Tensor = teacher.module(*_head.padded(inner, teacher))
        return out[:, _teacher.places_of(student.labels, teacher)]
    return torch.stack(_label_texts.label_log_probs(teacher, _label_texts.collate(inner, teacher).rows))


def _states(teacher: LoadedModel, rows: Sequence[Any]) -> list[Tensor]:
    """Hidden states at the labelled places of each row, in the machine's own memory."""
    hidden = _hidden(teacher, _batch("sft", [row.row for row in rows], teacher)).cpu()
    return [part.clone() for part in torch.split(hidden, [row.weight for row in rows])]


def _batch(objective: str, rows: Sequence[Any], model: LoadedModel) -> Any:
    return catalog.load("objectives", objective).module.collate(rows, model)


def _hidden(model: LoadedModel, batch: Any) -> Tensor:
    out: Tensor = catalog.load("objectives", "sft").module.hidden_at_labels(model, batch)
    return out


def collate(rows: Sequence[Any], model: LoadedModel) -> Batch:
    """The batch of classify or sft beside what the teacher said of it."""
    inner, said = [row.row for row in rows], [row.said for row in rows]
    head = rows[0].head
    if head is None:
        return Batch(_batch("classify", inner, model), torch.stack(said).to(model.device), None)
    return Batch(_batch("sft", inner, model), torch.cat(said).to(model.device), head)


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean over examples (metrics ``accuracy``, ``agreement`` with the teacher, ``divergence``) or over labelled tokens."""
    if batch.head is None:
        return _label_loss(model, batch, config)
    mixture = Mixture(config.alpha, config.temperature, config.direction)
    count = len(batch.plain.targets)
    hidden = _hidden(model, batch.plain)
    found = token_terms(model.module, hidden, batch.plain.targets, batch.head, batch.said, mixture)
    metrics = {"divergence": found.divergence / count, "cross_entropy": found.cross_entropy / count}
    return Loss(found.value / count, count, metrics)


def _label_loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    labels: Tensor = batch.plain.labels
    if model.architecture == "encoder":
        scores = _head.label_logits(model, batch.plain)
        right = F.cross_entropy(scores, labels)
    else:
        scores = torch.stack(_label_texts.label_log_probs(model, batch.plain.rows))
        own = -scores.gather(1, labels[:, None]).mean()
        right = F.cross_entropy(scores, labels) + config.generative_weight * own
    count = len(labels)
    apart = divergence(scores, batch.said, config.temperature, config.direction) / count
    answers = scores.detach().argmax(-1)
    metrics = {
        "accuracy": float((answers == labels).float().mean()),
        "agreement": float((answers == batch.said.argmax(-1)).float().mean()),
        "divergence": float(apart.detach()),
    }
    return Loss(config.alpha * config.temperature**2 * apart + (1 - config.alpha) * right, count, metrics)
