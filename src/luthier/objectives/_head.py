"""A head on an encoder's pooled vector: its rows, its outputs, and for classification the cross-entropy of its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.dataset import Dataset
from luthier.data.batch import order_by_length, pad
from luthier.models.load import LoadedModel
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits

_FEATURE_TOKENS = 8192


@dataclass(slots=True)
class HeadRow:
    """Token ids and what is wanted: the label's index, or a number; ``features`` is the pooled vector when nothing before the head is
    trained."""

    ids: list[int]
    label: int | float
    source: str
    features: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens that it costs; with features nearly nothing."""
        return 1 if self.features is not None else len(self.ids)

    @property
    def weight(self) -> int:
        """One example."""
        return 1


@dataclass(frozen=True, slots=True)
class HeadBatch:
    """ids and mask (rows, length), padded on the right, or features (rows, width); labels (rows)."""

    ids: Tensor | None
    mask: Tensor | None
    features: Tensor | None
    labels: Tensor


def prepare(dataset: Dataset, model: LoadedModel, limits: Limits) -> list[HeadRow]:
    """Tokenise the texts; compute the features once when the body is frozen."""
    place = {label: index for index, label in enumerate(model.labels)}
    return prepare_rows(dataset, model, [place[str(e.target)] for e in dataset.examples], limits)


def prepare_rows(
    dataset: Dataset, model: LoadedModel, wanted: Sequence[int] | Sequence[float], limits: Limits
) -> list[HeadRow]:
    """One row an example, with what is ``wanted`` of it; the features of a frozen body are computed once."""
    texts = [e.text for e in dataset.examples]
    encoded = model.tokenizer(texts, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    rows = []
    for example, ids, label in zip(dataset.examples, encoded, wanted, strict=True):
        row = HeadRow(list(ids), label, example.source or example.id)
        if limits.admit(example, row.length, partial(_shorten, row, limits.context_length)):
            rows.append(row)
    limits.check()
    if model.module.body_is_frozen:
        _compute_features(rows, model)
    return rows


def _shorten(row: HeadRow, length: int) -> bool:
    """Keep the closing special token, as the tokenizer's own truncation does."""
    row.ids = row.ids[: length - 1] + row.ids[-1:]
    return True


def _compute_features(rows: list[HeadRow], model: LoadedModel) -> None:
    """Fill in the pooled vectors, in batches of like lengths."""
    for indices in order_by_length([len(row.ids) for row in rows], _FEATURE_TOKENS):
        batch = [rows[i] for i in indices]
        with torch.no_grad():
            vectors = model.module.pooled(*padded(batch, model))
        for row, vector in zip(batch, vectors, strict=True):
            row.features = vector


def padded(rows: Sequence[HeadRow], model: LoadedModel) -> tuple[Tensor, Tensor]:
    """ids and mask of the rows' texts, for ``model``."""
    batch = pad([row.ids for row in rows], model.tokenizer.pad_token_id or 0)
    return batch.ids.to(model.device), batch.attention_mask.to(model.device)


def collate(rows: Sequence[HeadRow], model: LoadedModel) -> HeadBatch:
    """One padded batch, or a stack of features."""
    labels = torch.tensor([row.label for row in rows], device=model.device)
    features = [row.features for row in rows if row.features is not None]
    if features:
        return HeadBatch(None, None, torch.stack(features), labels)
    return HeadBatch(*padded(rows, model), None, labels)


def loss(model: LoadedModel, batch: HeadBatch, label_smoothing: float) -> Loss:
    """Mean cross-entropy over the examples, and accuracy."""
    logits = label_logits(model, batch)
    value = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    accuracy = float((logits.detach().argmax(-1) == batch.labels).float().mean())
    return Loss(value, len(batch.labels), {"accuracy": accuracy})


def label_logits(model: LoadedModel, batch: HeadBatch) -> Tensor:
    """What the head says of each text, (rows, outputs)."""
    out: Tensor = (
        model.module(batch.ids, batch.mask) if batch.features is None else model.module.classify(batch.features)
    )
    return out
