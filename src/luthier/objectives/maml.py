"""An initialisation from which a few steps on a few examples are enough (MAML; Finn, Abbeel and Levine 2017, equation 1).

    minimise over theta:  sum over episodes of  L_query( theta - rate * gradient of L_support(theta) )

with as many inner steps as ``inner_steps``. ``first_order`` takes the inner gradients as constants (the paper's section 5.2). theta is what the method
trains; each episode begins with a new head, as an ordinary tuning on a new task does. The result has no head: tune it on the new task's examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.objectives import _episodes
from luthier.objectives._adapt import (
    Inner,
    Learner,
    adapt,
    adapting,
    logits,
    new_state,
    outside_inference,
    practice,
    without_labels,
)
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits

KINDS = _episodes.KINDS
ARCHITECTURES = ("encoder",)
DEFAULT_FOR = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"encoder": {"batch_size": 4}}


class Config(EntryConfig):
    """An episode has ``ways`` labels with ``shots`` examples to learn from and ``queries`` to be asked; ``episodes`` make an epoch, and ``train.batch_size``
    counts episodes. ``inner_steps`` steps of gradient descent at ``inner_rate``, the head's at ``head_rate``. ``first_order``: without gradients of gradients,
    which take ``inner_steps`` times the memory."""

    ways: int = Field(5, ge=2)
    shots: int = Field(5, ge=1)
    queries: int = Field(5, ge=1)
    episodes: int = Field(100, ge=1)
    inner_steps: int = Field(5, ge=1)
    inner_rate: float = Field(0.1, gt=0)
    head_rate: float = Field(1.0, gt=0)
    first_order: bool = True


def heads(model: LoadedModel, config: Config) -> None:
    """Every episode has a head of its own, and its labels are only for practice: the result knows none."""
    without_labels(model)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Episodes. Raises DataError for too few labels or examples, UnsupportedError where nothing of the encoder is trained."""
    return practice(dataset, model, config, limits, "maml")


def collate(rows: Sequence[Any], model: LoadedModel) -> list[_episodes.Episode]:
    """Draw the episodes."""
    return _episodes.collate(rows, model)


def loss(model: LoadedModel, batch: Sequence[_episodes.Episode], config: Config) -> Loss:
    """Mean over the queries of all episodes after the inner steps; metric ``accuracy``."""
    exact = not config.first_order and torch.is_grad_enabled()
    inner = Inner(config.inner_steps, config.inner_rate, config.head_rate, exact)
    learns, learner = torch.is_grad_enabled(), Learner(model.module)
    total, hits, count = torch.zeros((), device=model.device), 0, 0
    for episode in batch:
        with adapting(exact=exact):
            state = new_state(model, episode, linked=learns)
            state = adapt(learner, state, outside_inference(episode.support), inner)
            query = outside_inference(episode.query)
            scores = logits(learner, state, query)
            wrong = F.cross_entropy(scores, query.labels, reduction="sum")
        total = total + (wrong if learns else wrong.detach())
        hits += int((scores.detach().argmax(-1) == query.labels).sum())
        count += len(query.labels)
    return Loss(total / count, count, {"accuracy": hits / count})
