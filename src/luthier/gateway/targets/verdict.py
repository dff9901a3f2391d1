"""What an error of a target means: whose fault it is, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    LuthierError,
    NotFoundError,
    UnsupportedError,
)
from luthier.gateway.api.wire import RequestError

if TYPE_CHECKING:
    from luthier.gateway.targets.registry import Target

Then = Literal["stop", "next", "again"]


class TooSlowError(EngineError):
    """A target that did not answer in time."""

    http_status = 504
    code = "timeout"


class NoTargetError(EngineError):
    """Nothing that could be asked now: circuits are open, replicas unwell."""

    http_status = 503
    code = "no_target"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error means: its name in the trace, whether it is the target's fault (None: it says nothing of it), and what to do next."""

    outcome: str
    good: bool | None
    then: Then


ANSWERED, LEFT, LOST = Verdict("ok", True, "stop"), Verdict("left", None, "stop"), Verdict("lost", None, "stop")


def judge(error: LuthierError, *, begun: bool) -> Verdict:
    """The verdict on an error; ``begun``: the engine had its turn."""
    if isinstance(error, TooSlowError):
        return Verdict("timeout", False if begun else None, "next")
    if isinstance(error, EngineError):
        return Verdict("error", False, "again" if error.retryable else "next")
    if isinstance(error, ContextLengthError):
        return Verdict("too_long", None, "next")
    if isinstance(error, UnsupportedError):
        return Verdict("unsupported", None, "next")
    if isinstance(error, RequestError):
        busy = error.code in ("queue_full", "too_late")
        return Verdict("busy" if busy else "refused", None, "next" if busy else "stop")
    if isinstance(error, NotFoundError) or not isinstance(error, InputError):
        return Verdict(
            "error", False, "next"
        )  # a remote endpoint that has no such model any more; a package that is missing
    return Verdict("refused", None, "stop")


def none_ready(target: Target) -> NoTargetError:
    """Why none of a target's replicas can be asked, and when to come again."""
    problems = [each.problem for each in target.replicas if each.problem]
    waits = [each.breaker.closes_in_s for each in target.replicas if not each.problem]
    why = problems[0] if problems else "it failed too often lately"
    return NoTargetError(
        f"{target.name} is not asked at the moment: {why}",
        retryable=True,
        retry_after_s=max(1.0, min(waits, default=5.0)),
    )
