"""What a search may vary, and how it is written in a task file.

    train.learning_rate: [1e-5, 1e-3, log]     two numbers and a word: everything between them, even on that scale (log or linear)
    method.rank: [4, 8, 16]                    a list: one of these
    train.batch_size: {low: 8, high: 64, log: true}

A key is a section of a run (train, method, objective) and a setting in it. Without a space, a method's own is taken: its constant
``SPACE`` where it has one, else the learning rate around its default, and the rank of what has a rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import InputError, did_you_mean

SECTIONS = ("train", "method", "objective")
_AROUND = 4.0  # the learning rate is searched from a quarter of the default to four times it
_RANKS = (4, 8, 16, 32)


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; whole ones when both are."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Whether ``value`` can be drawn."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def samples(self) -> tuple[Any, ...]:
        """The ends: what must be allowed for everything between to be."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of ``values``."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether ``value`` can be drawn."""
        return value in self.values

    def samples(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values


Space = Mapping[str, Range | Choice]


def read_space(given: Mapping[str, Any], where: str) -> dict[str, Range | Choice]:
    """Check and read a space. Raises InputError that names the key, what it may be and what it is."""
    out = {}
    for key, value in given.items():
        section, dot, setting = key.partition(".")
        if not dot or not setting or section not in SECTIONS:
            raise InputError(
                f"{where}: search.space: {key!r} is not a section and a setting, for example train.learning_rate. "
                f"{did_you_mean(section, SECTIONS)}"
            )
        if key == "train.seed":
            raise InputError(f"{where}: search.space: train.seed is no setting to search; see the key seeds")
        out[key] = _dimension(value, f"{where}: search.space: {key}")
    return out


def _dimension(value: Any, where: str) -> Range | Choice:
    if isinstance(value, Mapping):
        unknown = set(value) - {"low", "high", "log"}
        if unknown or not {"low", "high"} <= set(value):
            raise InputError(f"{where}: a range is {{low: , high: , log: false}}; got {dict(value)!r}")
        return _range(value["low"], value["high"], bool(value.get("log", False)), where)
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        if len(value) == 3 and value[2] in ("log", "linear"):
            return _range(value[0], value[1], value[2] == "log", where)
        if all(item is None or isinstance(item, bool | int | float | str) for item in value):
            return Choice(tuple(value))
    raise InputError(
        f"{where}: must be a list of values, [low, high, log], [low, high, linear] or {{low, high, log}}; got {value!r}"
    )


def _range(low: Any, high: Any, log: bool, where: str) -> Range:
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in (low, high))
    if not numbers or low >= high or (log and low <= 0):
        raise InputError(
            f"{where}: low must be below high{' and above 0 for a log scale' if log else ''}; got {low!r} and {high!r}"
        )
    return Range(low, high, log)


def default_space(method: Any, options: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Range | Choice]:
    """The space of a method (a catalogue entry) whose resolved options and train settings are these."""
    own = method.optional("SPACE")
    if own is not None:
        return read_space(own, f"method {method.name}")
    rate = float(train["learning_rate"])
    space: dict[str, Range | Choice] = {"train.learning_rate": Range(rate / _AROUND, rate * _AROUND, log=True)}
    rank = options.get("rank")
    if isinstance(rank, int):
        space["method.rank"] = Choice(tuple(sorted({rank, *_RANKS})))
    return space


def grid_size(space: Space) -> int:
    """How many combinations there are. Raises InputError for a range, which has no end of them."""
    for key, dimension in space.items():
        if isinstance(dimension, Range):
            raise InputError(
                f"search.space: {key} is a range; sampler grid needs lists", hint="list the values, or sampler: tpe"
            )
    return math.prod(len(dimension.samples()) for dimension in space.values())


def applied(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with dotted ``changes`` in it."""
    out = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for key, value in changes.items():
        section, _, setting = key.partition(".")
        out.setdefault(section, {})[setting] = value
    return out
