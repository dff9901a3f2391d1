"""Embedders: texts that belong together come to lie near one another, by the cosine of their vectors.

Pairs: each anchor picks its positive among the positives and negatives of all rows of the optimizer step (InfoNCE, van den Oord et al.
2018, https://arxiv.org/abs/1807.03748, as "multiple negatives ranking" in Henderson et al. 2017, https://arxiv.org/abs/1705.00652). For
row i, s the scale and C_i the candidates of the step,

    l_i = -log( exp(s cos(a_i, p_i)) / sum_{c in C_i} exp(s cos(a_i, c)) )

C_i has each text once, and none that the data says is right for the same anchor, nor the anchor itself. ``train.batch_size`` decides
how many negatives there are; ``train.max_tokens_per_batch`` changes memory and time, not the loss.

Scored texts (kind similarity): CoSENT (Su 2022, https://kexue.fm/archives/8847), over all rows i, j of the step,

    log( 1 + sum_{y_i > y_j} exp(s (cos_j - cos_i)) )

which asks for the right order of the similarities and takes scores in any unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError
from luthier.core.task import PromptTemplate
from luthier.models.embed import pooled_within, text_limit
from luthier.models.load import LoadedModel
from luthier.objectives._embedded import Text, Texts, longest
from luthier.objectives._known import known_positives
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind

KINDS = ("pairs", "similarity")
ARCHITECTURES = ("encoder", "decoder", "encoder-decoder")
DEFAULT_FOR = ("pairs", "similarity")
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
LOSS_ONLY = ("scale", "symmetric")
WHOLE_STEPS = True


class Config(EntryConfig):
    """``scale`` s, the inverse of the temperature. ``symmetric`` (pairs only): the mean of that loss and of the one in which each positive picks
    its anchor among the anchors of the step.
    """

    scale: float = Field(20.0, gt=0)
    symmetric: bool = False


@dataclass(slots=True)
class Row:
    """An anchor and its candidates, the positive first. ``known``: numbers of texts that are no negatives of this anchor. ``score``: how
    alike anchor and positive are, where the data says it."""

    anchor: Text
    candidates: tuple[Text, ...]
    known: frozenset[int]
    score: float | None
    source: str

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return len(self.anchor.ids) + sum(len(text.ids) for text in self.candidates)

    @property
    def weight(self) -> int:
        """One example."""
        return 1


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of a step. ``texts`` are token ids, the ``anchors`` first; row i's anchor is text ``anchor[i]``, its positive candidate
    ``positive[i]``; ``allowed`` (rows, candidates) and ``allowed_back`` (rows, anchors) say what competes. ``scores`` (rows) or None."""

    texts: list[list[int]]
    anchors: int
    anchor: Tensor
    positive: Tensor
    allowed: Tensor
    allowed_back: Tensor
    scores: Tensor | None
    max_tokens: int


