"""A learner's inner loop: some steps of gradient descent on the examples of an episode, with a new head for its labels.

The encoder's weights are not changed: the adapted ones are tensors beside them, in fp32, from which gradients lead back to the encoder's own (through all inner
steps, or as if their gradients were constants). The head begins as that of a new tuning does, near zero, and is thrown away: a new task has labels of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from luthier.core.dataset import Dataset
from luthier.core.errors import UnsupportedError
from luthier.models.fast import plain_forwards
from luthier.models.load import LoadedModel
from luthier.objectives._episodes import Episode, Part, Shape, prepare, require_encoder
from luthier.objectives._rows import Limits

_HEAD = ("weight", "bias")


class Learner(nn.Module):
    """An encoder with the head that it is given: logits (texts, labels) from ids and mask (texts, length), weight (labels, width) and bias (labels)."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Logits, fp32."""
        return F.linear(self.encoder.dropout(self.encoder.pooled(ids, mask)), weight, bias)


@dataclass(frozen=True)
class Inner:
    """``steps`` of gradient descent at ``rate``, the head's at ``head_rate``. ``exact``: gradients of gradients are kept."""

    steps: int
    rate: float
    head_rate: float
    exact: bool = False


class Practice(Protocol):
    """The options that say which episodes an inner loop practises on."""

    @property
    def ways(self) -> int:
        """Labels of an episode."""

    @property
    def shots(self) -> int:
        """Examples of each to learn from."""

    @property
    def queries(self) -> int:
        """Examples of each to be asked."""

    @property
    def episodes(self) -> int:
        """Episodes of an epoch."""


def without_labels(model: LoadedModel) -> None:
    """Every episode has a head of its own, and its labels are only for practice: the result knows none."""
    model.put_head(None)
    model.labels = ()


def practice(dataset: Dataset, model: LoadedModel, config: Practice, limits: Limits, objective: str) -> list[Any]:
    """Episodes. Raises DataError for too few labels or examples, UnsupportedError where nothing of the encoder is trained."""
    require_encoder(model, objective)
    learned(model)
    shape = Shape(config.ways, config.shots, config.queries, config.episodes)
    return list(prepare(dataset, model, shape, limits, objective))


def learned(model: LoadedModel) -> dict[str, nn.Parameter]:
    """What an inner loop adapts beside the head: the trained parameters. Raises UnsupportedError where there are none."""
    found = {f"encoder.{name}": each for name, each in model.module.named_parameters() if each.requires_grad}
    if not found:
        raise UnsupportedError(
            "nothing of the encoder is trained, so that there is no initialisation to learn",
            hint="method: lora or full",
        )
    return found


def new_state(model: LoadedModel, episode: Episode, *, linked: bool) -> dict[str, Tensor]:
    """The adapted weights before the first step, by the names of ``learned``, with ``weight`` and ``bias`` of a head. ``linked``: gradients lead back."""
    own = {
        name: each.float() if linked else each.detach().float().requires_grad_()
        for name, each in learned(model).items()
    }
    ways, width = int(episode.support.labels.max()) + 1, model.module.width
    drawn = torch.randn(ways, width, generator=torch.Generator().manual_seed(episode.seed)) * 0.02
    head = {"weight": drawn.to(model.device), "bias": torch.zeros(ways, device=model.device)}
    return own | {name: tensor.requires_grad_() for name, tensor in head.items()}


def logits(learner: Learner, state: Mapping[str, Tensor], part: Part) -> Tensor:
    """Logits of a part's texts with the adapted weights."""
    named = dict(learner.named_parameters())
    swapped = {name: tensor.to(named[name].dtype) for name, tensor in state.items() if name not in _HEAD}
    out: Tensor = functional_call(learner, swapped, (part.ids, part.mask, state["weight"], state["bias"]))
    return out


def adapt(learner: Learner, state: Mapping[str, Tensor], support: Part, inner: Inner) -> dict[str, Tensor]:
    """The state after the inner steps, each on all of ``support``: w - rate * gradient of the mean cross-entropy."""
    found = dict(state)
    for _ in range(inner.steps):
        wrong = F.cross_entropy(logits(learner, found, support), support.labels)
        slopes = torch.autograd.grad(wrong, list(found.values()), create_graph=inner.exact, allow_unused=True)
        found = {
            name: each if slope is None else each - (inner.head_rate if name in _HEAD else inner.rate) * slope
            for (name, each), slope in zip(found.items(), slopes, strict=True)
        }
    return found


@contextmanager
def adapting(*, exact: bool) -> Iterator[None]:
    """Gradients also while validating; with ``exact`` only kernels whose gradients have gradients."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if exact:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(plain_forwards())
        yield


def outside_inference(part: Part) -> Part:
    """Tensors that gradients may be computed from, also while validating. Call it within ``adapting``."""
    return Part(part.ids.clone(), part.mask.clone(), part.labels.clone())
