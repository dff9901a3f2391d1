"""An initialisation near the solutions of many tasks (Reptile; Nichol, Achiam and Schulman 2018, algorithm 1).

    theta <- theta + epsilon * mean over episodes of (theta_tilde - theta)

theta_tilde is theta after ``inner_steps`` steps of gradient descent on an episode. As the authors suggest (section 3), (theta - theta_tilde) / inner_rate is given to
the optimizer as the gradient, so that its rate is ``train.learning_rate``; plain gradient descent at rate epsilon * inner_rate would be the line above to the letter.
No gradient leads through the inner steps: it costs the memory of one of them. theta is what the method trains; each episode begins with a new head. The
result has no head: tune it on the new task's examples.
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
from luthier.objectives import _episodes
from luthier.objectives._adapt import (
    Inner,
    Learner,
    adapt,
    adapting,
    learned,
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
    """An episode has ``ways`` labels with ``shots`` examples to learn from; ``queries`` of each are only asked, to tell how well that worked. ``episodes`` make an
    epoch, and ``train.batch_size`` counts episodes. ``inner_steps`` steps of gradient descent at ``inner_rate``, the head's at ``head_rate``."""

    ways: int = Field(5, ge=2)
    shots: int = Field(5, ge=1)
    queries: int = Field(5, ge=1)
    episodes: int = Field(100, ge=1)
    inner_steps: int = Field(10, ge=1)
    inner_rate: float = Field(0.1, gt=0)
    head_rate: float = Field(1.0, gt=0)


def heads(model: LoadedModel, config: Config) -> None:
    """Every episode has a head of its own, and its labels are only for practice: the result knows none."""
    without_labels(model)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Episodes. Raises DataError for too few labels or examples, UnsupportedError where nothing of the encoder is trained."""
    return practice(dataset, model, config, limits, "reptile")


def collate(rows: Sequence[Any], model: LoadedModel) -> list[_episodes.Episode]:
    """Draw the episodes."""
    return _episodes.collate(rows, model)


def loss(model: LoadedModel, batch: Sequence[_episodes.Episode], config: Config) -> Loss:
    """Mean cross-entropy of the queries after the inner steps, with (theta - theta_tilde) / inner_rate, a mean over the episodes, as its gradient; metric
    ``accuracy``."""
    inner = Inner(config.inner_steps, config.inner_rate, config.head_rate)
    own, learner = learned(model), Learner(model.module)
    pulls: list[Tensor] = []
    wrong, hits, count = 0.0, 0, 0
    for episode in batch:
        with adapting(exact=False):
            state = _adapted(
                learner, new_state(model, episode, linked=False), outside_inference(episode.support), inner
            )
        with torch.no_grad():
            scores = logits(learner, state, episode.query)
        wrong += float(F.cross_entropy(scores, episode.query.labels, reduction="sum"))
        hits += int((scores.argmax(-1) == episode.query.labels).sum())
        count += len(episode.query.labels)
        if torch.is_grad_enabled():
            pulls += [(each.float() * _away(each, state[name], config.inner_rate)).sum() for name, each in own.items()]
    value = torch.tensor(wrong / count, device=model.device)
    if pulls:
        pull = torch.stack(pulls).sum() / len(batch)
        value = value + (pull - pull.detach())
    return Loss(value, count, {"accuracy": hits / count})


def _adapted(learner: Learner, state: Mapping[str, Tensor], support: _episodes.Part, inner: Inner) -> dict[str, Tensor]:
    """Step after step, each forgotten when it is made."""
    found = dict(state)
    for _ in range(inner.steps):
        one = adapt(learner, found, support, Inner(1, inner.rate, inner.head_rate))
        found = {name: each.detach().requires_grad_() for name, each in one.items()}
    return {name: each.detach() for name, each in found.items()}


def _away(own: Tensor, adapted: Tensor, rate: float) -> Tensor:
    return (own.detach().float() - adapted) / rate
