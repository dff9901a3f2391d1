"""Few examples a label: a text belongs to the label whose examples' mean vector is nearest (prototypical networks; Snell et al. 2017, equations 1 and 2).

    c_k = mean of f(x) over the examples of k        p(k | x) = softmax_k( -|f(x) - c_k|^2 )

Training draws episodes from a dataset with many labels and lowers -log p of their queries, so that the means of a few examples tell labels apart, labels never
seen among them. A method that leaves the encoder as it is (linear_probe) trains nothing: the baseline. In the end the head is made of the means of all
training rows: -|f - c|^2 = 2 c f - |c|^2 - |f|^2, and the last term is the same for every label, so that the layer has weight 2 c and bias -|c|^2
(the paper, section 2.4). So the result answers as any classifier does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import DataError
from luthier.core.run import Progress
from luthier.core.task import PromptTemplate
from luthier.data.batch import order_by_length, pad
from luthier.models.load import LoadedModel
from luthier.objectives import _episodes, _head
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind, require_labels

KINDS = _episodes.KINDS
ARCHITECTURES = ("encoder",)
DEFAULT_FOR = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"encoder": {"batch_size": 4}}

_READ_TOKENS = 8192


class Config(EntryConfig):
    """An episode has ``ways`` labels with ``shots`` examples to make the means of and ``queries`` to be asked; ``episodes`` of them make an epoch, and
    ``train.batch_size`` counts episodes. Where the encoder is not trained none are drawn, and a label needs one example."""

    ways: int = Field(5, ge=2)
    shots: int = Field(5, ge=1)
    queries: int = Field(5, ge=1)
    episodes: int = Field(100, ge=1)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Episodes; of an encoder that is not trained the examples with their vectors. Raises DataError for too few labels or examples."""
    require_kind(dataset, KINDS, "prototype")
    _episodes.require_encoder(model, "prototype")
    if len(model.labels) < 2:
        raise DataError(f"classification needs at least two labels; {dataset.name} has {len(model.labels)}")
    if model.module.body_is_frozen:
        require_labels(dataset, model.labels)
        return list(_head.prepare(dataset, model, limits))
    shape = _episodes.Shape(config.ways, config.shots, config.queries, config.episodes)
    return list(_episodes.prepare(dataset, model, shape, limits, "prototype"))


def before(model: LoadedModel, rows: Sequence[Any], config: Config, progress: Progress) -> None:
    """The head is computed in the end, not trained."""
    model.module.head.requires_grad_(False)


def collate(rows: Sequence[Any], model: LoadedModel) -> Any:
    """Draw the episodes."""
    if isinstance(rows[0], _head.HeadRow):
        return _head.collate(rows, model)
    return _episodes.collate(rows, model)


def loss(model: LoadedModel, batch: Any, config: Config) -> Loss:
    """Mean over the queries of all episodes; metric ``accuracy``."""
    if isinstance(batch, _head.HeadBatch):
        return _head.loss(model, batch, 0.0)
    terms, hits, count = [], 0, 0
    for episode in batch:
        support = model.module.pooled(episode.support.ids, episode.support.mask)
        asked = model.module.pooled(episode.query.ids, episode.query.mask)
        near = -distances(asked, means(support, episode.support.labels)[0])
        terms.append(F.cross_entropy(near, episode.query.labels, reduction="sum"))
        hits += int((near.detach().argmax(-1) == episode.query.labels).sum())
        count += len(asked)
    return Loss(torch.stack(terms).sum() / count, count, {"accuracy": hits / count})


def means(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the vectors (texts, width) of each label that occurs, (labels, width) in ascending order, and these labels."""
    found, place = torch.unique(labels, return_inverse=True)
    total = vectors.new_zeros(len(found), vectors.shape[1]).index_add(0, place, vectors)
    return total / torch.bincount(place)[:, None], found


def distances(vectors: Tensor, prototypes: Tensor) -> Tensor:
    """Squared Euclidean distances (texts, labels)."""
    return (vectors[:, None] - prototypes[None]).square().sum(-1)


def after(model: LoadedModel, rows: Sequence[Any], config: Config, progress: Progress) -> None:
    """Make the head of the means of all training rows; a label without any keeps what an earlier tuning made of it."""
    if isinstance(rows[0], _head.HeadRow):
        vectors = torch.stack([row.features for row in rows])
        labels = torch.tensor([row.label for row in rows], device=vectors.device)
    else:
        pools = {id(row.pool): row.pool for row in rows}
        texts = [text for pool in pools.values() for text in pool.texts]
        vectors = _read(model, [text.ids for text in texts], progress)
        labels = torch.tensor([text.label for text in texts], device=vectors.device)
    found, places = means(vectors, labels)
    head = model.module.head
    with torch.no_grad():
        head.weight[places] = 2 * found
        head.bias[places] = -found.square().sum(-1)


def _read(model: LoadedModel, texts: Sequence[list[int]], progress: Progress) -> Tensor:
    out = torch.empty(len(texts), model.module.width, device=model.device)
    done = 0
    for places in order_by_length([len(ids) for ids in texts], _READ_TOKENS):
        batch = pad([texts[place] for place in places], model.tokenizer.pad_token_id or 0)
        with torch.no_grad():
            found = model.module.pooled(batch.ids.to(model.device), batch.attention_mask.to(model.device))
        out[torch.tensor(places, device=model.device)] = found
        done += len(places)
        progress("prototypes", done, len(texts))
    return out
