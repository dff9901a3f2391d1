"""Log-probabilities of answers with their gradients: logits only where an answer's token is predicted, a chunk of them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.data.render_source import SourceRenderer
from luthier.models.decode import logits, plain_head
from luthier.models.load import LoadedModel
from luthier.models.score import Row, packed_hidden
from luthier.models.seq2seq import read
from luthier.objectives._loss import CHUNK, log_of


class _LinearLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias)[targets], fp32, one a row.

    d log p / d logits = onehot - softmax. Where only ``hidden`` needs a gradient, its rows (before the upstream factor of each) are made
    while the chunk's logits are there; the head's own gradient needs the upstream factors first, so that logits are made again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad
        at_once = wanted[0] and not wanted[1] and not wanted[2]
        slope = torch.empty_like(hidden) if at_once else None
        values = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), CHUNK):
            piece = slice(start, start + CHUNK)
            wished = targets[piece, None]
            low = _logits(hidden[piece], weight, bias)
            full = low.float()
            shares = full.softmax(-1)
            right = shares.gather(1, wished)
            values[piece] = log_of(right, full, wished).squeeze(1)
            if slope is not None:
                low.copy_(shares.neg_().scatter_(1, wished, 1.0 - right))
                torch.mm(low, weight, out=slope[piece])
        if at_once:
            ctx.save_for_backward(slope)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.at_once = at_once
        return values

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        factors = upstream[0].unsqueeze(1)
        if ctx.at_once:
            (slope,) = ctx.saved_tensors
            return (slope * factors).to(slope.dtype), None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] else None
        for start in range(0, len(hidden), CHUNK):
            piece = slice(start, start + CHUNK)
            low = _logits(hidden[piece], weight, bias)
            shares = low.float().softmax(-1).neg_()
            shares.scatter_add_(1, targets[piece, None], torch.ones_like(factors[piece], dtype=torch.float32))
            low.copy_(shares.mul_(factors[piece]))
            if grad_hidden is not None:
                torch.mm(low, weight, out=grad_hidden[piece])
            if grad_weight is not None:
                grad_weight += low.T @ hidden[piece]
            if grad_bias is not None:
                grad_bias += low.sum(0, dtype=torch.float32)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found = hidden @ weight.t()
    return found if bias is None else found.add_(bias)


def linear_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """log-probability of ``targets[i]`` under the logits ``hidden[i] @ weight.T + bias``, fp32, differentiable.

    hidden (rows, width), weight (vocabulary, width), bias (vocabulary) or None, targets (rows) of token ids; returns (rows).
    """
    result: Tensor = _LinearLogProbs.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return result


def token_log_probs(model: LoadedModel, hidden: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log-probability of ``tokens[i]`` at ``hidden[i]`` by the model's language-model head, its logits divided by ``temperature``; fp32,
    differentiable."""
    head = plain_head(model.module)
    if head is not None:
        states = hidden if temperature == 1.0 else hidden / temperature
        bias = head.bias if head.bias is None or temperature == 1.0 else head.bias / temperature
        return linear_log_probs(states, head.weight, bias, tokens)
    every = logits(model.module, hidden).float() / temperature
    return every.gather(1, tokens[:, None]).squeeze(1) - every.logsumexp(-1)


def answer_states(model: LoadedModel, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Of a decoder the hidden state (tokens, width) that predicts each token of each answer of every row in turn, differentiable, and
    those tokens. A prompt goes through the model once, its answers as branches after it."""
    hidden, where, tokens, owners = packed_hidden(model.module, rows, model.device)
    order = owners.argsort(stable=True)  # read along the branches; an answer's own tokens are in order
    return hidden.index_select(0, where[order]), tokens[order]


def answer_token_log_probs(model: LoadedModel, rows: Sequence[Row], temperature: float = 1.0) -> Tensor:
    """log p of every token of every answer of every row of a decoder, in turn (tokens,): fp32, differentiable, of the distribution at ``temperature``."""
    return token_log_probs(model, *answer_states(model, rows), temperature)


def answer_log_probs(model: LoadedModel, rows: Sequence[Row]) -> Tensor:
    """log p(answer | prompt), a sum over the answer's tokens, fp32 and differentiable: one for every answer of every row, in turn.

    A prompt goes through the model once, its answers as branches after it.
    """
    renderer = model.renderer
    if isinstance(renderer, SourceRenderer):
        placed = read(model.module, rows, renderer.opening, renderer.pad_id, model.device)
        hidden, where, tokens, owners = placed.hidden, placed.where, placed.tokens, placed.owner
    else:
        hidden, where, tokens, owners = packed_hidden(model.module, rows, model.device)
    values = token_log_probs(model, hidden.index_select(0, where), tokens)
    count = sum(len(row.continuations) for row in rows)
    return torch.zeros(count, device=values.device).index_add(0, owners, values)