def heads(model: LoadedModel, config: Config) -> None:
    """An embedder has none: that of an earlier tuning is taken off."""
    model.put_head(None)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise, each different text once; an anchor with several positives becomes as many rows.

    Raises UnsupportedError for another kind, DataError for overlong texts, for a text that is both positive and negative of an anchor, and
    where nothing can be told apart.
    """
    require_kind(dataset, KINDS, "similarity")
    if dataset.kind == "similarity" and "symmetric" in config.model_fields_set:
        raise InputError("objective.symmetric is for pairs; scored texts have no sides. Leave it out")
    texts = Texts(model, dataset.examples)
    known = _known(dataset, texts)
    most = text_limit(model)
    rows = []
    for example in dataset.examples:
        own = [texts[text] for text in (example.text, *example.positives, *example.negatives)]
        if limits.admit(example, longest(own, most, limits), partial(texts.cut, own, most)):
            anchor, right, wrong = own[0], own[1 : 1 + len(example.positives)], own[1 + len(example.positives) :]
            kept = known.get(anchor.number, frozenset())
            source = example.source or example.id
            rows += [Row(anchor, (positive, *wrong), kept, example.score, source) for positive in right]
    limits.check()
    _require_contrast(dataset, rows)
    return rows


def _known(dataset: Dataset, texts: Texts) -> dict[int, frozenset[int]]:
    """By numbers, anchor -> what may not be its negative."""
    if dataset.kind != "pairs":
        return {}
    found = known_positives(dataset)
    return {texts[anchor].number: frozenset(texts[text].number for text in right) for anchor, right in found.items()}


def _require_contrast(dataset: Dataset, rows: Sequence[Row]) -> None:
    if dataset.kind == "similarity":
        if rows and len({row.score for row in rows}) == 1:
            raise DataError(
                f"{dataset.name}: every row has the score {rows[0].score:g}; there is no order to learn",
                hint="texts that all belong together are pairs: name the fields anchor and positive",
            )
    elif rows and len({text.number for row in rows for text in row.candidates}) == 1:
        raise DataError(
            f"{dataset.name}: all rows have the same positive and no negative; there is nothing to tell apart"
        )


def collate(rows: Sequence[Any], model: LoadedModel, max_tokens: int) -> Batch:
    """The rows of a whole step; each different anchor and each different candidate once."""
    anchors = {row.anchor.number: row.anchor.ids for row in rows}
    others = {text.number: text.ids for row in rows for text in row.candidates}
    anchor_at, other_at = ({number: at for at, number in enumerate(part)} for part in (anchors, others))
    allowed = torch.ones(len(rows), len(others), dtype=torch.bool)
    allowed_back = torch.ones(len(rows), len(anchors), dtype=torch.bool)
    with_positive: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        with_positive.setdefault(row.candidates[0].number, []).append(at)
    for at, row in enumerate(rows):
        allowed[at, [other_at[number] for number in row.known if number in other_at]] = False
        allowed[at, other_at[row.candidates[0].number]] = True
        for number in row.known:
            allowed_back[with_positive.get(number, []), anchor_at[row.anchor.number]] = False
    own = torch.tensor([anchor_at[row.anchor.number] for row in rows])
    allowed_back[torch.arange(len(rows)), own] = True
    positive = torch.tensor([other_at[row.candidates[0].number] for row in rows])
    scored = rows[0].score is not None
    scores = torch.tensor([row.score for row in rows], dtype=torch.float64, device=model.device) if scored else None
    where = model.device
    return Batch(
        [*anchors.values(), *others.values()],
        len(anchors),
        own.to(where),
        positive.to(where),
        allowed.to(where),
        allowed_back.to(where),
        scores,
        max_tokens,
    )


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean over the rows of the step. Metric of pairs: ``accuracy``, how often the positive is nearest; of scored texts: ``ordered``, the
    share of pairs of rows whose similarities are in the order of their scores."""
    vectors = F.normalize(pooled_within(model, batch.texts, batch.max_tokens), dim=-1)
    anchors, others = vectors[: batch.anchors], vectors[batch.anchors :]
    if batch.scores is not None:
        return _cosent((anchors[batch.anchor] * others[batch.positive]).sum(-1), batch.scores, config.scale)
    similarity = config.scale * (anchors[batch.anchor] @ others.t())
    similarity = similarity.masked_fill(~batch.allowed, -torch.inf)
    value = F.cross_entropy(similarity, batch.positive)
    if config.symmetric:
        back = config.scale * (others[batch.positive] @ anchors.t())
        value = (value + F.cross_entropy(back.masked_fill(~batch.allowed_back, -torch.inf), batch.anchor)) / 2
    accuracy = (similarity.detach().argmax(-1) == batch.positive).float().mean()
    return Loss(value, len(batch.anchor), {"accuracy": float(accuracy)})


def _cosent(cosines: Tensor, scores: Tensor, scale: float) -> Loss:
    """cosines and scores (rows)."""
    better = scores[:, None] > scores[None, :]
    gaps = cosines[None, :] - cosines[:, None]  # [i, j] = cos_j - cos_i
    value = torch.cat([cosines.new_zeros(1), scale * gaps[better]]).logsumexp(0)
    ordered = float((gaps.detach()[better] < 0).float().mean()) if bool(better.any()) else 1.0
    return Loss(value, len(cosines), {"ordered": ordered})
