"""What torch engines have in common: being one of those that answer on a shared base, and writing text token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from luthier.core.engine import Delta, EngineInfo, Generation, Sampling, Vectors, require_parameters
from luthier.core.errors import InputError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.data.batch import order_by_length
from luthier.data.token_bytes import bytes_of_tokens
from luthier.engines._answer import Answer, Top
from luthier.engines._tools import prompt_tools, wanted_form
from luthier.models.sample import Follower, RowSampler

if TYPE_CHECKING:
    from luthier.engines._shared import SharedBase
    from luthier.models.load import LoadedModel
    from luthier.models.packed import Read

_MOST_ROWS = 64
"""Answers that are decoded together; beyond that a step takes longer in proportion."""


class Batch(Protocol):
    """Rows while they are answered, token by token (``models.generate.Answering``, ``models.seq2seq.Replies``)."""

    @property
    def top(self) -> Mapping[int, Top]:
        """What was likeliest in the last step, of the rows that asked for it."""

    @property
    def done(self) -> bool:
        """True when every row is finished."""

    def step(self, module: object) -> tuple[list[int], list[int], list[float]]:
        """The next token of every live row: (row numbers, tokens, log-probabilities)."""

    def finish(self, rows: Iterable[int]) -> None:
        """These rows need no more tokens."""


class EngineOnBase:
    """A base in memory, or one of its adapters (``key``), which answers when it is its turn."""

    def __init__(self, base: SharedBase, key: str | None, info: EngineInfo, max_batch_tokens: int) -> None:
        self._base, self._key, self._info = base, key, info
        self._max_batch_tokens = max_batch_tokens
        self._open = True

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        return self._info

    def close(self) -> None:
        """Give the base up; it is freed when nobody else uses it."""
        if self._open:
            self._open = False
            self._base.leave(self._key)


class TextEngine(EngineOnBase):
    """A model that writes text: decoders and encoder-decoders say how a batch is decoded, the rest is here."""

    def __init__(self, base: SharedBase, key: str | None, info: EngineInfo, max_batch_tokens: int) -> None:
        super().__init__(base, key, info, max_batch_tokens)
        with base.using(key) as loaded:
            assert loaded.renderer is not None  # models that write text have one
            self._renderer, self._device = loaded.renderer, loaded.device
            self._vocabulary = int(loaded.module.get_input_embeddings().weight.shape[0])

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer piece by piece. Between pieces the model is free for others. Raises as ``generate``, before the first piece."""
        (ids,) = self._prompt_ids([prompt], sampling)
        answer = self._answer(ids, sampling, incremental=True)
        (sampler,) = self._samplers([answer], sampling)
        return self._pieces(answer, sampler)

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Unit-length means of the last hidden states over a text's tokens, shape (texts, width), float32."""
        ids = self._prompt_ids(texts, Sampling())
        with self._base.using(self._key) as loaded:
            width = loaded.module.get_input_embeddings().weight.shape[1]
        out = np.zeros((len(ids), width), dtype=np.float32)
        done = 0
        for batch in order_by_length([len(row) for row in ids], self._max_batch_tokens):
            with self._base.using(self._key) as loaded:
                out[batch] = self._means(loaded, [ids[i] for i in batch])
            done += len(batch)
            progress("embed", done, len(ids))
        return out

    # ---- what a kind of model says of itself

    def _room(self, prompt: Sequence[int]) -> int:
        """How many tokens an answer to ``prompt`` may have."""
        raise NotImplementedError

    def _require_fits(self, prompt: Sequence[int], which: str) -> None:
        """Raise InputError for a prompt that is too long."""
        raise NotImplementedError

    def _alone(self, answer: Answer, sampler: RowSampler) -> Iterator[Delta]:
        """Fill one answer; yields what can be shown as it grows."""
        raise NotImplementedError

    def _drawn_from(self, answer: Answer) -> Sequence[int]:
        """The tokens before the answer that a penalty on repetition counts."""
        return answer.prompt

    def _means(self, loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> Vectors:
        """A unit-length vector for each row of token ids."""
        raise NotImplementedError

    # ---- what they are made of

    def _prompt_ids(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
        """Token ids of each prompt. Raises what cannot be asked of this model."""
        require_parameters(self._info, prompts, sampling)
        if sampling.beams > 1 and sampling.temperature > 0.0:
            raise InputError(
                f"beams above 1 search for the likeliest answer and draw nothing: temperature must be 0; got {sampling.temperature:g}"
            )
        for token, _ in sampling.logit_bias:
            if not 0 <= token < self._vocabulary:
                raise InputError(
                    f"logit_bias names token {token}; {self._info.model} has tokens 0 to {self._vocabulary - 1}"
                )
        ids = self._renderer.prompt_ids_batch(prompts, prompt_tools(sampling))
        for number, row in enumerate(ids):
            self._require_fits(row, f"prompt {number + 1} of {len(ids)}" if len(ids) > 1 else "the prompt")
        return ids

    def _answer(self, prompt: list[int], sampling: Sampling, *, incremental: bool = False) -> Answer:
        limit = min(sampling.max_new_tokens, self._room(prompt))
        bytes_of = () if sampling.logprobs is None else bytes_of_tokens(self._renderer)
        return Answer(prompt, limit, self._renderer, sampling, incremental=incremental, bytes_of=bytes_of)

    def _samplers(self, answers: Sequence[Answer], sampling: Sampling) -> list[RowSampler]:
        """How each answer is drawn. Raises InputError for a constraint that cannot be read."""
        followers = [self._follower(sampling) for _ in answers]
        return [
            RowSampler(sampling, self._drawn_from(answer), follower=follower)
            for answer, follower in zip(answers, followers, strict=True)
        ]

    def _follower(self, sampling: Sampling) -> Follower | None:
        constraint = wanted_form(self._renderer, sampling)
        if constraint is None:
            return None
        from luthier.models.constrain import follower

        return follower(self._renderer, constraint)

    def _together(self, sizes: Sequence[int], rows: Sequence[int] | None = None, *, copies: int = 1) -> list[list[int]]:
        """Batches of answers to decode; ``sizes`` are the tokens of each with its prompt, ``rows`` their numbers (0, 1, ...); each takes
        ``copies`` places."""
        most = max(1, _MOST_ROWS // copies)
        return order_by_length(sizes, 8 * self._max_batch_tokens, max_rows=most, names=rows)

    def _grow(
        self,
        answers: Sequence[Answer],
        batch: Batch,
        keys: Sequence[str | None],
        samplers: Sequence[RowSampler],
        *,
        after_prompt: Callable[[], None] | None = None,
    ) -> Iterator[Delta]:
        """Fill ``answers``; after each step yields what the first one shows, with the model free for others meanwhile.

        ``samplers`` are those that ``batch`` draws with. ``after_prompt`` is called once, when the first step has read the prompts, while the model is still held.
        """
        for answer in answers:
            answer.begin()
        while not batch.done:
            with self._base.using(*keys) as loaded:
                rows, tokens, log_probs = batch.step(loaded.module)
                if after_prompt is not None:
                    after_prompt()
                    after_prompt = None
            top = batch.top
            pieces = [
                answers[r].take(t, p, top.get(r, ()), over=samplers[r].done)
                for r, t, p in zip(rows, tokens, log_probs, strict=True)
            ]
            batch.finish(row for row in rows if answers[row].finish_reason)
            yield pieces[0]

    def _pieces(self, answer: Answer, sampler: RowSampler) -> Iterator[Delta]:
        for piece in self._alone(answer, sampler):
            if piece.text or piece.tokens or piece.tool_calls:
                yield piece
        yield Delta("", answer.generation())

    def _scored(
        self, batches: Iterator[list[tuple[int, list[Read]]]], count: int, progress: Progress
    ) -> list[list[Read]]:
        """Results by row; between two batches the model is free for others."""
        out: list[list[Read]] = [[]] * count
        done = 0
        while True:
            with self._base.using(self._key):
                scored = next(batches, None)
            if scored is None:
                return out
            for index, read in scored:
                out[index] = read
            done += len(scored)
            progress("score", done, count)


def finished(answers: Sequence[Answer], steps: Iterable[object], progress: Progress) -> list[Generation]:
    """The answers after all ``steps``; ``progress`` hears of it whenever more of them are finished."""
    told = 0
    for _ in steps:
        done = sum(bool(answer.finish_reason) for answer in answers)
        if done > told:
            told = done
            progress("generate", done, len(answers))
    return [answer.generation() for answer in answers]
