"""Sampling from a model that is being trained: several answers to each prompt, in tokens, with what the policy gave for them.

Every prompt is read once for all its answers. Each answer has random numbers of its own, made of the seed, the prompt's place and the
answer's number alone, so that it depends neither on the batch that it is decoded in nor on how many answers there are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from luthier.core.engine import Sampling
from luthier.core.errors import InputError, UnsupportedError
from luthier.data.batch import order_by_length
from luthier.models.decode import attends_fully
from luthier.models.generate import Answering
from luthier.models.load import LoadedModel

_TOGETHER = 8
"""Answers are decoded together up to so many times the token budget: what a step holds of a token is its keys and values only."""


@dataclass(slots=True)
class Answer:
    """``tokens``, the one that ends the turn included when it came (``ended``), and the log-probability of each under the policy at the
    sampling temperature (greedy: at temperature 1), before ``top_p`` and ``top_k`` cut anything."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ended: bool = False


@contextmanager
def answering_mode(module: Any) -> Iterator[None]:
    """Within it ``module`` is in eval mode (no dropout) and nothing has gradients; afterwards each part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def require_decoder(model: LoadedModel, what: str) -> None:
    """Raise UnsupportedError for another architecture."""
    if model.architecture != "decoder":
        raise UnsupportedError(
            f"{what} samples answers from a decoder; {model.record.name} is of architecture {model.architecture}",
            hint="take a decoder, for example model.base=smollm2-135m",
        )


def sample(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    copies: int = 1,
    max_batch_tokens: int = 2048,
) -> list[list[Answer]]:
    """``copies`` answers to each of ``prompts`` (token ids), by ``sampling.seed``; ``stop`` texts are not looked at.

    An answer ends with a token that ends a turn, after ``max_new_tokens``, or where the context is full. Raises UnsupportedError for another
    architecture than a decoder, InputError for a prompt that fills the context.
    """
    require_decoder(model, "a rollout")
    limits = [min(sampling.max_new_tokens, model.context_length - len(prompt)) for prompt in prompts]
    for number, limit in enumerate(limits):
        if limit < 1:
            raise InputError(
                f"prompt {number + 1} has {len(prompts[number])} tokens; {model.record.name} reads {model.context_length} in all, "
                "answer included"
            )
    seeds = [
        [random.Random(f"{sampling.seed or 0}/{i}/{j}").getrandbits(62) for j in range(copies)]
        for i in range(len(prompts))
    ]
    out: list[list[Answer]] = [[] for _ in prompts]
    with answering_mode(model.module):
        for batch in _batches(model, [len(p) for p in prompts], limits, copies, max_batch_tokens):
            answering = Answering(
                [prompts[i] for i in batch],
                replace(sampling, max_new_tokens=max(limits[i] for i in batch), stop=()),
                model.device,
                full_attention=attends_fully(model.module),
                read_tokens=max_batch_tokens,
                copies=copies,
                seeds=[seed for i in batch for seed in seeds[i]],
            )
            answers = decode(model, answering, [limits[i] for i in batch for _ in range(copies)], sampling.temperature)
            for place, i in enumerate(batch):
                out[i] = answers[place * copies : (place + 1) * copies]
    return out


def decode(model: LoadedModel, answering: Answering, limits: Sequence[int], temperature: float) -> list[Answer]:
    """Answer every row of ``answering`` to its end, or to its limit of tokens."""
    assert model.renderer is not None  # decoders have one
    answers = [Answer() for _ in limits]
    while not answering.done:
        scores = answering.scores(model.module)
        tokens, log_probs = answering.draw(scores)
        if temperature not in (0.0, 1.0):
            log_probs = tempered(scores, tokens, temperature)
        grow(answers, answering, tokens, log_probs, limits, model.renderer.stop_ids)
    return answers


def grow(
    answers: Sequence[Answer],
    answering: Answering,
    tokens: torch.Tensor,
    log_probs: torch.Tensor,
    limits: Sequence[int],
    stop_ids: frozenset[int],
) -> None:
    """Put the drawn ``tokens``, one a place, to their answers, and finish those that are at their end."""
    over = []
    for row, token, log_prob in zip(*answering.take(tokens, log_probs), strict=True):
        answer = answers[row]
        answer.tokens.append(token)
        answer.log_probs.append(log_prob)
        answer.ended = token in stop_ids
        if answer.ended or len(answer.tokens) >= limits[row]:
            over.append(row)
    answering.finish(over)


@torch.inference_mode()
def tempered(scores: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(scores / temperature) of ``tokens``, fp32; scores (rows, vocabulary), tokens (rows)."""
    scaled = scores.float() / temperature
    return scaled.gather(1, tokens[:, None]).squeeze(1) - scaled.logsumexp(-1)


def _batches(
    model: LoadedModel, lengths: Sequence[int], limits: Sequence[int], copies: int, max_batch_tokens: int
) -> Iterator[list[int]]:
    """Prompts whose answers are decoded together. Models with windowed layers take prompts of one length only."""
    sizes = [(length + limit) * copies for length, limit in zip(lengths, limits, strict=True)]
    groups = [list(range(len(lengths)))]
    if not attends_fully(model.module):
        groups = [[i for i, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))]
    for group in groups:
        yield from order_by_length([sizes[i] for i in group], _TOGETHER * max_batch_tokens, names=group)
