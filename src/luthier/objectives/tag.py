"""Tagging: a linear layer on every token's state says which stretches of a text are entities, and of what type.

Devlin et al. 2019, "BERT", section 5.3: the classes are O, and B and I of each type, and the loss is the mean cross-entropy over the first
token of each word (``subtokens: all``: over every token). ``weights`` multiply the cross-entropy of a class's tokens; the mean is still over
tokens. Validation decodes as serving does and counts whole entities: exactly the same characters and type (Tjong Kim Sang and De Meulder 2003).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset, Example
from luthier.core.entities import OUTSIDE, Entity, counts_by_type, f1, from_answer, overlapping
from luthier.core.errors import DataError, InputError, UnsupportedError, did_you_mean
from luthier.core.task import PromptTemplate
from luthier.data.batch import pad
from luthier.models.heads import TagHead
from luthier.models.load import LoadedModel
from luthier.models.tagging import UNKNOWN, TaggedText, classes, decoded, tokenise
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind
from luthier.objectives._shown import Line, same_places

KINDS = ("entities",)
ARCHITECTURES = ("encoder",)
DEFAULT_FOR = ("entities",)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
LOSS_ONLY = ("weights",)


class Config(EntryConfig):
    """``subtokens``: which tokens of a word are read, the ``first`` or ``all``. ``weights``: by type (and ``O``), how much the cross-entropy of
    its tokens counts; 1 where nothing is said."""

    subtokens: Literal["first", "all"] = "first"
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)


@dataclass(slots=True)
class Row:
    """A text's tokens, the class of each that is read, and the entities that are wanted of it."""

    text: TaggedText
    labels: list[int]
    entities: list[Entity]
    source: str

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return len(self.text.ids)

    @property
    def weight(self) -> int:
        """Tokens that are read and have a class."""
        return sum(label != UNKNOWN for label in self.labels)


@dataclass(frozen=True, slots=True)
class Batch:
    """ids and mask (rows, length), padded on the right; ``places`` index the flattened positions, ``labels`` the classes wanted there."""

    ids: Tensor
    mask: Tensor
    places: Tensor
    labels: Tensor
    rows: tuple[Row, ...]

    def lines(self) -> list[Line]:
        """Which tokens are read and have a class."""
        known = self.places[self.labels != UNKNOWN]
        return same_places(self.ids, known, self.ids.flatten()[known])


def heads_for(model: LoadedModel, train: Dataset, config: Config) -> None:
    """The classes of the types in ``train``; a head from an earlier tuning on the same types stays.

    Raises UnsupportedError for another architecture or kind, DataError without any entity, InputError for weights of types that are not there.
    """
    require_kind(train, KINDS, "tag")
    if model.architecture != "encoder":
        raise UnsupportedError(
            f"objective tag needs an encoder; {model.record.name} is of architecture {model.architecture}",
            hint="say the entities as text instead: objective: sft",
        )
    types = sorted({entity.type for example in train.examples for entity in _entities(example)})
    if not types:
        raise DataError(f"{train.name} has no entity at all: there is nothing to learn")
    for name in config.weights:
        if name not in (OUTSIDE, *types):
            raise InputError(
                f"objective.weights: {name!r} is no type of {train.name}. {did_you_mean(name, types)}",
                hint=f"types: {', '.join(types)}, and O for what is outside",
            )
    head = model.head
    if not isinstance(head, TagHead) or (head.types, head.subtokens) != (tuple(types), config.subtokens):
        head = TagHead(model.module.width, types, config.subtokens)
    model.put_head(head.to(model.device).requires_grad_(True))


def _entities(example: Example) -> list[Entity]:
    return from_answer(example.target or "[]")


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Row]:
    """Tokenise and align. A type that training does not have bears no loss, and its entities count as missed.

    Raises UnsupportedError for another kind, DataError for entities that overlap, and for an overlong text (``truncate`` keeps the entities
    that begin before the cut).
    """
    require_kind(dataset, KINDS, "tag")
    head: TagHead = model.head
    wanted = [_entities(example) for example in dataset.examples]
    _refuse_overlaps(dataset, wanted)
    rows = []
    texts = tokenise(model, [e.text for e in dataset.examples], head.subtokens)
    for example, text, entities in zip(dataset.examples, texts, wanted, strict=True):
        row = Row(text, classes(text.spans, entities, head.types), entities, example.source or example.id)
        if limits.admit(example, row.length, partial(_shorten, row, limits.context_length)) and row.weight:
            rows.append(row)
    limits.check()
    return rows


