"""Reading values of options that hold several things."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from luthier.core.errors import InputError

Number = TypeVar("Number", int, float)


def numbers(text: str, of: Callable[[str], Number], must_be: str) -> list[Number]:
    """``text`` cut at its commas, each part read by ``of``. Raises InputError that says what it ``must_be``."""
    try:
        return [of(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{must_be}; got {text!r}") from error
