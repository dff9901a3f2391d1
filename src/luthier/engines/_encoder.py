"""The torch engine for encoders: vectors, and answers from a classification head."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch

from luthier.core.engine import (
    GENERATE,
    RERANK,
    SCORE,
    STREAM,
    ContinuationScore,
    Delta,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
    require,
    require_parameters,
)
from luthier.core.entities import answer_text
from luthier.core.errors import InputError, did_you_mean
from luthier.core.message import Prompt, last_user_text
from luthier.core.run import Progress, no_progress
from luthier.data.batch import order_by_length, pad
from luthier.engines._on_base import EngineOnBase
from luthier.engines._text import before_stop
from luthier.models.encoder import encode_texts
from luthier.models.heads import NUMBER, TAGS, number_text
from luthier.models.load import LoadedModel
from luthier.models.rerank import scores
from luthier.models.sample import Sampler
from luthier.models.tagging import tag_rows, tokenise

_RERANKED_AT_ONCE = 64
"""Documents between two turns of others on the same base."""

Answers: TypeAlias = tuple[list[list[int]], list[str], list[float | None]]
"""Of each prompt its token ids, the answer, and its log-probability where it has one."""


class EncoderEngine(EngineOnBase):
    """Embeds texts; with a head it also answers: with one of its labels, with a number, or with the entities that
    it finds, as a JSON list of ``{"type", "start", "end", "text"}``.

    A prompt is read as its last user turn. Text over the context length is cut, as sentence-transformers does; for entities it is read
    whole, in windows.
    """

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """The likeliest label of each prompt; with a temperature, a label drawn from their probabilities. Numbers and
        entities are the same at every temperature."""
        require(self, GENERATE)
        require_parameters(self._info, prompts, sampling)
        start = time.perf_counter()
        answer = {NUMBER: self._numbers, TAGS: self._tags}.get(self._info.answers, self._labels)
        ids, texts, log_probs = answer(prompts, sampling, progress)
        took = time.perf_counter() - start
        return [
            Generation(
                text=before_stop(text, sampling.stop),
                token_ids=(),
                prompt_token_ids=tuple(row),
                finish_reason="stop",
                logprob=log_prob,
                first_token_s=took,
                latency_s=took,
                prompt_tokens=len(row),
            )
            for row, text, log_prob in zip(ids, texts, log_probs, strict=True)
        ]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The label in one piece."""
        require(self, STREAM)
        answer = self.generate([prompt], sampling)[0]
        return iter([Delta(answer.text), Delta("", answer)])

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Log-softmax over the labels. Raises InputError for a continuation that is not a label."""
        require(self, SCORE)
        place = {label: index for index, label in enumerate(self._info.labels)}
        for text in (text for request in requests for text in request.continuations):
            if text not in place:
                raise InputError(
                    f"{self._info.model} scores its own labels only; got {text!r}. {did_you_mean(text, place)}",
                    hint=f"labels: {', '.join(place)}",
                )
        _, logits = self._logits([request.prompt for request in requests], "score", progress)
        log_probs = logits.log_softmax(-1).tolist()
        return [
            tuple(
                ContinuationScore(row[place[text]], 1, row[place[text]] == max(row)) for text in request.continuations
            )
            for request, row in zip(requests, log_probs, strict=True)
        ]

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Unit-length pooled vectors, shape (texts, width), float32."""
        _, vectors = self._pooled(texts, "embed", progress)
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return np.asarray(vectors.cpu().numpy(), dtype=np.float32)

    def rerank(self, query: str, documents: Sequence[str], progress: Progress = no_progress) -> list[float]:
        """The sigmoid of each document's score (a probability after a pointwise loss; after another its order is what was learnt).

        Raises InputError for a query that is empty or leaves no room for a document, UnsupportedError without the head of a reranker.
        """
        require(self, RERANK)
        out: list[float] = []
        for start in range(0, len(documents), _RERANKED_AT_ONCE):
            some = documents[start : start + _RERANKED_AT_ONCE]
            with self._base.using(self._key) as loaded:
                found = scores(loaded, query, some, max_batch_tokens=self._max_batch_tokens)
            out += torch.tensor(found, dtype=torch.float64).sigmoid().tolist()
            progress("rerank", len(out), len(documents))
        return out

    def _labels(self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress) -> Answers:
        ids, logits = self._logits(prompts, "generate", progress)
        drawn = Sampler.alike(sampling, [[]] * len(prompts)).draw(logits)
        return ids, [self._info.labels[label] for label in drawn.tokens.tolist()], drawn.log_probs.tolist()

    def _numbers(self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress) -> Answers:
        ids, outputs = self._logits(prompts, "generate", progress)
        with self._base.using(self._key) as loaded, torch.inference_mode():
            numbers = loaded.head.numbers(outputs)
        return ids, [number_text(number) for number in numbers.tolist()], [None] * len(ids)

    def _tags(self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress) -> Answers:
        texts = [last_user_text(prompt) for prompt in prompts]
        with self._base.using(self._key) as loaded:
            rows = tokenise(loaded, texts, loaded.head.subtokens)
        answers = [""] * len(rows)
        done = 0
        for batch in order_by_length([len(row.ids) for row in rows], self._max_batch_tokens):
            with self._base.using(self._key) as loaded:
                chosen = [rows[i] for i in batch]
                found = tag_rows(loaded, chosen, self._info.context_length, self._max_batch_tokens)
            for i, entities in zip(batch, found, strict=True):
                answers[i] = answer_text(texts[i], entities)
            done += len(batch)
            progress("generate", done, len(rows))
        return [row.ids for row in rows], answers, [None] * len(rows)

    def _logits(
        self, prompts: Sequence[Prompt], stage: str, progress: Progress
    ) -> tuple[list[list[int]], torch.Tensor]:
        ids, vectors = self._pooled([last_user_text(prompt) for prompt in prompts], stage, progress)
        with self._base.using(self._key) as loaded, torch.inference_mode():
            return ids, loaded.module.classify(vectors)

    def _pooled(self, texts: Sequence[str], stage: str, progress: Progress) -> tuple[list[list[int]], torch.Tensor]:
        """Token ids and pooled vectors (texts, width), fp32, batched by length."""
        with self._base.using(self._key) as loaded:
            ids = encode_texts(loaded.tokenizer, texts, self._info.context_length)
            out = torch.empty(len(ids), loaded.module.width, device=loaded.device)
        done = 0
        for batch in order_by_length([len(row) for row in ids], self._max_batch_tokens):
            with self._base.using(self._key) as loaded:
                out[batch] = _forward(loaded, [ids[i] for i in batch])
            done += len(batch)
            progress(stage, done, len(ids))
        return ids, out


@torch.inference_mode()
def _forward(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    batch = pad(rows, loaded.tokenizer.pad_token_id or 0)
    pooled: torch.Tensor = loaded.module.pooled(batch.ids.to(loaded.device), batch.attention_mask.to(loaded.device))
    return pooled
