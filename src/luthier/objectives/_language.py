"""The cross-entropy of a language model at given places, whatever the objective that chose them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from luthier.models.decode import logits, plain_head
from luthier.models.load import LoadedModel
from luthier.objectives._loss import Loss, linear_cross_entropy


def states_at(hidden: Tensor, places: Tensor) -> Tensor:
    """Of hidden states (rows, length, width) those at flattened ``places``, (places, width)."""
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, places)


def token_loss(model: LoadedModel, hidden: Tensor, targets: Tensor) -> Loss:
    """Mean cross-entropy, in nats, of ``targets`` (places) given the last ``hidden`` states (places, width) of a decoder."""
    head = plain_head(model.module)
    if head is not None:
        total = linear_cross_entropy(hidden, head.weight, head.bias, targets)
    else:
        total = F.cross_entropy(logits(model.module, hidden).float(), targets, reduction="sum")
    return Loss(total / len(targets), len(targets))
