"""The cross-entropy of a language model at given places, whatever the objective that chose them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.models.decode import causal_model, logits
from luthier.models.load import LoadedModel
from luthier.objectives._loss import Loss, linear_cross_entropy


def token_loss(model: LoadedModel, hidden: Tensor, targets: Tensor) -> Loss:
    """Mean cross-entropy, in nats, of ``targets`` (places) given the last ``hidden`` states (places, width) of a decoder."""
    head = causal_model(model.module).get_output_embeddings()
    if type(head) is torch.nn.Linear and _is_plain(model):
        total = linear_cross_entropy(hidden, head.weight, head.bias, targets)
    else:
        total = F.cross_entropy(logits(model.module, hidden).float(), targets, reduction="sum")
    return Loss(total / len(targets), len(targets))


def _is_plain(model: LoadedModel) -> bool:
    """Whether the logits are the head's output itself, without what some architectures do after it."""
    module = causal_model(model.module)
    config = module.config.get_text_config()
    after = ("logits_scaling", "logit_scale", "final_logit_softcapping")
    return getattr(module, "final_logits_bias", None) is None and all(getattr(config, n, None) is None for n in after)
