"""The torch engine for encoder-decoders: the encoder reads the prompt once, the decoder answers or scores what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.engine import (
    ContinuationScore,
    Delta,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
)
from luthier.core.errors import InputError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.data.batch import order_by_length
from luthier.data.render_source import SourceRenderer
from luthier.engines._answer import Answer
from luthier.models.packed import Read, Row
from luthier.models.seq2seq import Replies, mean_encoded, score_pairs, sources

if TYPE_CHECKING:
    from luthier.engines._shared import SharedBase

_MOST_ROWS = 64
"""Answers that are decoded together; beyond that a step takes longer in proportion."""


class EncoderDecoderEngine:
    """A text-to-text model, or one of its adapters.

    Prompt and answer have room for as many tokens as the context each: the one is the encoder's, the other the decoder's.
    """

    def __init__(self, base: SharedBase, key: str | None, info: EngineInfo, max_batch_tokens: int) -> None:
        self._base, self._key, self._info = base, key, info
        self._max_batch_tokens = max_batch_tokens
        self._open = True
        with base.using(key) as loaded:
            assert isinstance(loaded.renderer, SourceRenderer)  # encoder-decoders have one
            self._renderer, self._device = loaded.renderer, loaded.device

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        return self._info

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, decoded together; an answer does not depend on what else is asked (in fp32, to rounding).

        Raises InputError for a prompt that is empty or longer than the context.
        """
        ids = self._prompt_ids(prompts)
        answers = [self._answer(row, sampling, incremental=bool(sampling.stop)) for row in ids]
        told = 0
        sizes = [len(answer.prompt) + answer.limit for answer in answers]
        for batch in order_by_length(sizes, 8 * self._max_batch_tokens, max_rows=_MOST_ROWS):
            for _ in self._decode([answers[i] for i in batch], sampling):
                done = sum(bool(answer.finish_reason) for answer in answers)
                if done > told:
                    told = done
                    progress("generate", done, len(ids))
        return [answer.generation() for answer in answers]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer piece by piece. Between pieces the model is free for others. Raises as ``generate``, before the first piece."""
        (ids,) = self._prompt_ids([prompt])
        return self._pieces(self._answer(ids, sampling, incremental=True), sampling)

    def _pieces(self, answer: Answer, sampling: Sampling) -> Iterator[Delta]:
        for piece in self._decode([answer], sampling):
            if piece:
                yield Delta(piece)
        yield Delta("", answer.generation())

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Log-likelihood of each continuation as the decoder's answer; the encoder reads each prompt once.

        After a conversation a continuation is a whole answer with the token that ends it, after raw text it is the beginning of one.
        Raises InputError for an empty continuation or prompt, and for one that is longer than the context.
        """
        rows = self._rows(requests)
        found: list[list[Read]] = [[]] * len(rows)
        done = 0
        with self._base.using(self._key) as loaded:
            batches = score_pairs(
                loaded.module,
                rows,
                self._renderer.opening,
                self._renderer.pad_id,
                self._device,
                max_batch_tokens=self._max_batch_tokens,
            )
        while True:
            with self._base.using(self._key):
                scored = next(batches, None)
            if scored is None:
                break
            for index, read in scored:
                found[index] = read
            done += len(scored)
            progress("score", done, len(rows))
        return [
            tuple(
                ContinuationScore(each.logprob, len(tokens), each.greedy)
                for each, tokens in zip(read, row.continuations, strict=True)
            )
            for read, row in zip(found, rows, strict=True)
        ]

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Unit-length means of the encoder's last hidden states, shape (texts, width), float32."""
        ids = self._prompt_ids(texts)
        with self._base.using(self._key) as loaded:
            width = loaded.module.get_input_embeddings().weight.shape[1]
        out = np.zeros((len(ids), width), dtype=np.float32)
        done = 0
        for batch in order_by_length([len(row) for row in ids], self._max_batch_tokens):
            rows, mask = sources([ids[i] for i in batch], self._renderer.pad_id, self._device)
            with self._base.using(self._key) as loaded:
                out[batch] = mean_encoded(loaded.module, rows, mask).cpu().numpy()
            done += len(batch)
            progress("embed", done, len(ids))
        return out

    def close(self) -> None:
        """Give the base up; it is freed when nobody else uses it."""
        if self._open:
            self._open = False
            self._base.leave(self._key)

    def _prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        ids = self._renderer.prompt_ids_batch(prompts)
        for number, row in enumerate(ids):
            if len(row) > self._info.context_length:
                which = f"prompt {number + 1} of {len(ids)}" if len(ids) > 1 else "the prompt"
                raise InputError(f"{which} has {len(row)} tokens; {self._info.model} reads {self._info.context_length}")
        return ids

    def _rows(self, requests: Sequence[ScoreRequest]) -> list[Row]:
        """Sources with their targets as token ids."""
        if not all(text for request in requests for text in request.continuations):
            raise InputError("continuations must not be empty; got ''")
        if any(request.prompt == "" for request in requests):
            raise InputError(
                f"prompt must not be empty: {self._info.model} is an encoder-decoder, which scores answers to what its encoder has "
                "read; how likely a text is from its beginning is a question for a decoder"
            )
        known: dict[tuple[str, bool], list[int]] = {}
        rows = []
        for number, (request, prompt) in enumerate(
            zip(requests, self._prompt_ids([request.prompt for request in requests]), strict=True)
        ):
            whole = not isinstance(request.prompt, str)
            for text in request.continuations:
                if (text, whole) not in known:
                    known[text, whole] = self._renderer.continuation_ids(text, ends_turn=whole)
            targets = [known[text, whole] for text in request.continuations]
            longest = max(map(len, targets), default=0)
            if longest > self._info.context_length:
                raise InputError(
                    f"a continuation of prompt {number + 1} has {longest} tokens; {self._info.model} answers with "
                    f"{self._info.context_length} at most"
                )
            rows.append(Row(prompt, targets))
        return rows

    def _answer(self, prompt: list[int], sampling: Sampling, *, incremental: bool) -> Answer:
        limit = min(sampling.max_new_tokens, self._info.context_length - len(self._renderer.opening))
        return Answer(prompt, limit, self._renderer, sampling.stop, incremental=incremental)

    def _decode(self, answers: Sequence[Answer], sampling: Sampling) -> Iterator[str]:
        """Fill ``answers``; after each step yields the first one's new text, with the model free for others meanwhile."""
        batch = Replies(
            [answer.prompt for answer in answers],
            replace(sampling, max_new_tokens=max(answer.limit for answer in answers)),
            self._renderer.opening,
            self._renderer.pad_id,
            self._device,
            read_tokens=self._max_batch_tokens,
        )
        for answer in answers:
            answer.begin()
        while not batch.done:
            with self._base.using(self._key) as loaded:
                rows, tokens, log_probs = batch.step(loaded.module)
            pieces = [answers[r].take(t, p) for r, t, p in zip(rows, tokens, log_probs, strict=True)]
            batch.finish(row for row in rows if answers[row].finish_reason)
            yield pieces[0]
