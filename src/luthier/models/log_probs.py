"""Log-probabilities of tokens from hidden states: only the logits that somebody reads, a slice at a time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from luthier.models.decode import causal_model, logits, plain_head

_LOGIT_BYTES = 48 * 2**20
"""fp32 logits held at once: small enough to stay near the caches, large enough for products at full speed."""


@torch.inference_mode()
def token_log_probs(
    module: Any, hidden: torch.Tensor, where: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(``tokens[i]``) at ``hidden[where[i]]``, fp32, and whether that token is the likeliest one (the first, when several are).

    ``where`` must not decrease. In 16-bit models the logits that are read are computed again in fp32 (the others only make up the
    normaliser): rounded to 8 bits, those of like answers would often tie.
    """
    head = causal_model(module).get_output_embeddings()
    plain = plain_head(module)
    step = max(16, _LOGIT_BYTES // 4 // head.weight.shape[0])
    values = torch.empty(len(tokens), device=hidden.device)
    best = torch.empty(len(tokens), dtype=torch.bool, device=hidden.device)
    bounds = torch.searchsorted(where, torch.arange(0, hidden.shape[0] + step, step, device=hidden.device)).tolist()
    for number, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            continue
        first = number * step
        rows = hidden[first : first + step]
        part = logits(module, rows).float()
        at, read = where[begin:end] - first, tokens[begin:end]
        best[begin:end] = part.argmax(-1)[at] == read
        said = part[at, read]
        top = part.amax(-1, keepdim=True)
        total = part.sub_(top).exp_().sum(-1)[at]
        top = top[at, 0]
        if hidden.dtype != torch.float32 and plain is not None and plain.bias is None:
            exact = (rows[at].float() * head.weight[read].float()).sum(-1)
            total = (total - (said - top).exp()).clamp_min_(0) + (exact - top).exp()
            said = exact
        values[begin:end] = said - top - total.log()
    return values, best
