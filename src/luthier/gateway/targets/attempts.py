"""One question, put to one target after another until one has answered.

Nothing is tried again once a piece of a streamed answer has gone out: what breaks then is an error. An answer that is not streamed goes out
when it is whole, so it may break at any place before and be asked anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from luthier.core.errors import (
    ContextLengthError,
    EngineError,
    LuthierError,
    NotFoundError,
    UnsupportedError,
)
from luthier.gateway.api.wire import RequestError
from luthier.gateway.calls import Piece, merge_pieces
from luthier.gateway.targets.gate import ONLINE, Turn
from luthier.gateway.targets.policy import Policy
from luthier.gateway.targets.verdict import (
    ANSWERED,
    LEFT,
    LOST,
    NoTargetError,
    TooSlowError,
    Verdict,
    judge,
    none_ready,
)

if TYPE_CHECKING:
    from luthier.gateway.layers import Question
    from luthier.gateway.targets.registry import Replica, Target
    from luthier.gateway.targets.router import Route, Router
    from luthier.gateway.targets.served import Served

Made = TypeVar("Made")
Begin = Callable[["Served", Turn], AsyncIterator[Made]]
"""Asks one engine; the turn is for its gate."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target to try.

    ``path``: the routes that lead to it, outermost first, what each chose, and whether that was its first choice; ``reason`` is the last one's,
    ``note`` what all of them want in the trace. ``deadline``: when the last of these routes gives up.
    """

    name: str
    policy: Policy
    path: tuple[tuple[Route, str, bool], ...] = ()
    reason: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None


class Attempt(Generic[Made]):
    """One question at one replica."""

    def __init__(
        self, asking: Asking[Made], candidate: Candidate, target: Target, replica: Replica, role: str = ""
    ) -> None:
        self.asking, self.candidate, self.target, self.replica = asking, candidate, target, replica
        self.role = role  # "hedge" for a second try beside the first
        self.first_s: float | None = None
        self.began = self.took_s = 0.0
        self.lost = False  # another attempt was faster

    async def pieces(self) -> AsyncGenerator[Made]:
        """What the replica makes, as it comes. Raises TooSlowError when that takes too long."""
        with self._watched() as turn:
            async with aclosing(self._timed(self.asking.begin(self.replica.served, turn), turn)) as made:
                async for each in made:
                    if self.first_s is None:
                        self.first_s = self.asking.router.now() - self.began
                    yield each

    async def whole(self) -> list[Made]:
        """Everything that the replica makes, when it is done: like ``pieces``, for less."""
        made: list[Made] = []
        with self._watched() as turn:
            try:
                async with asyncio.timeout(self._left_s(turn.deadline)) as limit:
                    self._when_let_in(turn, limit)
                    async for each in self.asking.begin(self.replica.served, turn):
                        if self.first_s is None:
                            self.first_s = self.asking.router.now() - self.began
                        made.append(each)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise self._too_slow(turn) from error
            except asyncio.CancelledError:
                self.asking.keep(made)
                raise
        return made

    @contextmanager
    def _watched(self) -> Iterator[Turn]:
        """The circuit breaker, the target's statistics and the trace hear how the attempt ends."""
        router, replica = self.asking.router, self.replica
        permit = replica.breaker.enter()
        if permit is None:  # it was free a moment ago
            raise NoTargetError(f"{self.target.name} is being tried by others", retryable=True)
        replica.served.use.begin()
        self.began = router.now()
        exchange = self.asking.question.exchange
        turn = Turn(exchange.caller.tenant, exchange.priority, self._deadline(self.began))
        verdict, problem = LEFT, ""
        try:
            yield turn
            verdict = ANSWERED
        except LuthierError as error:
            verdict, problem = judge(error, begun=turn.begun), error.message
            raise
        finally:
            self.took_s = router.now() - self.began
            replica.served.use.end()
            replica.breaker.leave(permit, verdict.good)
            if self.lost:  # it would have taken longer still
                verdict = LOST
            if verdict.good or self.lost:
                self.target.firsts.add(self.first_s or self.took_s)
            self.asking.heard(self, verdict, problem)

    def _deadline(self, began: float) -> float | None:
        """When this attempt has had its time. A batch's time begins when it has its turn, see ``_timed``."""
        own = self.candidate.policy.timeout_s
        ends = [self.candidate.deadline] + ([None if own is None else began + own] if self._online else [])
        return min((each for each in ends if each is not None), default=None)

    @property
    def _online(self) -> bool:
        return self.asking.question.exchange.priority >= ONLINE

    async def _timed(self, made: AsyncIterator[Made], turn: Turn) -> AsyncGenerator[Made]:
        policy, first_by = self.candidate.policy, None
        if policy.first_token_timeout_s is not None and self.asking.question.stream and self._online:
            first_by = self.began + policy.first_token_timeout_s
        iterator = aiter(made)
        while True:
            try:
                async with asyncio.timeout(self._left_s(turn.deadline, first_by)) as limit:
                    self._when_let_in(turn, limit)
                    each = await anext(iterator)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise self._too_slow(turn) from error
            finally:
                turn.let_in = None
            first_by = None
            yield each

    def _left_s(self, *ends: float | None) -> float | None:
        """Seconds to the first of ``ends``; None when there is none."""
        known = [each for each in ends if each is not None]
        return max(0.0, min(known) - self.asking.router.now()) if known else None

    def _when_let_in(self, turn: Turn, limit: asyncio.Timeout) -> None:
        """A batch's time begins with its turn."""
        seconds = self.candidate.policy.timeout_s
        if not self._online and not turn.begun and seconds is not None:
            turn.let_in = partial(self._from_now, turn, limit, seconds)

    def _from_now(self, turn: Turn, limit: asyncio.Timeout, seconds: float) -> None:
        """A batch's turn has come."""
        turn.deadline = self.asking.router.now() + seconds
        limit.reschedule(asyncio.get_running_loop().time() + seconds)

    def _too_slow(self, turn: Turn) -> TooSlowError:
        said = "had no turn" if not turn.begun else "had not answered" if self.first_s is None else "was not done"
        return TooSlowError(f"{self.target.name} {said} after {self.asking.router.now() - self.began:.3g} s")


