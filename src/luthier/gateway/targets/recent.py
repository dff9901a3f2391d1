"""The last few of many numbers, and where most of them lie."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

_LEAST = 20


class Recent:
    """The last ``size`` numbers. Quantiles are computed anew after every sixteenth number, and not from fewer than twenty."""

    def __init__(self, size: int = 256) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self._fresh = 0
        self._known: dict[float, float] = {}

    def add(self, value: float) -> None:
        """One more; the oldest is forgotten."""
        self._values.append(value)
        self._fresh += 1
        if self._fresh >= 16:
            self._fresh = 0
            self._known.clear()

    def quantile(self, share: float) -> float | None:
        """The least of them that is not below ``share`` of all; None while there are too few to say."""
        if len(self._values) < _LEAST:
            return None
        if share not in self._known:
            ordered = sorted(self._values)
            self._known[share] = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        return self._known[share]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[float]:
        return iter(self._values)
