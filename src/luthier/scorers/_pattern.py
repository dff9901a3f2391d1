"""Regular expressions that come from users and data: checked when they are read, and stopped when they take too long."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

TIMEOUT_S = 2.0  # for one text: a pattern that backtracks without end is stopped
LONGEST = 1_000_000  # characters that are searched
LONGEST_PATTERN = 1_000  # the search table of a long literal is built in cubic time, which no timeout stops


class PatternTimeoutError(Exception):
    """A pattern was still looking after ``TIMEOUT_S``."""


@lru_cache(maxsize=4096)
def compiled(pattern: str, casefold: bool = False, lines: bool = False) -> Any:
    """The compiled pattern (package ``regex``, which reads Python's syntax); ``lines``: ``^`` and ``$`` hold at each. Raises ValueError that says where it is wrong."""
    import regex

    flags = (regex.MULTILINE if lines else 0) | (regex.IGNORECASE if casefold else 0)
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a regular expression may have {LONGEST_PATTERN:,} characters; got {len(pattern):,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on brackets that a later syntax may read otherwise
            return regex.compile(pattern, flags)
    except (regex.error, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def matches(pattern: str, text: str, *, casefold: bool = False, lines: bool = False) -> Iterator[Any]:
    """Every match in ``text``, in order. Raises PatternTimeoutError, or ValueError for a pattern that is none."""
    found = compiled(pattern, casefold, lines)
    try:
        yield from found.finditer(text[:LONGEST], timeout=TIMEOUT_S)
    except TimeoutError:
        raise PatternTimeoutError(f"{pattern!r} took more than {TIMEOUT_S:g} s") from None


def is_found(pattern: str, text: str) -> bool:
    """Whether ``pattern`` occurs in ``text``. Raises as ``matches`` does."""
    return next(matches(pattern, text), None) is not None


def removed(pattern: str, text: str) -> str:
    """``text`` without any match of ``pattern``. Raises as ``matches`` does."""
    try:
        return str(compiled(pattern).sub("", text[:LONGEST], timeout=TIMEOUT_S))
    except TimeoutError:
        raise PatternTimeoutError(f"{pattern!r} took more than {TIMEOUT_S:g} s") from None
