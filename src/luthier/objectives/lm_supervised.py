"""Embedders that find what a language model can use: LM-supervised retrieval (RA-DIT, Lin et al. 2023, https://arxiv.org/abs/2310.01352,
section 2.4; REPLUG, Shi et al. 2023, https://arxiv.org/abs/2301.12652).

A row has a question x, candidates c_1 to c_n, and for each of them the log-likelihood that a language model gives to the right answer y when it
is shown that candidate (``lm_scores``; ``luthier kb tune --reader MODEL`` computes them). With s the cosine times ``scale``,

    p_R(c_i | x)      = exp(s(x, c_i)) / sum_j exp(s(x, c_j))
    p_LSR(c_i | x, y) = exp(p_LM(y | c_i, x) / tau) / sum_j exp(p_LM(y | c_j, x) / tau)

and the loss is KL(p_R || p_LSR), the mean over rows. ``target: likelihood`` has p_LM as written; ``log_likelihood`` puts log p_LM in its place,
which tells long answers apart, whose probabilities are all next to 0.
"""

from __future__ import annotations

import math
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
from luthier.core.errors import DataError
from luthier.core.task import PromptTemplate
from luthier.models.embed import pooled_within, text_limit
from luthier.models.load import LoadedModel
from luthier.objectives._embedded import Text, Texts, longest
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind

KINDS = ("pairs",)
ARCHITECTURES = ("encoder", "decoder", "encoder-decoder")
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
LOSS_ONLY = ("scale", "temperature", "target")
WHOLE_STEPS = True
SCORES = "lm_scores"
_SHOWN = 5


class Config(EntryConfig):
    """``scale`` of the cosines, ``temperature`` tau of the language model's; the paper's tau is 0.01, for likelihoods."""

    scale: float = Field(20.0, gt=0)
    temperature: float = Field(0.01, gt=0)
    target: Literal["likelihood", "log_likelihood"] = "likelihood"


@dataclass(slots=True)
class Row:
    """A question, its candidates, and the log-likelihood of the answer with each."""

    anchor: Text
    candidates: tuple[Text, ...]
    scores: tuple[float, ...]
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
    """``texts`` are token ids, each different one once. ``anchor`` (rows) and ``candidates`` (rows, most candidates) are places in it, -1 where
    a row has fewer; ``scores`` has the latter's shape."""

    texts: list[list[int]]
    anchor: Tensor
    candidates: Tensor
    scores: Tensor
    max_tokens: int


def heads(model: LoadedModel, config: Config) -> None:
    """An embedder has none: that of an earlier tuning is taken off."""
    model.put_head(None)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise. Raises UnsupportedError for another kind, DataError for overlong texts and for rows without a score for each candidate."""
    require_kind(dataset, KINDS, "lm_supervised")
    _require_scores(dataset)
    texts = Texts(model, dataset.examples)
    most = text_limit(model)
    rows = []
    for example in dataset.examples:
        own = [texts[text] for text in (example.text, *example.positives, *example.negatives)]
        if limits.admit(example, longest(own, most, limits), partial(texts.cut, own, most)):
            scores = tuple(float(score) for score in example.meta[SCORES])
            rows.append(Row(own[0], tuple(own[1:]), scores, example.source or example.id))
    limits.check()
    return rows


def collate(rows: Sequence[Any], model: LoadedModel, max_tokens: int) -> Batch:
    """Rows side by side."""
    every = {text.number: text.ids for row in rows for text in (row.anchor, *row.candidates)}
    at = {number: place for place, number in enumerate(every)}
    most = max(len(row.candidates) for row in rows)
    places = torch.full((len(rows), most), -1)
    scores = torch.zeros((len(rows), most))
    for number, row in enumerate(rows):
        places[number, : len(row.candidates)] = torch.tensor([at[text.number] for text in row.candidates])
        scores[number, : len(row.candidates)] = torch.tensor(row.scores)
    anchor = torch.tensor([at[row.anchor.number] for row in rows])
    where = model.device
    return Batch(list(every.values()), anchor.to(where), places.to(where), scores.to(where), max_tokens)


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean over rows. Metric ``agreement``: how often the nearest candidate is the one that helps the language model most."""
    vectors = F.normalize(pooled_within(model, batch.texts, batch.max_tokens), dim=-1)
    missing = batch.candidates < 0
    cosines = (vectors[batch.anchor][:, None, :] * vectors[batch.candidates.clamp(min=0)]).sum(-1)
    mine = (config.scale * cosines).masked_fill(missing, -torch.inf).log_softmax(-1)
    told = batch.scores if config.target == "log_likelihood" else batch.scores.exp()
    wanted = (told / config.temperature).masked_fill(missing, -torch.inf).log_softmax(-1)
    gaps = (mine - wanted).masked_fill(missing, 0.0)
    value = (mine.exp() * gaps).sum(-1).mean()
    same = mine.detach().argmax(-1) == wanted.argmax(-1)
    return Loss(value, len(batch.anchor), {"agreement": float(same.float().mean())})


def _require_scores(dataset: Dataset) -> None:
    bad = [each for each in dataset.examples if not _scored(each)]
    if bad:
        names = ", ".join(each.source or each.id for each in bad[:_SHOWN]) + (" …" if len(bad) > _SHOWN else "")
        raise DataError(
            f"{dataset.name}: {SCORES} must be a list with a log-likelihood (0 or less) for the positive and each negative, two at least ({names})",
            hint="luthier kb tune NAME --questions FILE --reader MODEL computes them",
        )


def _scored(example: Example) -> bool:
    scores = example.meta.get(SCORES)
    texts = len(example.positives) + len(example.negatives)
    if not isinstance(scores, list) or len(scores) != texts or texts < 2:
        return False
    return all(isinstance(each, int | float) and math.isfinite(each) and each <= 0 for each in scores)
