"""Checks and row limits that objectives share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, UnsupportedError

Overlong = Literal["error", "truncate", "drop"]

_SHOWN = 10


@dataclass(slots=True)
class Around:
    """A row of another objective; what stands beside it is the fields of whoever builds on it."""

    row: Any

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return int(self.row.length)

    @property
    def weight(self) -> int:
        """What its loss counts."""
        return int(self.row.weight)

    @property
    def source(self) -> str:
        """``file:line``."""
        return str(self.row.source)


@dataclass
class Limits:
    """How long a row may be, and what happens to a longer one; counts what happened.

    ``overlong``: error (DataError that names the rows), truncate (cut at the end of the user's text, or of the conversation), drop.
    """

    context_length: int
    overlong: Overlong = "error"
    dropped: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    _refused: list[str] = field(default_factory=list)

    def admit(self, example: Example, length: int, shorten: Callable[[], bool]) -> bool:
        """Whether a row of ``length`` tokens is used. ``shorten`` cuts it in place and says whether something worth training is left."""
        if length <= self.context_length:
            return True
        place = example.source or example.id
        if self.overlong == "error":
            self._refused.append(f"{place}: {length} tokens")
            return False
        if self.overlong == "truncate" and shorten():
            self.truncated.append(place)
            return True
        self.dropped.append(place)
        return False

    def check(self) -> None:
        """Raise DataError for the rows that were refused."""
        if self._refused:
            shown = "\n  ".join(self._refused[:_SHOWN])
            more = f"\n  and {len(self._refused) - _SHOWN} more" if len(self._refused) > _SHOWN else ""
            raise DataError(
                f"{len(self._refused)} rows are longer than the model's context of {self.context_length} tokens:\n  {shown}{more}",
                hint="choose data.overlong=truncate or data.overlong=drop, or shorten them",
            )


def require_kind(dataset: Dataset, kinds: Sequence[str], objective: str) -> None:
    """Raise UnsupportedError unless the dataset is of one of ``kinds``."""
    if dataset.kind not in kinds:
        raise UnsupportedError(
            f"objective {objective} needs data of kind {' or '.join(kinds)}; {dataset.name} is {dataset.kind}",
            hint="luthier data inspect FILE shows what a file holds",
        )


def require_labels(dataset: Dataset, labels: Sequence[str]) -> None:
    """Raise DataError when ``dataset`` holds a label that is not among ``labels``, naming rows."""
    strange = [e for e in dataset.examples if e.target not in labels]
    if strange:
        names = sorted({str(e.target) for e in strange})
        raise DataError(
            f"{dataset.name}: label {', '.join(map(repr, names[:5]))} does not occur in training "
            f"({', '.join(e.source or e.id for e in strange[:5])}{' …' if len(strange) > 5 else ''}); "
            f"training has {', '.join(map(repr, labels[:20]))}",
            hint="correct the label, or add training examples of it",
        )


def last_run(mask: Sequence[bool]) -> tuple[int, int]:
    """Where the last stretch of True begins and ends; (0, 0) when there is none."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    return start, end
