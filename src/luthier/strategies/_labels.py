"""Models that answer a closed set of labels: loaded and served the way they were proven.

Evaluation takes the likeliest label by the log-probability of its whole text (``evaluation/asking.py``). A decoder that wrote freely
instead could say something else, or no label at all, so what is loaded by name scores the labels too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.engine import (
    GENERATE,
    SCORE,
    STREAM,
    ContinuationScore,
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
    check_health,
)
from luthier.core.errors import EngineError, LuthierError, NotFoundError
from luthier.core.message import Prompt
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.store.artifacts import path_of
from luthier.store.models import find

if TYPE_CHECKING:
    from luthier.data.render import Renderer
    from luthier.store.database import Store

Counter = Callable[[Prompt], int]


def answer_with_labels(engine: Engine, labels: Sequence[str], count: Counter | None = None) -> Engine:
    """``engine``, answering with one of ``labels``; itself when there are none, it does so anyway, or it cannot score.

    ``count`` gives the tokens of a prompt, for the counts of an answer.
    """
    info = engine.info
    if not labels or info.labels or SCORE not in info.capabilities:
        return engine
    return LabelEngine(engine, tuple(labels), count)


class LabelEngine:
    """``inner``, whose only answers are ``labels``: the likeliest, the first of equals, or with a temperature one drawn."""

    def __init__(self, inner: Engine, labels: tuple[str, ...], count: Counter | None) -> None:
        self.inner = inner
        self._labels = labels
        self._count = count
        self._info = inner.info.with_(
            labels=labels,
            capabilities=inner.info.capabilities | {GENERATE, STREAM},
            parameters=frozenset({"top_k", "min_p"}),
        )

    @property
    def info(self) -> EngineInfo:
        """The inner engine's, with the labels, and with the parameters by which one of them is drawn."""
        return self._info

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One label a prompt. Raises EngineError when a log-probability is not a number."""
        start = time.perf_counter()
        scored = self.inner.score([ScoreRequest(prompt, self._labels) for prompt in prompts], progress)
        chance = np.random.default_rng(sampling.seed)
        took = time.perf_counter() - start
        return [
            self._generation(prompt, row, _choose([each.logprob for each in row], sampling, chance), sampling, took)
            for prompt, row in zip(prompts, scored, strict=True)
        ]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The label in one piece."""
        answer = self.generate([prompt], sampling)[0]
        return iter([Delta(answer.text), Delta("", answer)])

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """The inner engine's."""
        return self.inner.score(requests, progress)

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """The inner engine's."""
        return self.inner.embed(texts, progress)

    def healthy(self, timeout_s: float) -> None:
        """Raises EngineError when the inner engine is not well."""
        check_health(self.inner, timeout_s)

    def close(self) -> None:
        """Close the inner engine."""
        self.inner.close()

    def _generation(
        self, prompt: Prompt, row: Sequence[ContinuationScore], chosen: int, sampling: Sampling, took: float
    ) -> Generation:
        text = self._labels[chosen]
        ends = [text.index(stop) for stop in sampling.stop if stop in text]
        return Generation(
            text=text[: min(ends)] if ends else text,
            token_ids=(),
            prompt_token_ids=(),
            finish_reason="stop",
            logprob=row[chosen].logprob,
            first_token_s=took,
            latency_s=took,
            prompt_tokens=self._count(prompt) if self._count is not None else 0,
            completion_tokens=row[chosen].tokens,
        )


def _choose(logprobs: Sequence[float], sampling: Sampling, chance: np.random.Generator) -> int:
    """The index of the likeliest label, or one drawn with temperature, top_k, top_p and min_p."""
    if any(math.isnan(each) for each in logprobs):
        raise EngineError("a label's log-probability is not a number")
    best = max(range(len(logprobs)), key=lambda index: logprobs[index])
    if sampling.temperature == 0.0 or logprobs[best] == -math.inf:
        return best
    shares = np.exp((np.asarray(logprobs) - logprobs[best]) / sampling.temperature)
    order = np.argsort(-shares, kind="stable")[: sampling.top_k or None]
    kept = shares[order] / shares[order].sum()
    within = np.cumsum(kept) - kept < sampling.top_p - 1e-9  # the likeliest always is
    within &= kept >= sampling.min_p * kept[0]
    drawn = chance.choice(order[within], p=kept[within] / kept[within].sum())
    return int(drawn)


def prompt_counter(store: Store, record: ModelRecord, engine: Engine) -> Counter:
    """Counts a prompt's tokens as ``engine`` reads it, with its own renderer; for answers that come from scores."""
    rewrite = getattr(engine, "rewrite", None)  # a strategy's: what the inner engine is asked instead

    @cache
    def renderer() -> Renderer | None:
        from luthier.models.load import load_renderer

        folder = tokenizer_folder(store, record)
        return load_renderer(folder) if folder is not None else None

    def count(prompt: Prompt) -> int:
        known = renderer()
        return len(known.prompt_ids(rewrite(prompt) if rewrite else prompt)) if known is not None else 0

    return count


def tokenizer_folder(store: Store, record: ModelRecord) -> Path | None:
    """Where a stored model's tokenizer is: with its weights, or with those that it was made from."""
    names = [record.meta.get("target"), record.base] if record.kind in ("endpoint", "export") else [record.base]
    try:
        folder = path_of(store, record.digest) if record.digest else None
    except LuthierError:
        folder = None
    if folder is not None and (folder / "tokenizer.json").is_file():
        return folder
    for name in names:
        if isinstance(name, str) and name != record.name:
            try:
                return tokenizer_folder(store, find(store, name))
            except NotFoundError:
                continue
    return None


def labels_of(store: Store, record: ModelRecord) -> tuple[str, ...]:
    """The closed answer set of a stored model: its own, its prompt's, its strategy's, or that of what it points at."""
    strategy = record.meta.get("strategy")
    places = [record.meta, record.meta.get("prompt"), *_nested_prompts(strategy)]
    for place in places:
        if isinstance(place, Mapping) and place.get("labels"):
            return tuple(str(label) for label in place["labels"])
    target = record.meta.get("target")
    if not isinstance(target, str) or target == record.name:
        return ()
    try:
        return labels_of(store, find(store, target))
    except NotFoundError:
        return ()


def _nested_prompts(strategy: Any) -> list[Any]:
    """The ``prompt`` mappings in a stored strategy, however its options are nested."""
    if not isinstance(strategy, Mapping):
        return []
    return [strategy.get("prompt"), *(found for value in strategy.values() for found in _nested_prompts(value))]
