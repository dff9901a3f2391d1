"""Strategies that ask several times before they answer.

Such a strategy is a talk: a generator that yields what it wants to ask, is sent the replies, and returns the answer. Many talks go on in
step: what all of them ask next is one batch. The answer's ``text`` is the final answer alone, ``reasoning`` the thoughts, token counts and
latency are of all calls together. Log-likelihoods of labels cannot be asked of an engine that thinks first, so it does not ``score``.

Of the optional parameters it honours those that say how every token is drawn: a form, tools or images would bind the thoughts as well,
and log-probabilities would be of tokens that are not the answer's. A strategy that chooses among whole answers can honour more.

A stream gives the answer in one piece when the thinking is over; while it lasts, empty pieces come, so that a reader who leaves
ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from luthier.core.engine import (
    EMBED,
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
    require,
)
from luthier.core.errors import EngineError, LuthierError, UnsupportedError
from luthier.core.message import Conversation, Message, Prompt
from luthier.core.run import Progress, no_progress
from luthier.strategies._prompted import is_question

_GIVE_UP = 3
DRAWING = frozenset({
    "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
})  # fmt: skip
"""The parameters that can hold for thoughts and answers alike."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One call that a talk wants."""

    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Weigh:
    """(question, answer) pairs whose value a talk wants to know, from the model that the strategy weighs answers with."""

    items: tuple[tuple[str, str], ...]


class Values(Protocol):
    """Who gives values; see ``_reward``."""

    def of(self, items: Sequence[tuple[str, str]]) -> list[float]:
        """One value an item, higher is better."""

    def close(self) -> None:
        """Free what gives them."""


Reply: TypeAlias = Generation | LuthierError
Talk: TypeAlias = Generator[Sequence[Ask] | Weigh, Any, Generation]
"""Yields calls and is sent their replies (``Generation`` or the error), or yields ``Weigh`` and is sent values."""


Thinks: TypeAlias = Callable[[Prompt, Sampling], Talk]
"""How one prompt is answered."""


