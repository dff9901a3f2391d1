"""The torch engine for encoder-decoders: the encoder reads the prompt once, the decoder answers or scores what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from luthier.core.engine import ContinuationScore, Delta, Generation, Sampling, ScoreRequest, Vectors
from luthier.core.errors import ContextLengthError, InputError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.data.render_source import SourceRenderer
from luthier.engines._answer import Answer
from luthier.engines._on_base import TextEngine, finished
from luthier.models.load import LoadedModel
from luthier.models.packed import Row
from luthier.models.sample import RowSampler
from luthier.models.seq2seq import Replies, mean_encoded, score_pairs, sources


class EncoderDecoderEngine(TextEngine):
    """A text-to-text model, or one of its adapters.

    Prompt and answer have room for as many tokens as the context each: the one is the encoder's, the other the decoder's.
    """

    _renderer: SourceRenderer  # encoder-decoders have one

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, decoded together; an answer does not depend on what else is asked (in fp32, to rounding).

        Raises InputError for a prompt that is empty or longer than the context.
        """
        ids = self._prompt_ids(prompts, sampling)
        answers = [self._answer(row, sampling) for row in ids]
        samplers = self._samplers(answers, sampling)
        sizes = [len(answer.prompt) + answer.limit for answer in answers]
        steps = (
            self._decode([answers[i] for i in batch], [samplers[i] for i in batch]) for batch in self._together(sizes)
        )
        return finished(answers, chain.from_iterable(steps), progress)

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Log-likelihood of each continuation as the decoder's answer; the encoder reads each prompt once.

        After a conversation a continuation is a whole answer with the token that ends it, after raw text it is the beginning of one.
        Raises InputError for an empty continuation or prompt, and for one that is longer than the context.
        """
        rows = self._rows(requests)
        with self._base.using(self._key) as loaded:
            batches = score_pairs(
                loaded.module,
                rows,
                self._renderer.opening,
                self._renderer.pad_id,
                self._device,
                max_batch_tokens=self._max_batch_tokens,
            )
        return [
            tuple(
                ContinuationScore(each.logprob, len(tokens), each.greedy)
                for each, tokens in zip(read, row.continuations, strict=True)
            )
            for read, row in zip(self._scored(batches, len(rows), progress), rows, strict=True)
        ]

    def _room(self, prompt: Sequence[int]) -> int:
        return self._info.context_length - len(self._renderer.opening)

    def _require_fits(self, prompt: Sequence[int], which: str) -> None:
        if len(prompt) > self._info.context_length:
            raise ContextLengthError(
                f"{which} has {len(prompt)} tokens; {self._info.model} reads {self._info.context_length}"
            )

    def _alone(self, answer: Answer, sampler: RowSampler) -> Iterator[Delta]:
        return self._decode([answer], [sampler])

    def _drawn_from(self, answer: Answer) -> Sequence[int]:
        return self._renderer.opening  # what the decoder has said

    def _means(self, loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> Vectors:
        ids, mask = sources(rows, self._renderer.pad_id, self._device)
        return np.asarray(mean_encoded(loaded.module, ids, mask).cpu().numpy(), dtype=np.float32)

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
            zip(requests, self._prompt_ids([request.prompt for request in requests], Sampling()), strict=True)
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

    def _decode(self, answers: Sequence[Answer], samplers: Sequence[RowSampler]) -> Iterator[Delta]:
        """Fill ``answers``; after each step yields what the first one shows, with the model free for others meanwhile."""
        batch = Replies(
            [answer.prompt for answer in answers],
            samplers,
            self._renderer.opening,
            self._renderer.pad_id,
            self._device,
            read_tokens=self._max_batch_tokens,
        )
        yield from self._grow(answers, batch, [self._key], samplers)
