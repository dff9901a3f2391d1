"""The torch engine for decoders whose head says a number (objective ``regress``)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from luthier.core.engine import SCORE, ContinuationScore, Delta, Generation, Sampling, ScoreRequest, Vectors, require
from luthier.core.errors import ContextLengthError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.data.batch import order_by_length
from luthier.engines._decoder import mean_hidden
from luthier.engines._on_base import TextEngine
from luthier.engines._text import before_stop
from luthier.models.heads import number_text
from luthier.models.load import LoadedModel
from luthier.models.regression import prompt_numbers


class NumberEngine(TextEngine):
    """Reads a conversation and answers with its number; nothing is drawn, so a temperature changes nothing."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """The number of each prompt, as text. Raises InputError when a prompt is longer than the context."""
        start = time.perf_counter()
        ids = self._prompt_ids(prompts, sampling)
        texts = [""] * len(ids)
        done = 0
        for batch in order_by_length([len(row) for row in ids], self._max_batch_tokens):
            with self._base.using(self._key) as loaded:
                numbers = prompt_numbers(loaded, [ids[i] for i in batch], self._max_batch_tokens)
            for i, number in zip(batch, numbers, strict=True):
                texts[i] = before_stop(number_text(number), sampling.stop)
            done += len(batch)
            progress("generate", done, len(ids))
        took = time.perf_counter() - start
        return [
            Generation(text, (), tuple(row), "stop", first_token_s=took, latency_s=took, prompt_tokens=len(row))
            for text, row in zip(texts, ids, strict=True)
        ]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The number in one piece."""
        answer = self.generate([prompt], sampling)[0]
        return iter([Delta(answer.text), Delta("", answer)])

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """A number has no likelihood here: raises UnsupportedError."""
        require(self, SCORE)
        return []

    def _room(self, prompt: Sequence[int]) -> int:
        return self._info.context_length - len(prompt)

    def _require_fits(self, prompt: Sequence[int], which: str) -> None:
        if self._room(prompt) < 0:
            raise ContextLengthError(
                f"{which} has {len(prompt)} tokens; {self._info.model} reads {self._info.context_length}"
            )

    def _means(self, loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> Vectors:
        return mean_hidden(loaded, rows)
