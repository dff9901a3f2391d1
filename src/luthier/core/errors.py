"""Every error that Luthier raises on purpose.

A message names the parameter, what was allowed and what came; ``hint`` is the next command to type. The CLI prints both and
exits with ``exit_code``; the gateway answers with ``http_status``. Anything else that escapes is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LuthierError(Exception):
    """Root of the tree."""

    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class InputError(LuthierError):
    """What the user gave cannot be used: a parameter, a file, a request field."""

    exit_code = 2
    http_status = 400


class NotFoundError(InputError):
    """A name that the store or a catalogue does not know."""

    http_status = 404


class ConflictError(InputError):
    """The thing exists already, or somebody else holds it."""

    http_status = 409


class UnsupportedError(InputError):
    """A true request that this model, engine or method cannot serve. ``parameters`` names what of ``Sampling`` it was, if that was it."""

    def __init__(self, message: str, *, hint: str | None = None, parameters: Iterable[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.parameters = tuple(parameters)


class ContextLengthError(InputError):
    """A prompt that has more tokens than the model reads; the message says how many of each."""

    code = "context_length_exceeded"


class MissingExtraError(InputError):
    """An optional dependency is not installed; the hint is the install command."""


class MismatchError(InputError):
    """Two things that must agree do not: template digests, vocabularies, base models."""

    http_status = 409


class DataError(InputError):
    """A data file that cannot be used as it is; carries the broken rows when rows are the reason."""


class OfflineError(LuthierError):
    """A download was needed and the source could not be reached."""

    exit_code = 3
    http_status = 503


class StoreError(LuthierError):
    """The disk or the database refused (full, read-only, damaged)."""

    exit_code = 4
    http_status = 507


class TrainingError(LuthierError):
    """Training cannot go on (loss is not a number, nothing left to train on)."""

    exit_code = 5


class EngineError(LuthierError):
    """An engine failed while answering (remote endpoint down, out of memory).

    ``retryable``: the same request may succeed a moment later (overload, silence, a lost connection); ``retry_after_s`` is how long the
    engine asked to wait before, when it did.
    """

    exit_code = 6
    http_status = 502

    def __init__(
        self, message: str, *, hint: str | None = None, retryable: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class EvaluationError(LuthierError):
    """Answers are there, but nothing can be said about them (no judge could be read, nothing to compare)."""

    exit_code = 7


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known names that look like ``name``, best first."""
    return difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests near names, or lists what is allowed when none is near."""
    known = sorted(known)
    near = nearest(name, known)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    return f"Allowed: {', '.join(known)}." if known else "None is known yet."