def _refuse_overlaps(dataset: Dataset, wanted: Sequence[Sequence[Entity]]) -> None:
    for example, entities in zip(dataset.examples, wanted, strict=True):
        place = example.source or example.id
        if (both := overlapping(entities)) is not None:
            one, other = both
            raise DataError(
                f"{place}: {one.type} at {one.start} to {one.end} and {other.type} at {other.start} to {other.end} overlap; a token has one tag",
                hint="keep one of them, or say the entities as text: a decoder with objective: sft",
            )


def _shorten(row: Row, length: int) -> bool:
    row.text.cut(length)
    row.labels = row.labels[: len(row.text.places)]
    end = row.text.spans[-1][1] if row.text.spans else 0
    row.entities = [entity for entity in row.entities if entity.start < end]
    return bool(row.weight)


def collate(rows: Sequence[Row], model: LoadedModel) -> Batch:
    """One padded batch."""
    padded = pad([row.text.ids for row in rows], model.tokenizer.pad_token_id or 0)
    width = padded.ids.shape[1]
    places = [number * width + place for number, row in enumerate(rows) for place in row.text.places]
    labels = [label for row in rows for label in row.labels]
    device = model.device
    return Batch(
        padded.ids.to(device),
        padded.attention_mask.to(device),
        torch.tensor(places, device=device),
        torch.tensor(labels, device=device),
        tuple(rows),
    )


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean cross-entropy over the tokens that are read; metric ``accuracy`` of single tokens, and with ``figures`` of whole entities."""
    module, head = model.module, model.head
    states = module.states(batch.ids, batch.mask)
    logits = head(module.dropout(states.reshape(-1, states.shape[-1]).index_select(0, batch.places)))
    known = batch.labels != UNKNOWN
    count = int(known.sum())
    each = F.cross_entropy(logits, batch.labels, reduction="none", ignore_index=UNKNOWN)
    if config.weights:
        names = [OUTSIDE, *(name for name in head.types for _ in range(2))]
        weights = torch.tensor([config.weights.get(name, 1.0) for name in names], device=each.device)
        each = each * weights[batch.labels.clamp(min=0)]
    accuracy = int((logits.detach().argmax(-1) == batch.labels).sum()) / count
    outcomes = () if module.training else tuple(_outcomes(logits, batch.rows, head.types))
    return Loss(each.sum() / count, count, {"accuracy": accuracy}, outcomes)


def _outcomes(logits: Tensor, rows: Sequence[Row], types: Sequence[str]) -> list[dict[str, tuple[int, int, int]]]:
    """Of each row by type: (right, wanted, given) entities."""
    parts = torch.split(logits, [len(row.labels) for row in rows])
    return [
        counts_by_type(row.entities, decoded(part, row.text.spans, types))
        for row, part in zip(rows, parts, strict=True)
    ]


def figures(outcomes: Sequence[Mapping[str, tuple[int, int, int]]], config: Config) -> dict[str, float]:
    """Precision, recall and F1 over all entities, and the mean over types of their F1."""
    totals: dict[str, Counter[str]] = {}
    for row in outcomes:
        for kind, (right, wanted, given) in row.items():
            totals.setdefault(kind, Counter()).update(right=right, wanted=wanted, given=given)
    all_of = sum(totals.values(), Counter())
    right, wanted, given = (all_of[name] for name in ("right", "wanted", "given"))
    each = [f1(c["right"], c["wanted"], c["given"]) for c in totals.values()]
    return {
        "entity_precision": right / given if given else 0.0,
        "entity_recall": right / wanted if wanted else 0.0,
        "entity_f1": f1(right, wanted, given),
        "entity_macro_f1": sum(each) / len(each) if each else 0.0,
    }
