"""Where rows of several sources lie among all rows, and the steps that a training makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from luthier.core.dataset import Dataset, Splits
from luthier.core.errors import DataError
from luthier.data.batch import Step, plan
from luthier.data.dedupe import content_key
from luthier.data.shares import Mixture


@dataclass(frozen=True)
class Source:
    """One of several datasets of a training."""

    name: str
    splits: Splits
    weight: float = 1.0

    def as_list(self) -> list[object]:
        """What decides the work, for keys."""
        return [self.name, self.splits.train.digest, self.splits.validation.digest, self.weight]


def named(splits: Splits, name: str) -> Splits:
    """The same splits, as those of source ``name``."""
    parts = ("train", "validation", "test")
    return Splits(*(replace(getattr(splits, part), name=f"{name}/{part}") for part in parts))


def leaked(sources: Sequence[Source]) -> int:
    """How many validation rows of a source say the same as a training row of another; each source for itself was cut without such rows."""
    trained: dict[str, set[str]] = {}
    for source in sources:
        for example in source.splits.train.examples:
            trained.setdefault(content_key(example), set()).add(source.name)
    held = ((source.name, content_key(e)) for source in sources for e in source.splits.validation.examples)
    return sum(bool(trained.get(key, set()) - {name}) for name, key in held)


def joined(sources: Sequence[Source]) -> Splits:
    """The sources' rows one after another, each split for itself."""
    return Splits(*(_joined([getattr(s.splits, part) for s in sources]) for part in ("train", "validation", "test")))


def _joined(parts: Sequence[Dataset]) -> Dataset:
    names = "+".join(dict.fromkeys(part.name.split("/")[0] for part in parts))
    formats = {part.format for part in parts if len(part)}
    return Dataset(
        names,
        parts[0].kind,
        tuple(example for part in parts for example in part.examples),
        formats.pop() if len(formats) == 1 else "",
        tuple(problem for part in parts for problem in part.problems),
        tuple(parts),
    )


@dataclass(frozen=True)
class Layout:
    """Rows of several sources, one source after another: ``sizes`` of them each. ``mixture`` says how they are drawn."""

    mixture: Mixture
    sizes: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources."""
        return self.mixture.names

    @cached_property
    def numbers(self) -> list[int]:
        """Of each row the number of its source."""
        return [number for number, size in enumerate(self.sizes) for _ in range(size)]

    def check(self, validation: Sequence[int]) -> None:
        """Raise DataError where a source has nothing to train on, or no ``validation`` rows (those of each) while shares follow their loss."""
        empty = [name for name, size in zip(self.names, self.sizes, strict=True) if not size]
        if empty:
            raise DataError(
                f"there are no rows to train on in data source {empty[0]}",
                hint="take it out, or look at its rows: luthier data inspect FILE",
            )
        if self.mixture.sampling == "dynamic" and not (len(validation) == len(self.names) and all(validation)):
            raise DataError(
                "data.sampling dynamic follows the validation loss of each source; not all have validation rows left",
                hint="choose another data.sampling, or data.overlong=truncate",
            )

    def plan(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        max_tokens: int,
        seed: int,
        epoch: int,
        group: bool,
        losses: Sequence[Mapping[str, float]] = (),
    ) -> list[Step]:
        """The steps of ``epoch``; a micro-batch has rows of one source."""
        rows = self.mixture.draw(self.sizes, seed=seed, epoch=epoch, losses=losses)
        return plan(
            lengths,
            batch_size=batch_size,
            max_tokens=max_tokens,
            seed=seed,
            epoch=epoch,
            group=group,
            rows=rows,
            apart=self.numbers,
        )
