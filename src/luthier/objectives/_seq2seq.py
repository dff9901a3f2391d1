"""Supervised fine-tuning of encoder-decoders: the decoder is shown the target one token late and predicts each of its tokens.

Teacher forcing as Raffel et al. 2020, section 2.1, train T5: the loss is the cross-entropy of the target given the source. Padding
bears none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from luthier.core.dataset import Example
from luthier.core.message import Conversation
from luthier.data.batch import pad
from luthier.data.render_source import SourceRenderer
from luthier.models.load import LoadedModel
from luthier.models.seq2seq import decode, encode, sources
from luthier.objectives._language import states_at
from luthier.objectives._rows import Limits
from luthier.objectives._shown import Line, Shown


@dataclass(slots=True)
class PairRow:
    """Token ids of a source and of its target."""

    source_ids: list[int]
    target_ids: list[int]
    source: str

    @property
    def length(self) -> int:
        """Tokens that it costs, in the encoder and in the decoder."""
        return len(self.source_ids) + len(self.target_ids)

    @property
    def weight(self) -> int:
        """Labelled tokens."""
        return len(self.target_ids)


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Sources with their mask, and what the decoder is shown (rows, length), padded on the right; ``places`` index the decoder's
    flattened positions, ``targets`` the ids wanted there."""

    ids: Tensor
    mask: Tensor
    shown: Tensor
    places: Tensor
    targets: Tensor

    def lines(self) -> list[Line]:
        """What is read and asked, token by token: a row's source, then its target."""
        counts = torch.bincount(self.places // self.shown.shape[1], minlength=len(self.ids)).tolist()
        found: list[Line] = []
        for ids, real, wanted in zip(self.ids, self.mask, torch.split(self.targets, counts), strict=True):
            found.append([Shown(token) for token in ids[real.bool()].tolist()])
            found.append([Shown(token, token) for token in wanted.tolist()])
        return found


def prepare(
    examples: Sequence[Example],
    conversations: Sequence[Conversation],
    renderer: SourceRenderer,
    limits: Limits,
    *,
    last_only: bool,
) -> list[PairRow]:
    """A row for every answer of every conversation, or only for the last ones. Source and target may each be as long as the context.

    Raises DataError for longer ones.
    """
    tools = [example.meta.get("tools") for example in examples]
    rows = []
    for example, pairs in zip(examples, renderer.training_pairs_batch(conversations, tools), strict=True):
        for pair in pairs[-1:] if last_only else pairs:
            row = PairRow(pair.source, pair.target, example.source or example.id)
            most = limits.context_length
            if limits.admit(example, max(len(pair.source), len(pair.target)), partial(shorten, row, renderer, most)):
                rows.append(row)
    limits.check()
    return rows


def shorten(row: PairRow, renderer: SourceRenderer, length: int) -> bool:
    """Cut source and target; always leaves something."""
    row.source_ids = renderer.cut(row.source_ids, length)
    row.target_ids = row.target_ids[:length]
    return True


def collate(rows: Sequence[PairRow], model: LoadedModel) -> PairBatch:
    """Pad on the right. The encoder is told what is padding; in the decoder no real token sees what comes after it."""
    renderer = model.renderer
    assert isinstance(renderer, SourceRenderer)  # encoder-decoders have one
    ids, mask = sources([row.source_ids for row in rows], renderer.pad_id, model.device)
    opening = list(renderer.opening)
    shown = pad([opening + row.target_ids[:-1] for row in rows], renderer.pad_id).ids
    width, first = shown.shape[1], len(opening) - 1
    places = [n * width + first + at for n, row in enumerate(rows) for at in range(len(row.target_ids))]
    targets = [token for row in rows for token in row.target_ids]
    return PairBatch(
        ids,
        mask,
        shown.to(model.device),
        torch.tensor(places, device=model.device),
        torch.tensor(targets, device=model.device),
    )


def hidden_at_labels(model: LoadedModel, batch: PairBatch) -> Tensor:
    """What the head makes logits of, (labels, width)."""
    encoded = encode(model.module, batch.ids, batch.mask)
    return states_at(decode(model.module, batch.shown, encoded, batch.mask), batch.places)
