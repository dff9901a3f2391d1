"""Episodes: small classification tasks drawn from a dataset with many labels (Vinyals et al. 2016, section 4.1).

An episode has some of the labels (``ways``), a few examples of each to learn from (``shots``), and others of each to be asked (``queries``). It is a row of
training: which labels and examples it has is drawn anew each time, as ``_draws`` says; rows of one dataset draw from that dataset alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, UnsupportedError
from luthier.data.batch import pad
from luthier.models.load import LoadedModel
from luthier.objectives._draws import generators
from luthier.objectives._rows import Limits, require_kind, require_labels

KINDS = ("labelled",)


@dataclass(frozen=True)
class Shape:
    """What an episode is made of, and how many make an epoch."""

    ways: int
    shots: int
    queries: int
    episodes: int


@dataclass(frozen=True)
class Text:
    """Token ids, and the place of the label among the model's, or the dataset's where the model keeps none."""

    ids: list[int]
    label: int


@dataclass(frozen=True)
class Pool:
    """The texts of one dataset. ``drawn`` holds, for each label with enough of them, the places of its texts."""

    name: str
    texts: tuple[Text, ...]
    drawn: tuple[tuple[int, ...], ...]
    shape: Shape


@dataclass(frozen=True)
class Row:
    """One episode, not drawn yet."""

    number: int
    pool: Pool
    length: int

    @property
    def weight(self) -> int:
        """Queries."""
        return self.pool.shape.ways * self.pool.shape.queries

    @property
    def source(self) -> str:
        """Which episode of which dataset."""
        return f"{self.pool.name}: episode {self.number + 1}"


@dataclass(frozen=True)
class Part:
    """ids and mask (texts, length), padded on the right; labels (texts) from 0 to ways - 1, in order, equally many of each."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Episode:
    """What is learned from and what is asked. ``seed`` is for what else a learner draws."""

    support: Part
    query: Part
    seed: int


def require_encoder(model: LoadedModel, objective: str) -> None:
    """Raise UnsupportedError for anything but an encoder."""
    if model.architecture != "encoder":
        raise UnsupportedError(
            f"objective {objective} needs an encoder; {model.record.name} is of architecture {model.architecture}",
            hint="use objective: classify, or strategy few_shot without training",
        )


def prepare(dataset: Dataset, model: LoadedModel, shape: Shape, limits: Limits, objective: str) -> list[Row]:
    """``shape.episodes`` rows. Raises UnsupportedError for other data or models, DataError for too few labels with enough examples."""
    pool = pooled(dataset, model, shape, limits, objective)
    if len(pool.drawn) < shape.ways:
        need = shape.shots + shape.queries
        raise DataError(
            f"{dataset.name}: an episode needs {shape.ways} labels with {need} examples each; {len(pool.drawn)} of "
            f"{len({text.label for text in pool.texts})} labels have that many",
            hint="give smaller objective.ways, objective.shots or objective.queries, or more examples",
        )
    length = round(fmean(len(text.ids) for text in pool.texts) * shape.ways * (shape.shots + shape.queries))
    return [Row(number, pool, max(1, length)) for number in range(shape.episodes)]


def pooled(dataset: Dataset, model: LoadedModel, shape: Shape, limits: Limits, objective: str) -> Pool:
    """The texts of a dataset, tokenised."""
    require_kind(dataset, KINDS, objective)
    require_encoder(model, objective)
    if model.labels:
        require_labels(dataset, model.labels)
    place = {label: index for index, label in enumerate(model.labels or dataset.labels)}
    encoded = model.tokenizer([e.text for e in dataset.examples], truncation=False, verbose=False)["input_ids"]
    texts = []
    for example, ids in zip(dataset.examples, encoded, strict=True):
        text = Text(list(ids), place[str(example.target)])
        if limits.admit(example, len(text.ids), partial(_shorten, text.ids, limits.context_length)):
            texts.append(text)
    limits.check()
    by_label: dict[int, list[int]] = {}
    for at, text in enumerate(texts):
        by_label.setdefault(text.label, []).append(at)
    enough = [tuple(places) for _, places in sorted(by_label.items()) if len(places) >= shape.shots + shape.queries]
    return Pool(dataset.name, tuple(texts), tuple(enough), shape)


def _shorten(ids: list[int], length: int) -> bool:
    """Keep the closing special token, as the tokenizer's own truncation does."""
    ids[:] = ids[: length - 1] + ids[-1:]
    return True


def collate(rows: Sequence[Row], model: LoadedModel) -> list[Episode]:
    """Draw the episodes."""
    drawn = generators([[row.number] for row in rows], model)
    return [_draw(row.pool, generator, model) for row, generator in zip(rows, drawn, strict=True)]


def _draw(pool: Pool, generator: torch.Generator, model: LoadedModel) -> Episode:
    shape = pool.shape
    support: list[list[int]] = []
    query: list[list[int]] = []
    for label in torch.randperm(len(pool.drawn), generator=generator)[: shape.ways].tolist():
        places = pool.drawn[label]
        order = torch.randperm(len(places), generator=generator)[: shape.shots + shape.queries].tolist()
        ids = [pool.texts[places[at]].ids for at in order]
        support += ids[: shape.shots]
        query += ids[shape.shots :]
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    return Episode(_part(support, shape.ways, model), _part(query, shape.ways, model), seed)


def _part(texts: Sequence[list[int]], ways: int, model: LoadedModel) -> Part:
    batch, device = pad(texts, model.tokenizer.pad_token_id or 0), model.device
    labels = torch.arange(ways).repeat_interleave(len(texts) // ways)
    return Part(batch.ids.to(device), batch.attention_mask.to(device), labels.to(device))
