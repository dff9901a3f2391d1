"""Sampling from a model that is being trained: several answers to each prompt, in tokens, with what the policy gave for them.

Every prompt is read once for all its answers. Each answer has random numbers of its own, made of the seed, the prompt's place and the
answer's number alone, so that it depends neither on the batch that it is decoded in nor on how many answers there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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
    out: list[list[Answer]] = [[] for _ in prompts]
    with answering_mode(model.module):
        for batch in _batches(model, prompts, sampling, copies, max_batch_tokens):
            answers = decode(model, batch.answering(model), batch.limits, sampling.temperature)
            for place, i in enumerate(batch.places):
                out[i] = answers[place * copies : (place + 1) * copies]
    return out


def sample_mixed(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    other: Callable[[], AbstractContextManager[None]],
    share: float,
    *,
    max_batch_tokens: int = 2048,
) -> list[Answer]:
    """One answer to each prompt by the geometric mixture pi^(1 - share) other^share, token by token and normalised at each: logits
    (1 - share) pi + share other (Munos et al. 2023, section 4). Within ``other()`` the model is the other policy.

    Log-probabilities are those under the mixture at the sampling temperature. Raises what ``sample`` does.
    """
    out: list[Answer] = [Answer() for _ in prompts]
    with answering_mode(model.module):
        for batch in _batches(model, prompts, sampling, 1, max_batch_tokens):
            own, others = batch.answering(model), batch.answering(model)
            answers = [Answer() for _ in batch.places]
            while not own.done:
                scores = own.scores(model.module)
                with other():
                    theirs = others.scores(model.module)
                mixed = (1.0 - share) * scores.float() + share * theirs.float()
                tokens, log_probs = own.draw(mixed)
                if sampling.temperature not in (0.0, 1.0):
                    log_probs = tempered(mixed, tokens, sampling.temperature)
                others.take(tokens, log_probs)
                others.finish(_grow(model, answers, own, tokens, log_probs, batch.limits))
            for i, answer in zip(batch.places, answers, strict=True):
                out[i] = answer
    return out


@dataclass(frozen=True)
class _Together:
    """Prompts that are answered together: their places among all, their tokens, a limit and a seed for each answer."""

    places: list[int]
    prompts: list[Sequence[int]]
    limits: list[int]
    seeds: list[int]
    sampling: Sampling
    copies: int
    read_tokens: int

    def answering(self, model: LoadedModel) -> Answering:
        """A batch that has read nothing yet."""
        return Answering(
            self.prompts,
            replace(self.sampling, max_new_tokens=max(self.limits), stop=()),
            model.device,
            full_attention=attends_fully(model.module),
            read_tokens=self.read_tokens,
            copies=self.copies,
            seeds=self.seeds,
        )


def _batches(
    model: LoadedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, copies: int, max_batch_tokens: int
) -> Iterator[_Together]:
    """What is decoded together. Models with windowed layers take prompts of one length only."""
    require_decoder(model, "a rollout")
    limits = [min(sampling.max_new_tokens, model.context_length - len(prompt)) for prompt in prompts]
    for number, limit in enumerate(limits):
        if limit < 1:
            raise InputError(
                f"prompt {number + 1} has {len(prompts[number])} tokens; {model.record.name} reads {model.context_length} in all, "
                "answer included"
            )
    sizes = [(len(prompt) + limit) * copies for prompt, limit in zip(prompts, limits, strict=True)]
    groups = [list(range(len(prompts)))]
    if not attends_fully(model.module):
        lengths = [len(prompt) for prompt in prompts]
        groups = [[i for i, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))]
    for group in groups:
        for batch in order_by_length([sizes[i] for i in group], _TOGETHER * max_batch_tokens, names=group):
            yield _Together(
                batch,
                [prompts[i] for i in batch],
                [limits[i] for i in batch for _ in range(copies)],
                [random.Random(f"{sampling.seed or 0}/{i}/{j}").getrandbits(62) for i in batch for j in range(copies)],
                sampling,
                copies,
                max_batch_tokens,
            )


def decode(model: LoadedModel, answering: Answering, limits: Sequence[int], temperature: float) -> list[Answer]:
    """Answer every row of ``answering`` to its end, or to its limit of tokens."""
    answers = [Answer() for _ in limits]
    while not answering.done:
        scores = answering.scores(model.module)
        tokens, log_probs = answering.draw(scores)
        if temperature not in (0.0, 1.0):
            log_probs = tempered(scores, tokens, temperature)
        _grow(model, answers, answering, tokens, log_probs, limits)
    return answers


def _grow(
    model: LoadedModel,
    answers: Sequence[Answer],
    answering: Answering,
    tokens: torch.Tensor,
    log_probs: torch.Tensor,
    limits: Sequence[int],
) -> list[int]:
    """Put the drawn ``tokens``, one a place, to their answers, and finish those that are at their end; returns these."""
    assert model.renderer is not None  # decoders have one
    over = []
    for row, token, log_prob in zip(*answering.take(tokens, log_probs), strict=True):
        answer = answers[row]
        answer.tokens.append(token)
        answer.log_probs.append(log_prob)
        answer.ended = token in model.renderer.stop_ids
        if answer.ended or len(answer.tokens) >= limits[row]:
            over.append(row)
    answering.finish(over)
    return over


@torch.inference_mode()
def tempered(scores: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(scores / temperature) of ``tokens``, fp32; scores (rows, vocabulary), tokens (rows)."""
    scaled = scores.float() / temperature
    return scaled.gather(1, tokens[:, None]).squeeze(1) - scaled.logsumexp(-1)
