"""Odds-ratio preference optimisation: supervised fine-tuning on the chosen answer, and its odds against the rejected one; no reference.

Hong, Lee and Thorne 2024, "ORPO: Monolithic Preference Optimization without Reference Model". With P(y | x) the geometric mean of the
probabilities of an answer's tokens (equation 2) and odds = P / (1 - P) (equation 3), the loss of a pair is (equations 6 and 7)

    -log P(chosen | x)  -  beta log sigmoid(log odds(chosen) - log odds(rejected))

The first term is over the answer's tokens, as the paper writes it; some implementations count the prompt's too.
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
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.objectives import _pairs
from luthier.objectives._log_probs import answer_log_probs
from luthier.objectives._loss import Loss
from luthier.objectives._pairs import KINDS, PairBatch, PairRow
from luthier.objectives._rows import Limits

__all__ = ["KINDS"]

ARCHITECTURES = ("decoder", "encoder-decoder")
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
RATE_FACTOR = 0.4
"""Of a method's learning rate: 8e-6 (Hong et al. 2024) where 2e-5 is usual for supervised fine-tuning of all weights."""
LOSS_ONLY = ("beta",)


class Config(EntryConfig):
    """``beta``: weight of the odds-ratio term (the paper's lambda)."""

    beta: float = Field(0.1, ge=0)


def prepare(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits
) -> list[PairRow]:
    """Tokenise. Raises UnsupportedError for other kinds or an encoder, DataError for pairs that cannot teach anything or are too long."""
    return _pairs.pairs(dataset, model, limits, "orpo")


def collate(rows: Sequence[PairRow], model: LoadedModel) -> PairBatch:
    """One batch of ``prepare``'s rows."""
    return _pairs.collate(rows, model)


def loss(model: LoadedModel, batch: PairBatch, config: Config) -> Loss:
    """Mean over the pairs. Metrics: ``accuracy`` (the chosen answer is the likelier one a token; a tie counts half), ``margin`` of the log
    odds, and the two terms."""
    means = answer_log_probs(model, batch.rows).view(-1, 2) / batch.sizes
    odds = means - log1mexp(means)
    margins = odds[:, 0] - odds[:, 1]
    said, ratio = -means[:, 0].mean(), -F.logsigmoid(margins).mean()
    metrics = {
        "accuracy": _pairs.share_right(margins),
        "margin": float(margins.detach().mean()),
        "likelihood_loss": float(said.detach()),
        "odds_loss": float(ratio.detach()),
    }
    return Loss(said + config.beta * ratio, len(means), metrics)


def log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp(values)) for values below 0, exact near 0 and far from it (Mächler 2012); a value of 0 is taken as just below."""
    values = values.clamp(max=-torch.finfo(values.dtype).eps)
    near = values > -0.6931472
    inner = torch.where(near, values, torch.full_like(values, -1.0))  # each branch sees only values that it can take
    outer = torch.where(near, torch.full_like(values, -1.0), values)
    return torch.where(near, torch.log(-torch.expm1(inner)), torch.log1p(-torch.exp(outer)))
