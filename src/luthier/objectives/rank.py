"""Rerankers: a cross-encoder learns to score documents that belong to a query above those that do not.

The encoder reads [query; document], one linear output on the pooled vector is the score s (Nogueira and Cho 2019,
https://arxiv.org/abs/1901.04085). Of a query's documents, y = 1 marks the positives and 0 the negatives:

- listwise, ListNet with the probability of the first place (Cao et al. 2007): -sum_j y_j / sum(y) log softmax(s)_j
- pairwise, RankNet (Burges et al. 2005): log(1 + exp(s_j - s_i)), the mean over i with y_i = 1 and j with y_j = 0
- pointwise: the binary cross-entropy of sigmoid(s_j) and y_j, the mean over documents; scored texts (kind similarity) have their score as y
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.models.encoder import new_head
from luthier.models.load import LoadedModel
from luthier.models.rerank import PairIds, is_reranker, pair_features, pair_ids
from luthier.objectives._known import known_positives
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind

KINDS = ("pairs", "similarity")
ARCHITECTURES = ("encoder",)
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}

_FORWARD_TOKENS = 4096
_FEATURE_TOKENS = 8192
_SHOWN = 5


class Config(EntryConfig):
    """``loss``: listwise, pairwise or pointwise; left out, listwise for pairs and pointwise for scored texts, which take no other.

    ``random_negatives``: so many documents of other rows join the negatives of each row, drawn once, by the row's content.
    """

    loss: Literal["listwise", "pairwise", "pointwise"] | None = None
    random_negatives: int = Field(0, ge=0)


@dataclass(slots=True)
class Row:
    """A query's documents, each tokenised with it, and their y; ``features`` are the pooled vectors when nothing before the head is trained.
    ``weight``: documents, ordered pairs or lists, whatever the loss is a mean over."""

    pairs: list[PairIds]
    wanted: list[float]
    weight: int
    how: str
    source: str
    features: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens that it costs; with features nearly nothing."""
        return len(self.pairs) if self.features is not None else sum(len(pair.ids) for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents of several queries: pairs, or their features (documents, width); ``wanted`` (queries, most) is y and ``real`` says
    which places are documents, in whose order pairs and features come."""

    pairs: list[PairIds]
    features: Tensor | None
    wanted: Tensor
    real: Tensor
    how: str


def heads(model: LoadedModel, config: Config) -> None:
    """One output on the encoder, unless it has that from an earlier tuning. Raises UnsupportedError for another architecture."""
    if model.architecture != "encoder":
        raise UnsupportedError(
            f"objective rank needs an encoder; {model.record.name} is of architecture {model.architecture}",
            hint="for example model.base=minilm-l6",
        )
    if not is_reranker(model):
        model.put_head(new_head(model.module.width, 1).to(model.device))


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise each query with each of its documents; compute the features once when the body is frozen.

    Raises UnsupportedError for another kind, InputError for settings that do not fit the kind, DataError for rows that teach no order
    or are too long (``truncate`` cuts documents, never the query).
    """
    require_kind(dataset, KINDS, "rank")
    how = _how(dataset, config)
    rows = []
    for example, documents, wanted in _documents(dataset, config):
        asked = [(example.text, document) for document in documents]
        positives = sum(y == 1 for y in wanted)
        weight = {"listwise": 1, "pairwise": positives * (len(wanted) - positives), "pointwise": len(wanted)}[how]
        row = Row(pair_ids(model, asked), wanted, weight, how, example.source or example.id)
        longest = max(len(pair.ids) for pair in row.pairs)
        if limits.admit(example, longest, partial(_shorten, row, model, asked, limits.context_length)):
            rows.append(row)
    limits.check()
    if model.module.body_is_frozen:
        for row in rows:
            with torch.no_grad():
                row.features = pair_features(model, row.pairs, _FEATURE_TOKENS)
    return rows


def _shorten(row: Row, model: LoadedModel, asked: Sequence[tuple[str, str]], length: int) -> bool:
    row.pairs = pair_ids(model, asked, length)
    return all(pair.document and len(pair.ids) <= length for pair in row.pairs)


def _how(dataset: Dataset, config: Config) -> str:
    """The loss that is used. Raises InputError where the settings do not fit the data."""
    if dataset.kind == "pairs":
        return config.loss or "listwise"
    if config.loss not in (None, "pointwise"):
        raise InputError(f"objective.loss of scored texts must be pointwise: they are no lists; got {config.loss}")
    if "random_negatives" in config.model_fields_set:
        raise InputError(
            "objective.random_negatives is for pairs; scored texts say themselves what is alike. Leave it out"
        )
    return "pointwise"


def _documents(dataset: Dataset, config: Config) -> list[tuple[Example, list[str], list[float]]]:
    """Each row with its documents, positives first, and their y. Raises DataError for data that teaches no order."""
    if dataset.kind == "similarity":
        return [(e, list(e.positives), [_probability(e)]) for e in dataset.examples]
    known = known_positives(dataset)
    pool = list(dict.fromkeys(text for e in dataset.examples for text in (*e.positives, *e.negatives)))
    found, bare = [], []
    for example in dataset.examples:
        negatives = list(example.negatives)
        if config.random_negatives:
            negatives += _drawn(example, pool, known[example.text] | {*negatives}, config.random_negatives)
        if not negatives:
            bare.append(example.source or example.id)
        wanted = [1.0] * len(example.positives) + [0.0] * len(negatives)
        found.append((example, [*example.positives, *negatives], wanted))
    if bare and (config.loss != "pointwise" or len(bare) == len(found)):
        more = f" and {len(bare) - _SHOWN} more" if len(bare) > _SHOWN else ""
        raise DataError(
            f"{dataset.name}: rows without a negative teach no order: {', '.join(bare[:_SHOWN])}{more}",
            hint="give them negatives, or let documents of other rows be theirs: objective.random_negatives=4",
        )
    return found


def _drawn(example: Example, pool: Sequence[str], not_these: set[str], count: int) -> list[str]:
    """Documents of other rows: the same ones for the same row among the same documents."""
    taken = random.Random(example.id).sample(pool, min(len(pool), count + len(not_these)))
    return [text for text in taken if text not in not_these][:count]


def _probability(example: Example) -> float:
    if example.score is None or not 0 <= example.score <= 1:
        raise DataError(
            f"{example.source or example.id}: the score must be between 0 and 1 to be a probability; got {example.score}",
            hint="divide the scores by the highest possible one, or tune an embedder: objective: similarity",
        )
    return example.score


def collate(rows: Sequence[Any], model: LoadedModel) -> Batch:
    """One batch of ``prepare``'s rows."""
    most = max(len(row.wanted) for row in rows)
    wanted = torch.zeros(len(rows), most)
    real = torch.zeros(len(rows), most, dtype=torch.bool)
    for at, row in enumerate(rows):
        wanted[at, : len(row.wanted)] = torch.tensor(row.wanted)
        real[at, : len(row.wanted)] = True
    features = [row.features for row in rows if row.features is not None]
    return Batch(
        [pair for row in rows for pair in row.pairs],
        torch.cat(features) if features else None,
        wanted.to(model.device),
        real.to(model.device),
        rows[0].how,
    )


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean over lists, ordered pairs or documents; metric ``accuracy``: how often a positive is first, the pair is in order, or the score
    is on the right side of 0."""
    vectors = batch.features if batch.features is not None else pair_features(model, batch.pairs, _FORWARD_TOKENS)
    flat = model.module.classify(vectors)[:, 0]
    found = torch.full(batch.wanted.shape, -torch.inf, device=flat.device).masked_scatter(batch.real, flat)
    if batch.how == "listwise":
        return _listwise(found, batch.wanted, batch.real)
    if batch.how == "pairwise":
        return _pairwise(found, batch.wanted, batch.real)
    wanted = batch.wanted[batch.real]
    right = float(((flat.detach() > 0) == (wanted > 0.5)).float().mean())
    return Loss(F.binary_cross_entropy_with_logits(flat, wanted), len(flat), {"accuracy": right})


def _listwise(found: Tensor, wanted: Tensor, real: Tensor) -> Loss:
    shares = wanted / wanted.sum(1, keepdim=True)
    log_probs = found.log_softmax(1).masked_fill(~real, 0.0)
    first = wanted.gather(1, found.detach().argmax(1, keepdim=True))
    return Loss(-(shares * log_probs).sum(1).mean(), len(found), {"accuracy": float(first.mean())})


def _pairwise(found: Tensor, wanted: Tensor, real: Tensor) -> Loss:
    better = (wanted[:, :, None] == 1) & (wanted[:, None, :] == 0) & real[:, :, None] & real[:, None, :]
    query, good, bad = better.nonzero(as_tuple=True)
    gaps = found[query, good] - found[query, bad]
    return Loss(F.softplus(-gaps).mean(), len(gaps), {"accuracy": float((gaps.detach() > 0).float().mean())})