class Thinking:
    """``inner``, asked as ``think`` says. ``digest`` covers all that decides an answer.

    As with other strategies, raw text and conversations with a system turn or earlier turns pass unchanged, in one call; unless the
    strategy rewrites nothing and takes ``every`` prompt.
    """

    def __init__(
        self,
        inner: Engine,
        think: Thinks,
        digest: str,
        *,
        every: bool = False,
        reward: Values | None = None,
        parameters: frozenset[str] = DRAWING,
    ) -> None:
        require(inner, GENERATE)
        self.inner = inner
        self._think, self._every, self._reward = think, every, reward
        kept = (inner.info.capabilities - {SCORE}) | {STREAM}
        self._info = inner.info.with_(
            prompt_digest=digest, capabilities=kept, parameters=inner.info.parameters & parameters
        )

    @property
    def info(self) -> EngineInfo:
        """The inner engine's, with the digest of this way of asking, without ``score`` and what cannot be honoured so."""
        return self._info

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, in order. Raises what the engine raises when it cannot answer one of them."""
        talks = [self._talk(prompt, sampling) for prompt in prompts]
        waiting = {place: next(talk) for place, talk in enumerate(talks)}
        answers: dict[int, Generation] = {}
        while waiting:
            for place, replies in self._replies(waiting).items():
                try:
                    waiting[place] = talks[place].send(replies)
                except StopIteration as end:
                    answers[place] = end.value
                    del waiting[place]
            progress("generate", len(answers), len(prompts))
        return [answers[place] for place in range(len(prompts))]

    def _replies(self, waiting: Mapping[int, Sequence[Ask] | Weigh]) -> dict[int, list[Any]]:
        """What every talk waits for; calls and weighings are one batch each."""
        asks = [ask for wanted in waiting.values() if not isinstance(wanted, Weigh) for ask in wanted]
        items = [item for wanted in waiting.values() if isinstance(wanted, Weigh) for item in wanted.items]
        made = iter(ask_all(self.inner, asks))
        values = iter(self._reward.of(items) if items and self._reward is not None else ())
        return {
            place: [next(values) for _ in wanted.items] if isinstance(wanted, Weigh) else [next(made) for _ in wanted]
            for place, wanted in waiting.items()
        }

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """Empty pieces while it thinks, then the answer in one."""
        return self._stream(self._talk(prompt, sampling))

    def _stream(self, talk: Talk) -> Iterator[Delta]:
        wanted = next(talk)
        while True:
            if not isinstance(wanted, Weigh) and len(wanted) == 1 and STREAM in self.inner.info.capabilities:
                replies: list[Any] = []
                for delta in self.inner.stream(wanted[0].prompt, wanted[0].sampling):
                    yield Delta("")
                    if delta.generation is not None:
                        replies.append(delta.generation)
            else:
                replies = self._replies({0: wanted})[0]
                yield Delta("")
            try:
                wanted = talk.send(replies)
            except StopIteration as end:
                answer: Generation = end.value
                if answer.text or answer.tool_calls:
                    yield Delta(answer.text, tokens=answer.tokens, tool_calls=answer.tool_calls)
                yield Delta("", answer)
                return

    def _talk(self, prompt: Prompt, sampling: Sampling) -> Talk:
        return self._think(prompt, sampling) if self._every or is_question(prompt) else _as_it_is(prompt, sampling)

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Raises UnsupportedError."""
        require(self, SCORE)
        return []

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Vectors of the bare texts, from the inner engine."""
        require(self, EMBED)
        return self.inner.embed(texts, progress)

    def healthy(self, timeout_s: float) -> None:
        """Raises EngineError when the inner engine is not well."""
        check_health(self.inner, timeout_s)

    def close(self) -> None:
        """Close the inner engine, and what else the strategy opened."""
        self.inner.close()
        if self._reward is not None:
            self._reward.close()


def _as_it_is(prompt: Prompt, sampling: Sampling) -> Talk:
    replies = yield [Ask(prompt, sampling)]
    return only(replies)


def ask_all(inner: Engine, asks: Sequence[Ask]) -> list[Reply]:
    """Every call's reply, in order: one batch for each way of sampling.

    When a batch fails, its calls are made one by one, so that a failure is its own call's only. An engine that fails at three of them
    in a row is not asked the rest.
    """
    places: dict[Sampling, list[int]] = {}
    for place, ask in enumerate(asks):
        places.setdefault(ask.sampling, []).append(place)
    replies: dict[int, Reply] = {}
    for sampling, rows in places.items():
        try:
            made: Sequence[Reply] = inner.generate([asks[row].prompt for row in rows], sampling)
        except UnsupportedError:
            raise
        except LuthierError as error:
            made = [error] if len(rows) == 1 else _one_by_one(inner, [asks[row] for row in rows])
        replies.update(zip(rows, made, strict=True))
    return [replies[place] for place in range(len(asks))]


def _one_by_one(inner: Engine, asks: Sequence[Ask]) -> list[Reply]:
    replies: list[Reply] = []
    for ask in asks:
        last = replies[-_GIVE_UP:]
        if len(last) == _GIVE_UP and all(isinstance(each, EngineError) for each in last):
            replies.append(last[-1])
            continue
        try:
            replies += inner.generate([ask.prompt], ask.sampling)
        except LuthierError as error:
            replies.append(error)
    return replies


def only(replies: Sequence[Reply]) -> Generation:
    """The reply to a single call; its error is raised."""
    (reply,) = replies
    if isinstance(reply, LuthierError):
        raise reply
    return reply


def good(replies: Sequence[Reply]) -> list[Generation]:
    """The replies that are answers. Raises the first error when there is none."""
    found = [reply for reply in replies if isinstance(reply, Generation)]
    if not found:
        raise next((each for each in replies if isinstance(each, LuthierError)), EngineError("nothing was asked"))
    return found


def together(made: Sequence[Generation], text: str, reasoning: str = "") -> Generation:
    """The answer ``text`` after the calls in ``made``, of which the last one ends it: tokens, log-probability and costs are of all of
    them, and the first token of the answer came when it was whole."""
    known = [each.logprob for each in made if each.logprob is not None]
    return cost_of(
        replace(
            made[-1],
            text=text,
            reasoning=reasoning,
            token_ids=tuple(token for each in made for token in each.token_ids),
            logprob=sum(known) if len(known) == len(made) else None,
        ),
        made,
    )


def cost_of(answer: Generation, made: Sequence[Generation]) -> Generation:
    """``answer`` with the costs of all calls in ``made``."""
    latency = sum(each.latency_s for each in made)
    return replace(
        answer,
        latency_s=latency,
        first_token_s=latency,
        prompt_tokens=sum(each.prompt_tokens for each in made),
        completion_tokens=sum(each.completion_tokens for each in made),
        calls=sum(each.calls for each in made),
    )


def weighed(sampling: Sampling, engine: Engine) -> Sampling:
    """``sampling`` for calls whose log-probability is needed; some engines compute it only when they are asked."""
    known = sampling.logprobs is not None or "logprobs" not in engine.info.parameters
    return sampling if known else replace(sampling, logprobs=0)


def as_asked(answer: Generation, sampling: Sampling) -> Generation:
    """``answer`` without what was said of its tokens, unless ``sampling`` asked for it."""
    return answer if sampling.logprobs is not None else replace(answer, tokens=())


def mean_logprob(answer: Generation) -> float | None:
    """Log-probability a token, in nats; None when the engine did not say."""
    tokens = len(answer.token_ids) or answer.completion_tokens
    return None if answer.logprob is None else answer.logprob / max(tokens, 1)


def thoughts(sampling: Sampling, tokens: int) -> Sampling:
    """How thoughts are written: as long as ``tokens``, and not ended by what ends an answer."""
    return replace(sampling, max_new_tokens=tokens, stop=())


def read_off(sampling: Sampling) -> Sampling:
    """How an answer is read off the thoughts: greedily, so that all samples of a question make one batch."""
    return replace(sampling, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=None, stop=())


def follow(conversation: Conversation, *turns: str) -> Conversation:
    """``conversation``, which ends with a user turn, with further turns: assistant, user, assistant, ..."""
    roles = ("assistant", "user")
    return (*conversation, *(Message(roles[i % 2], text) for i, text in enumerate(turns)))


def close_with(conversation: Conversation, text: str) -> Conversation:
    """``conversation`` whose last turn ends with ``text``, in a paragraph of its own."""
    last = conversation[-1]
    return (*conversation[:-1], Message(last.role, f"{last.content}\n\n{text}"))


def seeded(sampling: Sampling, number: int, of: int, temperature: float) -> Sampling:
    """How sample ``number`` of ``of`` is drawn: with a seed of its own where the caller gives one, at the caller's temperature or,
    where that is 0, at ``temperature``."""
    seed = None if sampling.seed is None else (sampling.seed * of + number) % 2**63
    return replace(sampling, seed=seed, temperature=sampling.temperature or temperature)
