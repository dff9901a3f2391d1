"""Direct preference optimisation: the chosen answer gains on the rejected one, against what the untrained model says of both.

Rafailov et al. 2023, "Direct Preference Optimization", equation 7. With the log-ratio r(y) = log p(y | x) - log p_ref(y | x), summed over the
tokens of an answer, and h = r(chosen) - r(rejected), the loss of a pair is

    sigmoid   -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)   (e: label_smoothing; Mitchell 2023, "A note on DPO with noisy preferences")
    ipo       (h - 1 / (2 beta))^2                                    (Azar et al. 2024, equation 17)
    hinge     max(0, 1 - beta h)                                      (Zhao et al. 2023, SLiC-HF, on log-ratios)

The reference log-probabilities are computed once, before the first step. A prompt goes through the model once, both answers as branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.run import Progress
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.objectives import _pairs
from luthier.objectives._log_probs import answer_log_probs
from luthier.objectives._loss import Loss
from luthier.objectives._pairs import KINDS, PairBatch, PairRow
from luthier.objectives._rows import Limits

__all__ = ["KINDS"]

ARCHITECTURES = ("decoder", "encoder-decoder")
DEFAULT_FOR = ("preference",)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
RATE_FACTOR = 0.2
"""Of a method's learning rate. With LoRA on smollm2-135m a twentieth hardly moved, this reached 0.635 (docs/rewards.md); large models
trained whole take less: 1e-6 in Rafailov et al. 2023, appendix B."""
LOSS_ONLY = ("beta", "loss", "label_smoothing", "length_normalised")


class Config(EntryConfig):
    """``beta``: how dear a departure from the reference is; the larger, the nearer it stays. ``loss``: sigmoid, ipo or hinge.

    ``label_smoothing`` (sigmoid only): how often the preference is taken to be the wrong way round. ``length_normalised`` divides each
    log-ratio by the tokens of its answer (Lambert et al. 2024, Tülu 3, equation 6; SimPO does it without a reference), so that length gains
    nothing; ``beta`` is then larger, 2 to 10. Left out: no, but for ipo yes, as its authors compute it.
    """

    beta: float = Field(0.1, gt=0)
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    length_normalised: bool | None = None

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing is for loss sigmoid; got loss {self.loss}")
        return self

    @property
    def normalises(self) -> bool:
        """Whether log-ratios are means over tokens."""
        return self.loss == "ipo" if self.length_normalised is None else self.length_normalised


def prepare(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits
) -> list[PairRow]:
    """Tokenise. Raises UnsupportedError for other kinds or an encoder, DataError for pairs that cannot teach anything or are too long."""
    return _pairs.pairs(dataset, model, limits, "dpo")


def before(model: LoadedModel, rows: Sequence[PairRow], config: Config, progress: Progress) -> None:
    """Put the reference log-probabilities on the rows."""
    found = _pairs.reference_log_probs(model, [row.scored for row in rows], [row.length for row in rows], progress)
    for row, (chosen, rejected) in zip(rows, found, strict=True):
        row.reference = (chosen, rejected)


def collate(rows: Sequence[PairRow], model: LoadedModel) -> PairBatch:
    """One batch of ``prepare``'s rows."""
    return _pairs.collate(rows, model)


def loss(model: LoadedModel, batch: PairBatch, config: Config) -> Loss:
    """Mean over the pairs. Metrics: ``accuracy`` (the chosen answer's reward is the higher one; a tie counts half), ``margin`` between the
    rewards, and both rewards, beta times what the loss compares."""
    assert batch.reference is not None  # before() was called
    gains = answer_log_probs(model, batch.rows).view(-1, 2) - batch.reference
    if config.normalises:
        gains = gains / batch.sizes
    rewards = config.beta * gains.detach()
    margins = rewards[:, 0] - rewards[:, 1]
    metrics = {
        "accuracy": _pairs.share_right(margins),
        "margin": float(margins.mean()),
        "reward_chosen": float(rewards[:, 0].mean()),
        "reward_rejected": float(rewards[:, 1].mean()),
    }
    return Loss(_of(gains[:, 0] - gains[:, 1], config).mean(), len(gains), metrics)


def _of(h: Tensor, config: Config) -> Tensor:
    """The loss of each pair."""
    if config.loss == "ipo":
        return (h - 1 / (2 * config.beta)) ** 2
    if config.loss == "hinge":
        return torch.relu(1 - config.beta * h)
    noise = config.label_smoothing
    return -(1 - noise) * F.logsigmoid(config.beta * h) - noise * F.logsigmoid(-config.beta * h)
