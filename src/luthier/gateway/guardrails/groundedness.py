"""Groundedness: what share of an answer's sentences is supported by the given context (system prompt, documents, results of tools).

A sentence is supported by the passage that holds most of its content words, or, with ``embedder``, by the one whose vector is nearest; its
numbers must stand in the context, too. It measures overlap and likeness, not truth: Honovich et al. 2022, "TRUE" (arXiv:2204.04991), compares such measures.
Without any context there is nothing to check.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import EMBED, Engine, require
from luthier.gateway.guardrails._contract import Context, Finding, Models, whole
from luthier.gateway.guardrails._segments import segments
from luthier.gateway.guardrails._words import content_words, numbers

ON = ("output",)
ACTIONS = ("flag", "block", "retry", "hand_over")
LEAST_WORDS = 3
MOST_PASSAGES = 400


class Config(EntryConfig):
    """``threshold``: the least share of supported sentences. ``overlap``: the least share of a sentence's words in one passage; ``similarity``: the
    least cosine with one, where an ``embedder`` is given. ``roles``: whose turns are context. ``numbers``: whether a number that is not in the context
    makes its sentence unsupported."""

    threshold: float = Field(0.6, gt=0, le=1)
    overlap: float = Field(0.6, gt=0, le=1)
    embedder: str | None = None
    similarity: float = Field(0.6, gt=0, le=1)
    roles: tuple[str, ...] = Field(("system", "tool"), min_length=1)
    numbers: bool = True


def prepare(config: Config, models: Models) -> Engine | None:
    """Open the embedder. Raises UnsupportedError for a model that does not embed."""
    if config.embedder is None:
        return None
    engine = models.engine(config.embedder)
    require(engine, EMBED)
    return engine


def slow(config: Config) -> bool:
    """An embedder is a model."""
    return config.embedder is not None


def check(text: str, config: Config, context: Context) -> list[Finding]:
    """One finding over the whole answer when too few of its sentences are supported; its score is the share of those that are not."""
    sentences = [each for each in _sentences(text) if len(content_words(each)) >= LEAST_WORDS]
    given = "\n".join(message.content for message in context.messages if message.role in config.roles)
    passages = [each for each in _sentences(given) if content_words(each)][:MOST_PASSAGES]
    if not sentences or not passages:
        return []
    passages += [f"{one} {other}" for one, other in pairwise(passages)]  # what a sentence sums up may span two
    supported = _supported(sentences, passages, config, context.state)
    if config.numbers:
        known = numbers(given)
        supported = [good and numbers(each) <= known for good, each in zip(supported, sentences, strict=True)]
    share = sum(supported) / len(supported)
    if share >= config.threshold:
        return []
    lacking = len(supported) - sum(supported)
    return whole(
        "groundedness", text, 1.0 - share, f"{lacking} of {len(supported)} sentences have no support in the context"
    )


def _sentences(text: str) -> list[str]:
    return [text[part.start : part.end].strip() for part in segments(text, 0, True)]


def _supported(
    sentences: Sequence[str], passages: Sequence[str], config: Config, embedder: Engine | None
) -> list[bool]:
    known = [content_words(passage) for passage in passages]
    out = []
    for sentence in sentences:
        words = content_words(sentence)
        out.append(any(len(words & each) >= config.overlap * len(words) for each in known))
    if embedder is not None and not all(out):
        open_ones = [sentence for sentence, good in zip(sentences, out, strict=True) if not good]
        vectors = embedder.embed([*open_ones, *passages])
        nearest = np.max(vectors[: len(open_ones)] @ vectors[len(open_ones) :].T, axis=1)
        close = iter(nearest >= config.similarity)
        out = [good or bool(next(close)) for good in out]
    return out