class Asking(Generic[Made]):
    """A question on its way through its candidates. ``begin`` puts it to one engine."""

    def __init__(self, router: Router, question: Question, begin: Begin[Made]) -> None:
        self.router, self.question, self.begin = router, question, begin
        self.plan = router.plan(self)
        self.blamed = 0  # times that a target was at fault
        self.answered: Candidate | None = None
        self.answer_s = 0.0
        self.first_s: float | None = None
        self._winner: Attempt[Made]
        self._started = self._done = False
        self._tried: set[str] = set()
        self._problems: list[tuple[str, LuthierError]] = []
        self._space: tuple[str, str] | None = None

    async def pieces(self) -> AsyncGenerator[Made]:
        """The answer of the first candidate that has one. Raises LuthierError: the only one's error, or a summary of all."""
        async with aclosing(self.plan) as plan:
            async for candidate in plan:
                if not await self._usable(candidate):
                    continue
                try:
                    async with aclosing(self._tries(candidate)) as made:
                        async for each in made:
                            yield each
                except LuthierError as error:
                    if judge(error, begun=True).good is False:  # it broke while it was being sent
                        self.router.failed(self, candidate)
                    raise
                if self._done:
                    self.router.answered(self)
                    return
                if candidate.deadline is not None and self.router.now() >= candidate.deadline:
                    break
        self._give_up()

    def heard(self, attempt: Attempt[Made], verdict: Verdict, problem: str) -> None:
        """Note how an attempt ended."""
        candidate = attempt.candidate
        self.blamed += verdict.good is False
        pool = attempt.target.replicas
        if verdict.outcome == "ok" and not (candidate.path or self._problems or attempt.role or len(pool) > 1):
            return  # one try at the model that was asked for: nothing was decided
        told: dict[str, Any] = {"target": candidate.name, "outcome": verdict.outcome}
        told |= {"replica": pool.index(attempt.replica)} if len(pool) > 1 and attempt.replica in pool else {}
        told |= {"as": attempt.role} if attempt.role else {}
        told |= {"problem": problem} if problem else {}
        self._say(candidate, **told, took_s=round(attempt.took_s, 6))

    def _say(self, candidate: Candidate, **told: Any) -> None:
        if candidate.path:
            told["by"] = {route.name: arm for route, arm, _ in candidate.path}
        told |= {"reason": candidate.reason} if candidate.reason else {}
        self.question.exchange.say("route", **{**candidate.note, **told})

    async def next_usable(self) -> tuple[Candidate, Target] | None:
        """The next candidate that can be asked, for a try beside the present one; None when there is no other."""
        async for candidate in self.plan:
            if await self._usable(candidate):
                target = self.router.registry.target(candidate.name)
                return (candidate, target) if target is not None else None
        return None

    # ---- whether a candidate can be asked at all

    async def _usable(self, candidate: Candidate) -> bool:
        """Whether a candidate can be asked this; else the problem is noted."""
        if candidate.name in self._tried:
            return False
        self._tried.add(candidate.name)
        target = self._target(candidate)
        if target is None:
            return False
        info = target.served.engine.info
        space = (info.model_digest, "" if info.model_digest else info.model)
        if self.question.exchange.operation == "embedding" and self._space not in (None, space):
            why = f"{candidate.name} has other vectors than what was asked first"
            self._refuse(candidate, "other_vectors", UnsupportedError(why))
            return False
        self._space = self._space or space
        if candidate.path or target.config.context_length is not None:
            tokens, counted = await self.router.too_many_tokens(target.served, self.question)
            if tokens:
                about = "" if counted else "about "
                error = ContextLengthError(
                    f"the prompt has {about}{tokens} tokens; {candidate.name} reads at most {target.served.context_length}, answer included"
                )
                self._refuse(candidate, "too_long", error)
                return False
        return True

    def _target(self, candidate: Candidate) -> Target | None:
        """What a candidate's name stands for now: models come and go while a request waits."""
        target = self.router.registry.target(candidate.name)
        if target is None:
            self._refuse(candidate, "gone", NotFoundError(f"model {candidate.name!r} is not served any more"))
        return target

    def _refuse(self, candidate: Candidate, outcome: str, error: LuthierError) -> None:
        self._problems.append((candidate.name, error))
        self._say(candidate, target=candidate.name, outcome=outcome)

    # ---- asking one candidate

    async def _tries(self, candidate: Candidate) -> AsyncGenerator[Made]:
        """The candidate's answer, after as many tries as its policy has; nothing when they all failed in a way that leaves room for others."""
        used: list[Replica] = []
        for number in range(candidate.policy.retries.attempts + 1):
            target = self._target(candidate)
            if target is None:
                return
            replica = target.pick(used) or target.pick()
            if replica is None:
                self.blamed += 1
                self._refuse(candidate, "open", none_ready(target))
                return
            used.append(replica)
            attempt = Attempt(self, candidate, target, replica)
            try:
                async with aclosing(self._one(attempt)) as made:
                    async for each in made:
                        yield each
                self._done = True
                return
            except LuthierError as error:
                self._problems.append((candidate.name, error))
                verdict = judge(error, begun=True)
                if self._started or verdict.then == "stop":
                    raise
                pause_s = self._pause_s(candidate, number, error) if verdict.then == "again" else None
            if pause_s is None:
                return
            await self.router.sleep(pause_s)

    async def _one(self, attempt: Attempt[Made]) -> AsyncGenerator[Made]:
        """An attempt, or two of which the first to have a piece wins. What is not streamed is held back until it is whole."""
        delay_s = self.router.hedge_after_s(attempt)
        self._winner = attempt
        if self.question.stream:
            async with aclosing(attempt.pieces() if delay_s is None else self._beside(attempt, delay_s)) as pieces:
                async for each in pieces:
                    self._started = True
                    yield each
            self._won()
            return
        whole = await attempt.whole() if delay_s is None else await self._collected(self._beside(attempt, delay_s))
        self._won()
        if whole and isinstance(whole[0], Piece):
            whole = merge_pieces(whole)  # type: ignore[arg-type, assignment]
        for each in whole:
            yield each

    def _won(self) -> None:
        winner = self._winner
        self.answered, self.answer_s, self.first_s = winner.candidate, winner.took_s, winner.first_s

    def _beside(self, attempt: Attempt[Made], delay_s: float) -> AsyncGenerator[Made]:
        from luthier.gateway.targets.hedge import hedged  # which imports this file

        return hedged(self, attempt, delay_s)

    async def _collected(self, pieces: AsyncGenerator[Made]) -> list[Made]:
        made: list[Made] = []
        try:
            async with aclosing(pieces) as found:
                async for each in found:
                    made.append(each)
        except asyncio.CancelledError:
            self.keep(made)
            raise
        return made

    def keep(self, made: Iterable[Made]) -> None:
        """The client left: what was made so far is kept in the trace, and paid."""
        for piece in made:
            if isinstance(piece, Piece):
                self.question.exchange.note(piece)

    def leads(self, attempt: Attempt[Made]) -> None:
        """Of two attempts this is the one whose pieces go out."""
        self._winner = attempt
        self.question.exchange.served = attempt.replica.served

    def _pause_s(self, candidate: Candidate, number: int, error: LuthierError) -> float | None:
        """Seconds before the next try; None when there is none."""
        retries = candidate.policy.retries
        if number >= retries.attempts:
            return None
        pause = self.router.draw.uniform(0.0, min(retries.most_s, retries.base_s * 2**number))
        asked = getattr(error, "retry_after_s", None)
        if asked is not None:
            if asked > retries.most_s:
                return None
            pause = max(pause, asked)
        deadline = candidate.deadline
        return None if deadline is not None and self.router.now() + pause >= deadline else pause

    # ---- when nobody answered

    def _give_up(self) -> NoReturn:
        """Raise what says best why there is no answer."""
        name, problems = self.question.exchange.model, self._problems
        if not problems:
            raise NoTargetError(f"no target of {name!r} can be asked")
        failed = [each for each in problems if judge(each[1], begun=True).good is False]
        if not failed:  # nothing is broken: the request asks for too much, or too many ask
            raise max((error for _, error in problems), key=lambda error: isinstance(error, RequestError))
        last = failed[-1][1]
        if len({target for target, _ in problems}) == 1:
            raise last
        said = "; ".join(dict.fromkeys(f"{target}: {error.message}" for target, error in problems))
        summary = NoTargetError if all(isinstance(error, NoTargetError) for _, error in failed) else EngineError
        waits = [error.retry_after_s for _, error in failed if isinstance(error, EngineError) and error.retry_after_s]
        raise summary(
            f"no target of {name!r} could answer: {said}",
            retryable=any(getattr(error, "retryable", False) for _, error in failed),
            retry_after_s=min(waits, default=None),
        ) from last
