"""Supervised fine-tuning: the cross-entropy of what the assistant says, and of nothing else.

Which tokens those are is the renderer's answer (end-of-turn included; the turns of a conversation are separate responses). The
body of the model runs over the whole row, the language-model head only where there is a label. For an encoder-decoder every
response is a row of its own: what comes before it is the source, it is the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.message import Conversation, Message
from luthier.core.task import PromptTemplate
from luthier.data import extraction
from luthier.data.batch import pad
from luthier.data.render_source import SourceRenderer
from luthier.models.decode import hidden_states
from luthier.models.load import LoadedModel
from luthier.objectives import _seq2seq
from luthier.objectives._language import states_at, token_loss
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, last_run, require_kind, require_labels
from luthier.objectives._shown import Line, next_tokens

KINDS = ("chat", "question", "labelled", "number", *extraction.KINDS)
ARCHITECTURES = ("decoder", "encoder-decoder")
DEFAULT_FOR = ("chat", "question", "number", *extraction.KINDS)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}


class Config(EntryConfig):
    """``turns``: which assistant turns of a conversation bear loss."""

    turns: Literal["all", "last"] = "all"


@dataclass(slots=True)
class Row:
    """Token ids of a conversation; ``places`` are the positions that predict a labelled token (the one before it)."""

    ids: list[int]
    places: list[int]
    source: str

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return len(self.ids)

    @property
    def weight(self) -> int:
        """Labelled tokens."""
        return len(self.places)


STREAMED = (Row, _seq2seq.PairRow)


@dataclass(frozen=True, slots=True)
class Batch:
    """ids (rows, length), padded on the right; ``places`` index the flattened positions, ``targets`` the ids wanted there."""

    ids: Tensor
    places: Tensor
    targets: Tensor

    def lines(self) -> list[Line]:
        """What is read and asked, token by token."""
        return next_tokens(self.ids, self.places, self.targets)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise. Rows of other kinds become conversations through ``prompt``; chats are taken as they are.

    Raises UnsupportedError for other kinds or an encoder, DataError for rows over the context length.
    """
    require_kind(dataset, KINDS, "sft")
    renderer = model.renderer
    if renderer is None:
        raise UnsupportedError(
            f"objective sft needs a decoder or an encoder-decoder; {model.record.name} is an encoder",
            hint="use objective: classify",
        )
    if dataset.kind == "labelled" and prompt.labels:
        require_labels(dataset, prompt.labels)
    conversations = [_conversation(e, dataset.kind, prompt) for e in dataset.examples]
    if isinstance(renderer, SourceRenderer):
        last_only = config.turns == "last"
        return list(_seq2seq.prepare(dataset.examples, conversations, renderer, limits, last_only=last_only))
    rendered = renderer.training_ids_batch(conversations, [e.meta.get("tools") for e in dataset.examples])
    rows = []
    for example, whole in zip(dataset.examples, rendered, strict=True):
        first, end = last_run(whole.mask) if config.turns == "last" else (0, len(whole.mask))
        places = [i - 1 for i in range(max(first, 1), end) if whole.mask[i]]
        row = Row(whole.ids, places, example.source or example.id)
        if limits.admit(example, row.length, partial(shorten, row, limits.context_length)):
            rows.append(row)
    limits.check()
    return rows


def _conversation(example: Example, kind: str, prompt: PromptTemplate) -> Conversation:
    if kind == "chat":
        return example.messages
    if example.target is None:
        raise DataError(f"{example.source or example.id}: sft needs an answer; this row has none")
    target = extraction.answer(example) if kind in extraction.KINDS else example.target
    return (*prompt.messages(example.text), Message("assistant", target))


def shorten(row: Row, length: int) -> bool:
    """Cut a row at its end; whether any of its labelled tokens are left."""
    row.ids = row.ids[:length]
    row.places = [place for place in row.places if place < length - 1]
    return bool(row.places)


def collate(rows: Sequence[Any], model: LoadedModel) -> Batch | _seq2seq.PairBatch:
    """Pad on the right. Causal attention never lets a real token see the padding after it, so no mask is needed."""
    if model.architecture == "encoder-decoder":
        return _seq2seq.collate(rows, model)
    assert model.renderer is not None  # decoders have one
    ids = pad([row.ids for row in rows], model.renderer.pad_id).ids
    width = ids.shape[1]
    places = [number * width + place for number, row in enumerate(rows) for place in row.places]
    targets = [row.ids[place + 1] for row in rows for place in row.places]
    return Batch(
        ids.to(model.device), torch.tensor(places, device=model.device), torch.tensor(targets, device=model.device)
    )


def hidden_at_labels(model: LoadedModel, batch: Batch | _seq2seq.PairBatch) -> Tensor:
    """What the head makes logits of, (labels, width)."""
    if isinstance(batch, Batch):
        return states_at(hidden_states(model.module, batch.ids), batch.places)
    return _seq2seq.hidden_at_labels(model, batch)


def loss(model: LoadedModel, batch: Batch | _seq2seq.PairBatch, config: Config) -> Loss:
    """Mean cross-entropy over the labelled tokens, in nats."""
    return token_loss(model, hidden_at_labels(model, batch), batch.targets)
